"""``beir``: a folder in the layout of the BEIR benchmark (https://github.com/beir-cellar/beir).

``corpus.jsonl`` (_id, title, text), ``queries.jsonl`` (_id, text) and ``qrels/<split>.tsv`` (query-id, corpus-id, score);
each may be ``.gz``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from neuroranker_pipeline.datasets.archives import open_bytes
from neuroranker_pipeline.datasets.rejects import Rejects
from neuroranker_pipeline.datasets.rows import Rows, headed_rows, json_rows
from neuroranker_pipeline.datasets.splits import CollectionSettings
from neuroranker_pipeline.errors import BadInput

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, kw_only=True)
class BeirSettings(CollectionSettings):
    """titles: put a passage's title before its text, as the benchmark's baselines do."""

    source: Literal["beir"] = "beir"
    titles: bool = True


class BeirSource:
    """The raw rows of a BEIR folder."""

    licence = "as published with the data set; see https://github.com/beir-cellar/beir"

    def __init__(self, settings: BeirSettings) -> None:
        self.settings = settings
        self._folder = Path(settings.folder)
        self.name = f"beir/{self._folder.name}"

    def files(self, table: str) -> Sequence[Path]:
        if table == "passages":
            return [self._find("corpus.jsonl")]
        if table == "candidates":
            return []
        judgments = [path for path, _ in self._judgment_files()]
        return [self._find("queries.jsonl"), *judgments] if table == "queries" else judgments

    def passage_rows(self, rejects: Rejects) -> Iterator[Rows]:
        path = self._find("corpus.jsonl")
        with open_bytes(path) as stream:
            for rows in json_rows(stream, str(path), ("_id", "title", "text"), rejects):
                text = pc.fill_null(rows.columns["text"], "")
                if self.settings.titles:
                    title = pc.fill_null(rows.columns["title"], "")
                    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(title, text, " "))
                yield rows.having(pid=rows.columns["_id"], text=text)

    def title_rows(self, rejects: Rejects) -> Iterator[Rows]:
        path = self._find("corpus.jsonl")
        with open_bytes(path) as stream:
            for rows in json_rows(stream, str(path), ("_id", "title"), rejects):
                yield rows.having(pid=rows.columns["_id"], text=rows.columns["title"])

    def query_rows(self, rejects: Rejects) -> Iterator[Rows]:
        path = self._find("queries.jsonl")
        with open_bytes(path) as stream:
            for rows in json_rows(stream, str(path), ("_id", "text"), rejects):
                yield rows.having(qid=rows.columns["_id"])

    def judgment_rows(self, rejects: Rejects) -> Iterator[Rows]:
        for path, split in self._judgment_files():
            with open_bytes(path) as stream:
                for rows in headed_rows(stream, str(path), ("query-id", "corpus-id", "score"), rejects):
                    columns = rows.columns
                    yield rows.having(
                        qid=columns["query-id"],
                        pid=columns["corpus-id"],
                        grade=columns["score"],
                        split=pa.array([split] * len(rows), pa.string()),
                    )

    def run_rows(self, rejects: Rejects) -> Iterator[Rows]:
        return iter(())

    def _judgment_files(self) -> list[tuple[Path, str]]:
        found = [(path, split) for split in SPLITS if (path := self._there(f"qrels/{split}.tsv"))]
        if not found:
            raise BadInput(f"{self._folder / 'qrels'}: no train.tsv, dev.tsv or test.tsv there; is this a BEIR folder?")
        return found

    def _find(self, name: str) -> Path:
        path = self._there(name)
        if path is None:
            raise BadInput(f"{self._folder}: no {name} (or {name}.gz) there; is this a BEIR folder?")
        return path

    def _there(self, name: str) -> Path | None:
        return next((p for p in (self._folder / name, self._folder / f"{name}.gz") if p.is_file()), None)
