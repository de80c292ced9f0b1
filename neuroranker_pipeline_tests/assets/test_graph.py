"""The declared graph as Dagster sees it: keys, dependencies, partitions, pools, tags and checks."""

from __future__ import annotations

from dataclasses import replace

import dagster as dg
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.assets.lake_asset import LakeAsset
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.definitions import defs as definitions
from neuroranker_pipeline.orchestration.planner import with_needs

GROUPS = {
    "corpus": {"raw_dataset", "passages", "queries", "qrels", "given_candidates", "unjudged_queries"},
    "retrieval": {"lucene_index", "bm25_parameters", "bm25_candidates"},
    "teacher": {"base_embeddings", "base_scores", "teacher_checkpoint", "teacher_scores"},
    "student": {"student_checkpoint", "student_control", "passage_embeddings"},
    "export": {"student_onnx", "student_onnx_int8"},
    "evaluation": {"eval_report", "gate_evaluation"},
    "serving": {"release_decision", "ranker_bento", "ranker_release"},
}
QUERY_SHARDS = ["train-00", "train-01", "unjudged-00", "dev", "gate", "test"]
PASSAGE_SHARDS = ["shard-00", "shard-01"]
GPU = {
    "base_embeddings",
    "base_scores",
    "teacher_checkpoint",
    "teacher_scores",
    "student_checkpoint",
    "student_control",
    "passage_embeddings",
    "eval_report",
}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings("smoke")


@pytest.fixture(scope="module")
def graph() -> dg.AssetsDefinition:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURORANKER_PROFILE", "smoke")
        return definitions().resolve_asset_graph()


def test_assets_and_their_groups(graph) -> None:
    groups: dict[str, set[str]] = {}
    for key in graph.get_all_asset_keys():
        groups.setdefault(graph.get(key).group_name, set()).add(key.to_user_string())
    assert groups == GROUPS


def test_every_asset_follows_what_it_needs() -> None:
    seen: set[str] = set()
    for asset in ASSETS:
        assert {need.asset.name for need in asset.needs} <= seen, asset.name
        seen.add(asset.name)


def test_partitions(graph) -> None:
    partitions = {
        key.to_user_string(): graph.get(key).partitions_def.get_partition_keys()
        for key in graph.get_all_asset_keys()
        if graph.get(key).partitions_def is not None
    }
    assert partitions == {
        "bm25_candidates": QUERY_SHARDS,
        "base_scores": QUERY_SHARDS,
        "teacher_scores": QUERY_SHARDS,
        "base_embeddings": PASSAGE_SHARDS,
        "passage_embeddings": PASSAGE_SHARDS,
        "eval_report": ["test"],
    }


def test_training_never_reads_the_gate_or_the_test_split(settings: Settings) -> None:
    for asset in ASSETS:
        if asset.name in ("teacher_checkpoint", "student_checkpoint", "student_control", "student_onnx_int8"):
            read = {partition for _, partition in asset.inputs(settings, None)}
            assert read.isdisjoint({"gate", *settings.data.test_splits}), asset.name


def test_gpu_work_is_pooled_and_tagged(settings: Settings) -> None:
    assert {asset.name for asset in ASSETS if asset.pool == "gpu"} == GPU
    assert {asset.name for asset in ASSETS if asset.pool == "jvm"} == {
        "lucene_index",
        "bm25_parameters",
        "bm25_candidates",
    }
    for asset in ASSETS:
        tags = asset.to_dagster(settings).op.tags
        assert (tags.get("neuroranker/device") == "gpu") == (asset.name in GPU)
        if asset.name in GPU:
            assert int(tags["dagster/max_runtime"]) > 0
            assert int(tags["dagster/priority"]) > 0


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_every_asset_is_described_and_checked(asset: LakeAsset, settings: Settings) -> None:
    definition = asset.to_dagster(settings)
    spec = definition.get_asset_spec()
    assert spec.description
    assert spec.code_version
    assert spec.kinds
    assert spec.owners
    assert asset.checks
    for check in definition.check_specs:
        assert check.blocking
        assert check.description


def test_everything_in_the_graph_says_whose_it_is_and_what(graph) -> None:
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.owners == ["team:neuroranker"], key
        assert node.kinds, key
        assert node.description, key
        assert node.code_version or key.to_user_string() == "raw_dataset"
        assert node.group_name in GROUPS


def test_every_table_has_its_columns_and_where_they_come_from(settings: Settings) -> None:
    columns = {asset.name: set(asset.columns.schema.names) for asset in ASSETS if asset.columns}
    assert columns.keys() == {asset.name for asset in ASSETS if "parquet" in asset.kinds}
    for asset in ASSETS:
        if asset.columns is None:
            continue
        metadata = asset.to_dagster(settings).get_asset_spec().metadata
        shown = metadata["dagster/column_schema"].columns
        assert [(column.name, column.type) for column in shown] == [
            (field.name, str(field.type)) for field in asset.columns.schema
        ]
        assert all(column.description for column in shown), asset.name
        above = {needed.name for needed in with_needs([asset], ASSETS)} - {asset.name}
        lineage = metadata.get("dagster/column_lineage")
        for column, sources in (lineage.deps_by_column if lineage else {}).items():
            assert column in columns[asset.name], asset.name
            for source in sources:
                name = source.asset_key.to_user_string()
                assert name in above, f"{asset.name}.{column}"
                assert source.column_name in columns[name], f"{asset.name}.{column}"


def test_a_backfill_is_a_run_a_shard(settings: Settings) -> None:
    for asset in ASSETS:
        policy = asset.to_dagster(settings).backfill_policy
        assert (policy is not None) == (asset.shards is not None), asset.name
        if policy is not None:
            assert policy.max_partitions_per_run == 1


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.name)
def test_every_named_setting_exists(asset: LakeAsset, settings: Settings) -> None:
    assert list(asset.used_settings(settings)) == list(asset.settings)


def test_every_setting_belongs_to_an_asset(settings: Settings) -> None:
    """A setting that no fingerprint sees would change nothing when it is changed."""
    used = {name.partition(".")[0] for asset in ASSETS for name in asset.settings}
    # The raw data's digest covers the settings of its source; how often to try makes no difference to what is made.
    others = {"profile", "data", "training_collections", "retries"}
    assert {field for field in vars(settings) if field not in used} == others


def test_the_control_waits_for_the_teacher_only_when_the_lists_depend_on_it(settings) -> None:
    control = next(asset for asset in ASSETS if asset.name == "student_control")
    lists = replace(settings.student.lists, teacher_margin=0.0)
    dependent = replace(settings, student=replace(settings.student, lists=lists))
    for given, waits in ((settings, False), (dependent, True)):
        assert ("teacher_scores" in {asset for asset, _ in control.inputs(given, None)}) is waits
        keys = control.to_dagster(given).asset_deps[dg.AssetKey("student_control")]
        assert (dg.AssetKey("teacher_scores") in keys) is waits
