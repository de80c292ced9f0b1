"""What the command line shows of releases, and what it does to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from neuroranker_pipeline.console import console, run_with_progress
from neuroranker_pipeline.errors import BadInput, NotReady

if TYPE_CHECKING:
    from neuroranker_pipeline.resources.releases import History, Registry, Release
    from neuroranker_pipeline.resources.workspace import Workspace


def release_model(workspace: Workspace, override: str | None) -> None:
    """Bring the graph up to date as far as the release; with a reason, let a model through that the gate has blocked."""
    from neuroranker_pipeline.assets.release import OVERRIDE_TAG
    from neuroranker_pipeline.resources.releases import Registry, reason_given

    registry = Registry(workspace.lake)
    before = registry.history().current
    tags = None
    if override is not None:
        tags = {OVERRIDE_TAG: reason_given(override)}
        _demand_blocked(workspace)
    run_with_progress(workspace, ["ranker_release"], tags)
    current = registry.history().current
    assert current is not None
    same = before is not None and before.number == current.number
    _say(
        workspace,
        f"Release {current.number} ({current.tag}) {'is current already' if same else 'is current'}.",
    )


def roll_back(workspace: Workspace, number: int | None, reason: str) -> None:
    """Make an earlier release, by default the one before, current and the latest in the BentoML store."""
    from neuroranker_pipeline.resources.releases import Registry, person

    registry = Registry(workspace.lake)
    current = registry.history().current
    if current is not None and current.number == number:  # perhaps not yet in the store, if the command was killed
        registry.serve(number)
        _say(workspace, f"Release {number} ({current.tag}) is current already.")
        return
    event = registry.roll_back(number, " ".join(reason.split()), person())
    registry.serve(event.number)
    tag = registry.find(event.number).tag
    _say(workspace, f"Release {event.number} ({tag}) is current, in place of {event.replaced}.")


def show_what_serves(workspace: Workspace) -> None:
    """After a run: put a lost release back into the BentoML store, and say so where the graph's model is not what serves."""
    from neuroranker_pipeline.resources.releases import Registry

    registry = Registry(workspace.lake)
    if tag := registry.repair_store():
        console.print(f"    {tag} was not the latest in the BentoML store: put back", markup=False)
    history = registry.history()
    back = history.withdrawal(workspace.lake.usable("student_onnx_int8").data_version)
    if back is not None and history.current is not None:
        line = f"    release {history.current.number} serves: the model of this run was rolled back, {back.at[:10]}"
        console.print(f"{line} by {back.who}", markup=False)


def show_releases(workspace: Workspace) -> None:
    """Every release, the newest first."""
    from neuroranker_pipeline.evaluation.rankers import FIRST_STAGE, INT8, SEARCH
    from neuroranker_pipeline.evaluation.tables import number
    from neuroranker_pipeline.resources.releases import Registry

    registry = Registry(workspace.lake)
    history = registry.history()
    if not history.releases:
        raise NotReady(f"profile {workspace.settings.profile}: nothing has been released yet: run `neuroranker run`")
    measure = workspace.settings.release.measure
    table = Table("", "date", box=None, pad_edge=False)
    table.add_column("tag", no_wrap=True)  # to copy
    for title in (f"gate {measure}", "BM25", "released", "state"):
        table.add_column(title)
    for release in reversed(history.releases.values()):
        gate = {ranker: release.figures.get(f"gate/{ranker}/{measure}") for ranker in (SEARCH, INT8, FIRST_STAGE)}
        # Releases of before the gate judged search were judged by the int8 student alone.
        shown = [number(gate[INT8] if gate[SEARCH] is None else gate[SEARCH]), number(gate[FIRST_STAGE])]
        word = release.override
        released = escape(f"over the gate: {word.reason} ({word.who})") if word else "by the gate"
        released += ", weak evidence" if release.evidence == "weak" else ""
        state = _state(release, registry, history)
        style = "bold" if history.current == release else ""
        table.add_row(str(release.number), release.at[:10], escape(release.tag), *shown, released, state, style=style)
    console.print(table)


def _state(release: Release, registry: Registry, history: History) -> str:
    if history.current == release:
        return "current"
    rolled_back = history.withdrawal(release.model)
    if rolled_back is not None and rolled_back.number < release.number:
        why = f": {rolled_back.reason}" if rolled_back.reason else ""
        return escape(f"rolled back {rolled_back.at[:10]}{why} ({rolled_back.who})")
    return "kept" if registry.kept(release.number) else "no longer kept"


def _demand_blocked(workspace: Workspace) -> None:
    """Refuse an override of anything but what the gate has seen and blocked: a model that nobody has looked at, say."""
    from neuroranker_pipeline.assets.release import DECISION, release_decision
    from neuroranker_pipeline.orchestration.planner import is_fresh, selected

    decided = workspace.lake.manifest(release_decision.name)
    upstream = [asset for asset in selected([release_decision.name]) if asset is not release_decision]
    stale = [
        asset.name
        for asset in upstream
        for partition in asset.partitions(workspace.settings)
        if not is_fresh(asset, workspace, partition)
    ]
    if decided is None or stale or release_decision.fingerprint(workspace, None)[0] != decided.fingerprint:
        raise NotReady(
            f"the gate has not judged the model that {'would now be made' if stale else 'is there now'}"
            f"{f' ({stale[0]} is not up to date)' if stale else ''}: run `neuroranker run` first, and read its decision"
        )
    if not decided.failed_checks:
        outcome = json.loads((workspace.lake.open(decided) / DECISION).read_text("utf-8"))["outcome"]
        raise BadInput(f"--override: the gate's decision on this model is: {outcome}; there is nothing to override")


def _say(workspace: Workspace, line: str) -> None:
    name = workspace.settings.bento.name
    console.print(f"{line} Restart what serves it: bentoml serve {name}:latest", markup=False, soft_wrap=True)
