"""The registry of released models: numbered releases, which one is current, and who decided what.

In the lake, by its storage rule, beside the assets::

    <profile>/releases/<n>/     release n: the Bento's archive, the int8 model, the gate's decision
    <profile>/releases/log/     log.json: every release, roll-back and override, in order; no line of it is ever changed

The log decides. A release is stored first and becomes current by the log's replacement, which is one step: after
``kill -9`` the registry is as it was before, or as it is after.
"""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from neuroranker_pipeline.errors import BadInput, NotReady
from neuroranker_pipeline.resources.lake import Lake
from neuroranker_pipeline.serving.digests import damage

RELEASES, LOG, LOG_FILE = "releases", "log", "log.json"
MODEL, RELEASE_FILE = "model", "release.json"
ARCHIVE = "ranker.tar"  # not compressed: weights hardly shrink, and BentoML's own format takes half a minute
LIST_THEM = "`neuroranker releases` lists them"


@dataclass(frozen=True)
class Override:
    """A person lets one model, by its data version, through the gate; ``run``: the Dagster run that brought the word."""

    model: str
    reason: str
    who: str
    at: str
    run: str = ""


@dataclass(frozen=True)
class Release:
    """A released Bento. ``model`` and ``bento`` are data versions; ``compared_with``: the release that the gate held it to,
    the best of the ``measured`` ones; ``replaced``: the one that was current before; ``figures``: what the gate measured;
    ``evidence``: full or weak, empty in a log that did not know it."""

    number: int
    tag: str
    model: str
    bento: str
    who: str
    at: str
    compared_with: int | None = None
    replaced: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    override: Override | None = None
    measured: tuple[int, ...] = ()
    evidence: str = ""

    @property
    def measured_with(self) -> tuple[int, ...]:
        """The releases that the gate measured beside it; of a log that did not name them, the one it was compared with."""
        return self.measured or ((self.compared_with,) if self.compared_with else ())


@dataclass(frozen=True)
class Rollback:
    """A person made release ``number`` current in place of ``replaced``."""

    number: int
    replaced: int
    reason: str
    who: str
    at: str


Event = Release | Rollback | Override
KINDS: dict[str, type[Event]] = {"release": Release, "rollback": Rollback, "override": Override}


@dataclass(frozen=True)
class History:
    """What the log says."""

    events: tuple[Event, ...] = ()

    @cached_property
    def releases(self) -> dict[int, Release]:
        return {event.number: event for event in self.events if isinstance(event, Release)}

    @cached_property
    def current(self) -> Release | None:
        """The release that serves."""
        numbers = [event.number for event in self.events if not isinstance(event, Override)]
        return self.releases[numbers[-1]] if numbers else None

    def release(self, number: int | None) -> Release | None:
        return None if number is None else self.releases.get(number)

    def override_of(self, model: str) -> Override | None:
        """The last override of exactly this model."""
        found = [event for event in self.events if isinstance(event, Override) and event.model == model]
        return found[-1] if found else None

    def withdrawal(self, model: str) -> Rollback | None:
        """The roll-back that took a model out of service, unless a person put it back or let it through since."""
        found: Rollback | None = None
        for event in self.events:
            match event:
                case Rollback():
                    if self.releases[event.number].model == model:
                        found = None
                    elif any(self._model(n) == model for n in range(event.number + 1, event.replaced + 1)):
                        found = event
                case _:
                    found = None if event.model == model else found
        return found

    def measured_for(self, model: str, kept: Callable[[int], bool]) -> tuple[Release, ...]:
        """The releases that the gate measures beside a model, the oldest first: all that are kept and were not rolled back,
        but for its own.

        A model that is current, or was rolled back, has been judged: it keeps those that it was measured with, though some
        may be gone. So a release does not make its own decision stale, nor does the deletion of old ones after it, nor a
        roll-back.
        """
        if (judged := self._judged(model)) is not None:
            return tuple(self.releases[number] for number in judged.measured_with if number in self.releases)
        others = (one for one in self.releases.values() if one.model != model and self.withdrawal(one.model) is None)
        return tuple(one for one in others if kept(one.number))

    def _judged(self, model: str) -> Release | None:
        """The release of a model that is current or was rolled back."""
        if self.current is not None and self.current.model == model:
            return self.current
        if self.withdrawal(model) is None:
            return None
        return next(one for one in reversed(self.releases.values()) if one.model == model)

    def to_json(self) -> str:
        names = {kind: name for name, kind in KINDS.items()}
        events = [{"kind": names[type(event)], **asdict(event)} for event in self.events]
        return json.dumps({"events": events}, indent=2)

    @staticmethod
    def from_json(text: str) -> History:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is no log."""
        events = [_event(**values) for values in json.loads(text)["events"]]
        history = History(tuple(events))
        for event in events:
            if isinstance(event, Rollback) and event.number not in history.releases:
                raise ValueError(f"a roll-back to release {event.number}, which it does not hold")
        return history

    def _model(self, number: int) -> str | None:
        found = self.release(number)
        return found.model if found else None


class Registry:
    """The releases of one profile's lake."""

    def __init__(self, lake: Lake):
        self.lake = lake

    def history(self) -> History:
        """Raises ``NotReady`` when the log is damaged."""
        manifest = self.lake.manifest(RELEASES, LOG)
        if manifest is None:
            return History()
        file = self.lake.open(manifest) / LOG_FILE
        try:
            return History.from_json(file.read_text("utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotReady(f"{file}: the log of releases is damaged ({error}); put it back from a backup") from None

    def find(self, number: int) -> Release:
        """A release by its number; raises ``BadInput`` for one that never was, ``NotReady`` when nothing was released."""
        releases = self.history().releases
        if not releases:
            raise NotReady(f"profile {self.lake.profile}: nothing has been released yet: run `neuroranker run`")
        if number not in releases:
            raise BadInput(f"release {number}: there is none, the last is {max(releases)}; {LIST_THEM}")
        return releases[number]

    def kept(self, number: int) -> bool:
        """Whether the files of a release are still there."""
        return self.lake.manifest(RELEASES, str(number)) is not None

    def measured_for(self, model: str) -> tuple[Release, ...]:
        """The releases that the gate measures beside a model; see ``History.measured_for``."""
        return self.history().measured_for(model, self.kept)

    def open(self, number: int) -> Path:
        """The files of a release, compared with their digests. Raises ``NotReady`` when they are gone or damaged."""
        self.find(number)
        manifest = self.lake.manifest(RELEASES, str(number))
        if manifest is None:
            raise NotReady(f"release {number} is no longer kept (release.keep says how many are); {LIST_THEM}")
        folder = self.lake.open(manifest)
        if problem := damage(folder, manifest.files):
            raise NotReady(f"release {number} is damaged: {problem}; roll back to another one, {LIST_THEM}")
        return folder

    def add(self, release: Release, files: Mapping[str, Path], run_id: str = "", keep: int = 3) -> Release:
        """Store a release and make it current; ``files``: {name in the release: file or folder}.

        It gets the next number. The same Bento is not released twice in a row: what an interrupted run did is found
        and left. Then all but the last ``keep`` releases are deleted, but for the current one and those that it
        replaced and was compared with: the best one, lest losses add up that are accepted one by one.
        """

        def store(history: History) -> Event | None:
            current = history.current
            if current is not None and current.tag == release.tag:
                return None
            number = max(history.releases, default=0) + 1
            added = replace(release, number=number, replaced=current.number if current else None)
            self._store(added, files, run_id)
            return added

        history = self._append(store)
        self._prune(history, keep)
        assert history.current is not None
        return history.current

    def roll_back(self, number: int | None, reason: str, who: str) -> Rollback:
        """Make release ``number``, by default the one that the current one replaced, current again.

        Its files are compared with their digests first. Raises ``NotReady`` when there is none, or it is damaged or no
        longer kept, and ``BadInput`` for an unknown number or the current one.
        """
        history = self.history()
        current = history.current
        if current is None:
            raise NotReady(f"profile {self.lake.profile}: nothing has been released yet: run `neuroranker run`")
        target = current.replaced if number is None else number
        if target is None:
            raise NotReady(f"release {current.number} is the first: there is none before it to roll back to")
        if target == current.number:
            raise BadInput(f"release {target} is current already; {LIST_THEM}")
        self.open(target)
        event = Rollback(target, current.number, reason, who, now())

        def check(latest: History) -> Event:
            if latest.current != current:
                raise NotReady("another release became current meanwhile: run the command again")
            return event

        self._append(check)
        return event

    def let_through(self, model: str, reason: str, who: str, run: str = "") -> Override:
        """Record that a person lets this model through the gate; an equal record is not made twice."""
        event = Override(model, reason_given(reason), who, now(), run)

        def unless_there(history: History) -> Event | None:
            found = history.override_of(model)
            there = found is not None and history.withdrawal(model) is None and found.reason == event.reason
            return None if there else event

        found = self._append(unless_there).override_of(model)
        assert found is not None
        return found

    def serve(self, number: int) -> None:
        """Have ``<name>:latest`` of the user's BentoML store be the Bento of a release, which is put there if it is not."""
        from neuroranker_pipeline.serving.store import import_bento, in_store, make_latest

        release = self.find(number)
        if not in_store(release.tag):
            import_bento(self.open(number) / ARCHIVE, release.tag)
        make_latest(release.tag)

    def repair_store(self) -> str | None:
        """Put the current release back where it was lost from the user's BentoML store, or is no longer the latest there
        because another of our releases is; returns its tag if so.

        A Bento of the same name that someone else made the latest is left alone.
        """
        from neuroranker_pipeline.serving.store import in_store, latest_tag

        history = self.history()
        current = history.current
        if current is None:
            return None
        latest = latest_tag(current.tag.partition(":")[0])
        ours = {release.tag for release in history.releases.values()}
        if in_store(current.tag) and (latest == current.tag or (latest is not None and latest not in ours)):
            return None
        self.serve(current.number)
        return current.tag

    def _append(self, decide: Callable[[History], Event | None]) -> History:
        """Add what ``decide`` returns to the log. Raises ``NotReady`` while another process changes it."""
        with self.lake.publish(RELEASES, LOG, fingerprint=LOG, code_version="1", settings={}, inputs={}) as draft:
            history = self.history()
            event = decide(history)
            history = History((*history.events, event)) if event else history
            (draft.path / LOG_FILE).write_text(history.to_json(), "utf-8")
            draft.rows = len(history.events)
        return history

    def _store(self, release: Release, files: Mapping[str, Path], run_id: str) -> None:
        from neuroranker_pipeline.serving.search import link_or_copy

        with self.lake.publish(
            RELEASES,
            str(release.number),
            fingerprint=release.bento,
            code_version="1",
            settings={},
            inputs={"ranker_bento": release.bento, "student_onnx_int8": release.model},
            run_id=run_id,
        ) as draft:
            for name, source in files.items():
                if source.is_dir():
                    shutil.copytree(source, draft.path / name, copy_function=link_or_copy)
                else:
                    link_or_copy(source, draft.path / name)
            (draft.path / RELEASE_FILE).write_text(json.dumps(asdict(release), indent=2), "utf-8")
            draft.figures = dict(release.figures)

    def _prune(self, history: History, keep: int) -> None:
        current = history.current
        wanted = set(sorted(history.releases)[-keep:])
        if current is not None:
            wanted |= {number for number in (current.number, current.replaced, current.compared_with) if number}
        for number in history.releases.keys() - wanted:
            if self.kept(number):
                self.lake.remove(RELEASES, str(number))


def person() -> str:
    """Who runs this process, as ``user@machine``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def reason_given(text: str) -> str:
    """A reason on one line; raises ``BadInput`` for an empty one."""
    line = " ".join(text.split())
    if not line:
        raise BadInput("a release past the gate needs a reason: say in a sentence why this model may be released")
    return line


def _event(kind: str, **values: Any) -> Event:
    if kind == "release" and values["override"] is not None:
        values["override"] = Override(**values["override"])
    if kind == "release":
        values["measured"] = tuple(values.get("measured", ()))
    return KINDS[kind](**values)
