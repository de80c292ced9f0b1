"""Settings of a model from a JSON or YAML file, for machines without the pipeline's configuration loader."""

from __future__ import annotations

import difflib
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from neuroranker_pipeline.errors import BadInput

Settings = TypeVar("Settings")


def read_settings(file: Path | None, kind: type[Settings]) -> Settings:
    """The settings class ``kind`` with what ``file`` (YAML, of which JSON is a part) gives; all defaults without one.

    Raises ``BadInput`` that names the file and the key: an unknown one, or a value of another type or out of range.
    """
    if file is None:
        return kind()
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: neither valid JSON nor YAML: {' '.join(str(error).split())}") from None
    try:
        return _build({} if values is None else values, kind, "")
    except ValueError as error:
        raise BadInput(f"{file}: {error}") from None


def _build(values: Any, kind: Any, key: str) -> Any:
    """An instance of the dataclass ``kind``; raises ``ValueError`` that begins with the place of what is wrong."""
    if not isinstance(values, dict):
        raise ValueError(f"{key or 'settings'}: expected a mapping of settings, got {values!r}")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    given = {}
    for name, value in values.items():
        place = f"{key}.{name}" if key else str(name)
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"{place}: unknown key; {hint}")
        given[name] = _value(value, hints[name], place)
    try:
        return kind(**given)
    except ValueError as error:  # from __post_init__, which names the field itself
        raise ValueError(f"{key}.{error}" if key else str(error)) from None


def _value(value: Any, kind: Any, key: str) -> Any:
    """``value`` as ``kind``: a dataclass, a literal, an optional, a tuple of one type, or a plain type."""
    options = get_args(kind)
    if is_dataclass(kind):
        return _build(value, kind, key)
    if get_origin(kind) in (types.UnionType, Union):
        rest = [option for option in options if option is not type(None)]
        return None if value is None and type(None) in options else _value(value, rest[0], key)
    if get_origin(kind) is Literal:
        if value in options:
            return value
        raise ValueError(f"{key}: expected one of {', '.join(map(str, options))}, got {value!r}")
    if get_origin(kind) is tuple:
        if isinstance(value, list):
            return tuple(_value(item, options[0], key) for item in value)
        raise ValueError(f"{key}: expected a list, got {value!r}")
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # a string too: YAML reads 2e-5 as one
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{key}: expected {kind.__name__}, got {value!r}")
