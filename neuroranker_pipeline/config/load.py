"""From a profile's YAML to validated settings, with errors that name the file, the key and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pydantic
import yaml

from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.source import SOURCES
from neuroranker_pipeline.errors import BadInput

PROFILES = Path(__file__).with_name("profiles")
_ADAPTER = pydantic.TypeAdapter(Settings)


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_settings(profile: str, overrides: Sequence[str] = ()) -> Settings:
    """Settings of a profile: a name that comes with the package, or the path of a YAML file.

    A file may begin with ``extends: NAME|FILE`` and then gives only what differs. ``overrides`` are ``key.path=value``
    strings that win over the file; values are YAML. Raises ``BadInput``.
    """
    path = _profile_path(profile)
    values = _read(path, seen=())
    for override in overrides:
        _apply(values, override)
    if "profile" in values:
        raise BadInput(f"{path}: profile: not a setting; a profile is named by its file")
    _fill_members(values)
    source = f"{path}" + (f" with {', '.join(overrides)}" if overrides else "")
    try:
        return _ADAPTER.validate_python({**values, "profile": path.stem})
    except pydantic.ValidationError as error:
        problems = "; ".join(_describe(e) for e in error.errors())
        raise BadInput(f"{source}: {problems}") from None


def _profile_path(profile: str) -> Path:
    path = Path(profile)
    if path.suffix in (".yaml", ".yml"):
        return path
    packaged = PROFILES / f"{profile}.yaml"
    if not packaged.is_file():
        raise BadInput(
            f"profile {profile!r} is unknown: expected one of {', '.join(profile_names())}, or the path of a .yaml file"
        )
    return packaged


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise BadInput(f"{path}: extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such profile file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    base = _profile_path(str(parent))
    base = base if base.is_absolute() else path.parent / base
    return _merge(_read(base, (*seen, path.resolve())), values)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``, group by group; a data set of another kind takes nothing from the one it replaces."""
    if "source" in changes and changes["source"] != base.get("source", "pydocs"):
        return dict(changes)
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _fill_members(values: dict[str, Any]) -> None:
    """Give the members of an ensemble the values of the ``teacher`` group that they do not give themselves.

    One that is taken as it is keeps all of its layers, unless it says otherwise itself; ``null`` takes out one that an
    extended profile has.
    """
    teacher = values.get("teacher")
    if not isinstance(teacher, dict) or not isinstance(members := teacher.get("members"), dict):
        return
    shared = {key: value for key, value in teacher.items() if key not in ("members", "measure")}
    filled = {name: own for name, own in members.items() if own is not None}
    for name, own in filled.items():
        if isinstance(own, dict):
            ready = own.get("train") is False and "layers" not in own
            filled[name] = _merge({k: v for k, v in shared.items() if not (ready and k == "layers")}, own)
    values["teacher"] = {**teacher, "members": filled}


def _apply(values: dict[str, Any], override: str) -> None:
    key, found, text = override.partition("=")
    if not found or not key:
        raise BadInput(f"--set {override}: expected KEY=VALUE, for example student.training.learning_rate=2e-5")
    *parents, leaf = key.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise BadInput(f"--set {override}: {name} is a value, not a group of settings")
    try:
        values[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {override}: not valid YAML: {' '.join(str(error).split())}") from None


def _describe(error: Any) -> str:
    kind, loc = _place(error["loc"])
    key = ".".join(loc)
    if error["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key{_suggestion(kind, loc[-1])}"
    if error["type"] == "union_tag_invalid":
        return f"{key}.source: expected one of {', '.join(SOURCES)}, got {error['ctx']['tag']!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # from __post_init__, which names the field itself
        return f"{key}.{message}" if key else message
    if error["type"] == "missing":
        return f"{key}: must be given"
    return f"{key}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _place(loc: tuple[Any, ...]) -> tuple[Any, list[str]]:
    """The settings class that holds the last part of an error's place, and the place as a user wrote it: pydantic puts
    the kind of a data set between its key and what is in it."""
    kind: Any = Settings
    holder: Any = Settings
    parts: list[str] = []
    for part in map(str, loc):
        if kind is None and part in SOURCES:
            kind = SOURCES[part][0]
            continue
        if get_origin(kind) is Mapping:  # by name
            holder, kind = None, get_args(kind)[1]
        else:
            holder, kind = kind, get_type_hints(kind).get(part) if is_dataclass(kind) else None
        kind = kind if is_dataclass(kind) or get_origin(kind) is Mapping else None
        parts.append(part)
    return holder, parts


def _suggestion(kind: Any, key: str) -> str:
    """The nearest known key, or all known keys, of the settings class in which an unknown key stands."""
    known = sorted(field.name for field in fields(kind)) if is_dataclass(kind) else []
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known keys: {', '.join(known)}" if known else ""
