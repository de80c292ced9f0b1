"""A collection of a few passages in a folder of files, the real corpus assets over it, and two small assets that follow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from neuroranker_pipeline.assets import given_candidates, passages, qrels, queries
from neuroranker_pipeline.assets.corpus import raw_dataset
from neuroranker_pipeline.assets.lake_asset import LakeAsset, Needs, lake_asset
from neuroranker_pipeline.assets.policies import NIGHTLY
from neuroranker_pipeline.assets.step import Step
from neuroranker_pipeline.datasets.shards import queries_of_shard
from neuroranker_pipeline.datasets.tables import read_table
from neuroranker_pipeline.orchestration.jobs import graph_jobs
from neuroranker_pipeline.resources.workspace import Workspace

THINGS = ("cat", "dog", "owl", "fox")
SPLITS = ("train", "train", "train", "train", "dev", "gate", "test", "test")
PROFILE = """
extends: smoke
retries: {limit: 0}
shards: {train_queries: 1}
unjudged: {source: none}
data:
  source: files
  folder: animals
  queries: {split: split}
"""


@lake_asset(group="retrieval", kinds={"text"}, needs=[queries], shards="queries")
def shard_text(step: Step) -> None:
    """The texts of the shard's queries. A shard named in the file ``faults`` beside the collection cannot be made; if it is
    named with ``stop:``, someone interrupts it."""
    assert step.partition is not None
    faults = Path(os.environ["FAULTS"])
    if f"stop:{step.partition}" in faults.read_text().split():
        raise KeyboardInterrupt
    if step.partition in faults.read_text().split():
        raise OSError(f"{faults}: a disk that fails for {step.partition}")
    shard = queries_of_shard(read_table(step.read("queries")), step.partition, step.settings.shards.train_queries)
    step.record(shard.num_rows)
    (step.out / "text").write_text("\n".join(shard["text"].to_pylist()))


@lake_asset(group="evaluation", kinds={"text"}, needs=[Needs(shard_text, "all")], freshness=NIGHTLY)
def summary(step: Step) -> None:
    """The length of each shard's text."""
    lengths = [len((folder / "text").read_text()) for folder in step.read_all("shard_text")]
    (step.out / "text").write_text(" ".join(map(str, lengths)))


GRAPH: tuple[LakeAsset, ...] = (passages, queries, qrels, given_candidates, shard_text, summary)
SHARDS = ("train-00", "dev", "gate", "test")
PAIRS = [
    "passages",
    "queries",
    "qrels",
    "given_candidates",
    *(f"shard_text[{shard}]" for shard in SHARDS),
    "summary",
]


class Collection:
    """The files, and the graph over them in a lake of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.folder = root / "animals"
        self.folder.mkdir()
        self.write()
        self.fail()
        os.environ["FAULTS"] = str(root / "faults")
        (root / "animals.yaml").write_text(PROFILE)
        self.jobs = graph_jobs(GRAPH)

    @property
    def workspace(self) -> Workspace:
        """A new one each time, as each run has."""
        return Workspace(
            profile=str(self.root / "animals.yaml"), lake_root=str(self.root / "lake"), data_root=str(self.root)
        )

    def write(self, asked: str = "where is the") -> None:
        """Write the collection; ``asked`` begins every query."""
        rows = {
            "passages.tsv": ["pid\ttext", *(f"p{i}\tthe {thing} and more" for i, thing in enumerate(THINGS))],
            "queries.tsv": [
                "qid\ttext\tsplit",
                *(f"q{i}\t{asked} {THINGS[i % 4]} {i}\t{split}" for i, split in enumerate(SPLITS)),
            ],
            "qrels.tsv": ["qid\tpid", *(f"q{i}\tp{i % 4}" for i in range(len(SPLITS)))],
        }
        for name, lines in rows.items():
            (self.folder / name).write_text("\n".join(lines) + "\n")

    def fail(self, *shards: str) -> None:
        """From now on, these shards of ``shard_text`` fail."""
        (self.root / "faults").write_text(" ".join(shards))

    def run(
        self, job: str, instance: dg.DagsterInstance, config: dg.RunConfig | Mapping | None = None, **tags: str
    ) -> dg.ExecuteInProcessResult:
        return self.jobs[job].execute_in_process(
            run_config=config,
            instance=instance,
            resources={"workspace": self.workspace},
            tags=tags,
            raise_on_error=False,
        )

    def versions(self) -> dict[str, str]:
        """The current version of every pair that there is, by label."""
        lake = self.workspace.lake
        manifests = {}
        for pair in PAIRS:
            asset, _, partition = pair.removesuffix("]").partition("[")
            if (manifest := lake.manifest(asset, partition or None)) is not None:
                manifests[pair] = manifest.version
        return manifests

    def definitions(self) -> dg.Definitions:
        workspace = self.workspace
        return dg.Definitions(
            assets=[raw_dataset, *(asset.to_dagster(workspace.settings) for asset in GRAPH)],
            resources={"workspace": workspace},
            jobs=list(self.jobs.values()),
            executor=dg.in_process_executor,
        )
