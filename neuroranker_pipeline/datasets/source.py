"""What every data set offers the pipeline, and which one the settings name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pyarrow as pa
from pydantic import Discriminator, Tag

from neuroranker_pipeline.datasets.beir import BeirSettings, BeirSource
from neuroranker_pipeline.datasets.files import FilesSettings, FilesSource
from neuroranker_pipeline.datasets.held_out import Carving
from neuroranker_pipeline.datasets.irds import IrDatasetsSettings, IrDatasetsSource
from neuroranker_pipeline.datasets.joined import JoinedSource
from neuroranker_pipeline.datasets.msmarco import MsMarcoSettings, MsMarcoSource
from neuroranker_pipeline.datasets.prepare import PreparedSource
from neuroranker_pipeline.datasets.pydocs import PydocsSettings, PydocsSource
from neuroranker_pipeline.datasets.rejects import Rejects

RawTable = Literal["passages", "queries", "qrels", "candidates"]


class Source(Protocol):
    """Passages, queries and judgments from outside, streamed as record batches of the schemas in ``tables``.

    Rows that cannot be used go to the ``rejects`` they are handed, which also count those that can.
    """

    name: str

    @property
    def licence(self) -> str:
        """Whose text it is and on what terms."""
        ...

    def digest(self, table: RawTable) -> str:
        """A cheap fingerprint of the data behind one table: equal digests promise equal tables."""
        ...

    def passages(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        """``PASSAGES`` rows, each pid once."""
        ...

    def titles(self) -> Iterator[pa.RecordBatch]:
        """``PASSAGES`` rows whose text is the passage's title, of the passages that have one.

        Raises ``BadInput`` when passages of this source have none.
        """
        ...

    def queries(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        """``QUERIES`` rows, each qid once, of the queries that are judged."""
        ...

    def qrels(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        """``JUDGMENTS`` rows: ``QRELS``, and where each stands."""
        ...

    @property
    def carving(self) -> Carving:
        """Which splits were carved out of training, and how near to them a training question may not be."""
        ...

    def candidates(self, rejects: Rejects) -> Iterator[pa.RecordBatch]:
        """``GIVEN`` rows: runs that came with the data, and where each row stands; often none."""
        ...


SOURCES: dict[str, tuple[type[Any], type[Any]]] = {
    "pydocs": (PydocsSettings, PydocsSource),
    "msmarco": (MsMarcoSettings, MsMarcoSource),
    "beir": (BeirSettings, BeirSource),
    "files": (FilesSettings, FilesSource),
    "ir_datasets": (IrDatasetsSettings, IrDatasetsSource),
}


def _named(value: Any) -> str:
    return str(value.get("source", "pydocs") if isinstance(value, dict) else getattr(value, "source", "pydocs"))


DataSettings = Annotated[
    Annotated[PydocsSettings, Tag("pydocs")]
    | Annotated[MsMarcoSettings, Tag("msmarco")]
    | Annotated[BeirSettings, Tag("beir")]
    | Annotated[FilesSettings, Tag("files")]
    | Annotated[IrDatasetsSettings, Tag("ir_datasets")],
    Discriminator(_named),
]
"""The settings of one data set; ``source`` says of which kind, ``pydocs`` where it is left out."""


def open_source(settings: Any, root: Path, joined: dict[str, Any] | None = None) -> Source:
    """The source that data settings name; relative folders in them are below ``root``.

    ``joined`` are further collections whose training queries are learned from, by name.
    """
    main = _open(settings, root)
    others = {name: _open(other, root) for name, other in (joined or {}).items()}
    return JoinedSource(main, others) if others else main


def data_folder(settings: Any, root: Path) -> Path:
    """Where the files of a data set are: its folder, below the data root unless it is absolute."""
    return root.expanduser() / Path(settings.folder).expanduser()


def _open(settings: Any, root: Path) -> Source:
    source = SOURCES[settings.source][1]
    if not hasattr(settings, "folder"):
        return source(settings)
    return PreparedSource(source(replace(settings, folder=str(data_folder(settings, root)))))
