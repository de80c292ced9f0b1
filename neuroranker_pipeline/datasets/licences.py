"""On what terms a collection's texts may be used, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuroranker_pipeline.datasets.joined import JoinedSource

if TYPE_CHECKING:
    from neuroranker_pipeline.datasets.source import Source

NOT_STATED = "the terms are not stated"


@dataclass(frozen=True)
class DataTerms:
    """name: the collection's; licence: its terms in words; url: where they are published; hub: its id on the Hugging
    Face Hub. The last two are ``None`` where there is none."""

    name: str
    licence: str
    url: str | None = None
    hub: str | None = None


def terms_of(source: Source, settings: Any, others: Mapping[str, Any] | None = None) -> list[DataTerms]:
    """The terms of a source opened with ``settings``, and of the collections joined to it, in that order.

    ``others`` are the settings of the joined collections, by name.
    """
    if isinstance(source, JoinedSource):
        joined = [_terms(other, (others or {})[name]) for name, other in source.others.items()]
        return [_terms(source.main, settings), *joined]
    return [_terms(source, settings)]


def _terms(source: Source, settings: Any) -> DataTerms:
    licence = source.licence or NOT_STATED
    match settings.source:
        case "msmarco":
            return DataTerms("MS MARCO passage ranking", licence, "https://microsoft.github.io/msmarco/", "ms_marco")
        case "beir":
            name = source.name.partition("/")[2]
            return DataTerms(f"BEIR {name}", licence, "https://github.com/beir-cellar/beir", f"BeIR/{name}")
        case "ir_datasets":
            group = source.name.partition("/")[0]
            return DataTerms(source.name, licence, f"https://ir-datasets.com/{group}.html")
        case _:
            return DataTerms(source.name, licence)
