"""How a folder of the lake becomes a Dagster asset.

An asset body is a function of a :class:`Step`: it reads its inputs, calls domain code and records figures and checks. What
it is made from is declared once, on the decorator, and serves Dagster (dependencies, partitions, checks, pools) and the
planner (fingerprints) alike.
"""

# No postponed annotations here: Dagster reads those of the functions it is given, which are defined in a method.

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import dagster as dg

from neuroranker_pipeline.assets.columns import Columns
from neuroranker_pipeline.assets.step import Step, note_outcome
from neuroranker_pipeline.checks.rule import Rule
from neuroranker_pipeline.config.settings import Settings
from neuroranker_pipeline.datasets.source import RawTable
from neuroranker_pipeline.errors import BadInput, NeuroRankerError, NotReady
from neuroranker_pipeline.orchestration.partitions import (
    Shards,
    learned_shards,
    reported_parts,
    reports_of_shards,
    shard_keys,
    train_shards,
)
from neuroranker_pipeline.resources import software
from neuroranker_pipeline.resources.lake import Draft, label
from neuroranker_pipeline.resources.manifest import Manifest, fingerprint
from neuroranker_pipeline.resources.metrics import Figure, RunRecord
from neuroranker_pipeline.resources.processes import PROCESS_TAG, process_tag
from neuroranker_pipeline.resources.workspace import Workspace

RAW_DATASET = "raw_dataset"
OWNERS = ["team:neuroranker"]

# What a run queue can match, and how urgent and how long GPU work may be. Dagster reads them from the run: the planner
# tags its runs with them, the run queue (orchestration/run_queue.py) all others.
GPU_TAGS = {"neuroranker/device": "gpu", "dagster/priority": "1", "dagster/max_runtime": str(12 * 3600)}

FORCE_TAG = "neuroranker/force"  # on a run: make the artifact again, though the lake holds what it would make


@dataclass(frozen=True)
class Needs:
    """An input, and which of its shards: the step's own, the parts of the split that it reports on, all, those that
    training reads, those that training and choosing read, those that the student learns from (with dev), dev or gate
    alone, or None for an input without partitions; ``when``: the settings that need it, all by default; ``only``: how the
    keys of the step's own shards begin that need it."""

    asset: "LakeAsset"
    shards: Literal["own", "parts", "all", "train", "train+dev", "learned", "learned+dev", "dev", "gate"] | None = None
    when: Callable[[Settings], bool] = lambda _: True
    only: str = ""

    def keys(self, settings: Settings, own: str | None) -> list[str | None]:
        if not self.when(settings) or not (own or "").startswith(self.only):
            return []
        match self.shards:
            case None:
                return [None]
            case "own":
                return [own]
            case "parts":
                return [*reported_parts(own or "", settings)]
            case "all":
                return self.asset.partitions(settings)
            case "train":
                return list(train_shards(settings))
            case "train+dev":
                return [*train_shards(settings), "dev"]
            case "learned":
                return list(learned_shards(settings))
            case "learned+dev":
                return [*learned_shards(settings), "dev"]
            case split:
                return [split]

    def to_dagster(self, settings: Settings) -> dg.AssetDep:
        match self.shards:
            case None:
                return dg.AssetDep(self.asset.name)
            case "own":
                return dg.AssetDep(self.asset.name, partition_mapping=dg.IdentityPartitionMapping())
            case "parts":
                return dg.AssetDep(
                    self.asset.name, partition_mapping=dg.StaticPartitionMapping(reports_of_shards(settings))
                )
            case "all":
                return dg.AssetDep(self.asset.name, partition_mapping=dg.AllPartitionMapping())
        keys = [key for key in self.keys(settings, None) if key is not None]
        return dg.AssetDep(self.asset.name, partition_mapping=dg.SpecificPartitionsPartitionMapping(keys))


@dataclass(frozen=True)
class LakeAsset:
    """A declared asset; :meth:`to_dagster` makes Dagster's definition for one profile."""

    name: str
    body: Callable[[Step], None]
    group: str
    kinds: frozenset[str]
    needs: tuple[Needs, ...]
    from_source: RawTable | None
    settings: tuple[str, ...]
    shards: Shards | None
    checks: tuple[Rule[...], ...]
    pool: str | None
    code_version: str
    by_content: bool
    columns: Columns | None = None
    automation: dg.AutomationCondition | None = None
    freshness: dg.FreshnessPolicy | None = None
    also_from: Callable[[Workspace], Mapping[str, str]] | None = None

    def partitions(self, settings: Settings) -> list[str | None]:
        return [None] if self.shards is None else list(shard_keys(self.shards, settings))

    def inputs(self, settings: Settings, partition: str | None) -> list[tuple[str, str | None]]:
        """The (asset, partition) pairs of the lake that one run reads, in declared order."""
        return [(need.asset.name, key) for need in self.needs for key in need.keys(settings, partition)]

    def used_settings(self, settings: Settings) -> dict[str, Any]:
        """The settings that this asset depends on, by dotted name."""
        return {name: _plain(_lookup(settings, name)) for name in self.settings}

    def outside(self, workspace: Workspace) -> dict[str, str]:
        """The versions, by name, of what it is made from beside other assets."""
        versions = dict(self.also_from(workspace)) if self.also_from else {}
        if self.from_source:
            versions[f"{RAW_DATASET}:{self.from_source}"] = workspace.source.digest(self.from_source)
        return versions

    def fingerprint(
        self, workspace: Workspace, partition: str | None
    ) -> tuple[str, dict[str, Manifest], dict[str, str]]:
        """What a run now would be made from: the fingerprint, the inputs' manifests and data versions, by label.

        Raises ``NotReady`` when an input is missing or failed a blocking check.
        """
        manifests: dict[str, Manifest] = {}
        versions = self.outside(workspace)
        for asset, key in self.inputs(workspace.settings, partition):
            manifests[label(asset, key)] = manifest = workspace.lake.usable(asset, key)
            versions[label(asset, key)] = manifest.data_version
        _demand_one_lineage(manifests.values(), versions)
        return (
            fingerprint(self.code_version, self.used_settings(workspace.settings), versions),
            manifests,
            versions,
        )

    def to_dagster(self, settings: Settings) -> dg.AssetsDefinition:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)  # that backfill policies are in beta, once for each asset
            return self._to_dagster(settings)

    def _to_dagster(self, settings: Settings) -> dg.AssetsDefinition:
        @dg.asset(
            name=self.name,
            group_name=self.group,
            kinds=set(self.kinds),
            description=inspect.getdoc(self.body),  # not indented, which Markdown takes for code
            deps=[
                *([RAW_DATASET] if self.from_source else []),
                *(need.to_dagster(settings) for need in self.needs if need.when(settings)),
            ],
            partitions_def=dg.StaticPartitionsDefinition(shard_keys(self.shards, settings)) if self.shards else None,
            # A run a shard, so that one that fails is retried alone.
            backfill_policy=dg.BackfillPolicy.multi_run(1) if self.shards else None,
            automation_condition=self.automation,
            freshness_policy=self.freshness,
            check_specs=[
                dg.AssetCheckSpec(rule.name, asset=self.name, description=rule.description, blocking=True)
                for rule in self.checks
            ],
            pool=self.pool,
            op_tags=GPU_TAGS if self.pool == "gpu" else None,
            code_version=self.code_version,
            metadata={
                "settings": dg.MetadataValue.json(self.used_settings(settings)),
                **(self.columns.metadata if self.columns else {}),
            },
            owners=OWNERS,
        )
        def definition(context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
            return self.run(context, workspace)

        return definition

    def fresh(self, workspace: Workspace, partition: str | None) -> Manifest | None:
        """The current version, when a run now would make the same again and its blocking checks passed."""
        try:
            manifest = workspace.lake.manifest(self.name, partition)
            if manifest is None or manifest.failed_checks:
                return None
            return manifest if self.fingerprint(workspace, partition)[0] == manifest.fingerprint else None
        except NotReady:
            return None

    def run(self, context: dg.AssetExecutionContext, workspace: Workspace) -> dg.MaterializeResult:
        """One materialization; what the lake holds already is not made again, unless the run is tagged with ``FORCE_TAG``.

        What fails without a fault of its input is tried again in the same run, as the settings' ``retries`` say.
        """
        # A backfill asks for a range, of one.
        keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else []
        if len(keys) != (self.shards is not None):
            raise BadInput(f"{self.name} is made one partition at a time: choose a partition key")
        partition = keys[0] if keys else None
        if context.run.tags.get(PROCESS_TAG) != process_tag():  # launched by Dagster, not by the planner
            context.instance.add_run_tags(context.run.run_id, {PROCESS_TAG: process_tag()})
        if FORCE_TAG not in context.run.tags and (kept := self.fresh(workspace, partition)):
            note_outcome(context, workspace, self.name, partition, datetime.now(UTC))
            return self._answer(kept, workspace, {"reused": True})
        started = datetime.now(UTC)
        try:
            return self._make(context, workspace, partition)
        except NeuroRankerError as error:
            note_outcome(context, workspace, self.name, partition, started, error)
            raise
        except Exception as error:
            note_outcome(context, workspace, self.name, partition, started, error)
            # Not a RetryPolicy: that would also try again what someone interrupted, or what took too long.
            retries = workspace.settings.retries
            if context.retry_number >= retries.limit:
                raise
            raise dg.RetryRequested(retries.limit, retries.delay_seconds * 2**context.retry_number) from error

    def _make(
        self, context: dg.AssetExecutionContext, workspace: Workspace, partition: str | None
    ) -> dg.MaterializeResult:
        """Publish what the body writes, append the run's metrics, answer Dagster."""
        started, clock = datetime.now(UTC), time.perf_counter()
        digest, manifests, versions = self.fingerprint(workspace, partition)
        with workspace.lake.publish(
            self.name,
            partition,
            fingerprint=digest,
            code_version=self.code_version,
            settings=self.used_settings(workspace.settings),
            inputs=versions,
            run_id=context.run.run_id,
            by_content=self.by_content,
        ) as draft:
            step = Step(workspace, partition, manifests, draft, context.log, context.run)
            self.body(step)
            self._demand_checks(draft)
        manifest = draft.manifest
        assert manifest is not None
        seconds = time.perf_counter() - clock
        workspace.metrics.append(
            RunRecord(
                run_id=context.run.run_id,
                profile=workspace.settings.profile,
                asset=self.name,
                partition=partition,
                code_version=self.code_version,
                data_version=manifest.data_version,
                fingerprint=digest,
                started_at=started,
                wall_seconds=seconds,
                rows=draft.rows,
                device=step.device,
                checks_passed=not manifest.failed_checks,
                figures=(
                    *(Figure(name, value) for name, value in draft.figures.items()),
                    *([Figure("attempt", context.retry_number + 1)] if context.retry_number else []),
                    *step.curves,
                ),
                version=manifest.version,
                bytes=sum(int(entry["bytes"]) for entry in manifest.files.values()),
                settings=_plain(workspace.settings),
                versions=software.versions(),
                per_query=step.per_query,
            )
        )
        made = {"seconds": round(seconds, 1), "attempt": context.retry_number + 1, **step.metadata}
        return self._answer(manifest, workspace, made)

    def _demand_checks(self, draft: Draft) -> None:
        missing = {rule.name for rule in self.checks} - {check.name for check in draft.checks}
        if missing:
            raise RuntimeError(f"{self.name} declares checks that its body did not run: {', '.join(sorted(missing))}")

    def _answer(self, manifest: Manifest, workspace: Workspace, more: Mapping[str, Any]) -> dg.MaterializeResult:
        size = sum(int(entry["bytes"]) for entry in manifest.files.values())
        metadata: dict[str, Any] = {
            "megabytes": round(size / 1e6, 2),
            "files": len(manifest.files),
            "version": manifest.version,
            "fingerprint": manifest.fingerprint,
            **manifest.figures,
            **(self.columns.lineage if self.columns else {}),
            **more,
        }
        if manifest.rows is not None:
            metadata["dagster/row_count"] = manifest.rows
        if workspace.lake.is_local:
            metadata["path"] = dg.MetadataValue.path(str(workspace.lake.open(manifest)))
        return dg.MaterializeResult(
            metadata=metadata,
            data_version=dg.DataVersion(manifest.data_version),
            check_results=[
                dg.AssetCheckResult(
                    check_name=check.name,
                    passed=check.passed,
                    severity=dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN,
                    description=check.description,
                    metadata=dict(check.metadata),
                )
                for check in manifest.checks
            ],
        )


def lake_asset(
    *,
    group: str,
    kinds: set[str],
    needs: Sequence[Needs | LakeAsset] = (),
    from_source: RawTable | None = None,
    settings: Sequence[str] = (),
    shards: Shards | None = None,
    checks: Sequence[Rule[...]] = (),
    pool: str | None = None,
    code_version: str = "1",
    by_content: bool = True,
    columns: Columns | None = None,
    automation: dg.AutomationCondition | None = None,
    freshness: dg.FreshnessPolicy | None = None,
    also_from: Callable[[Workspace], Mapping[str, str]] | None = None,
) -> Callable[[Callable[[Step], None]], LakeAsset]:
    """Declare an asset whose body is the decorated function.

    ``needs`` are its inputs; ``from_source`` says which part of the raw data it reads. ``settings`` are dotted names of the
    settings it uses: a change of any other leaves it fresh. ``by_content`` as in :meth:`Lake.publish`. Raise
    ``code_version`` when the same inputs now give another result. ``columns`` are those of its table; ``automation`` and
    ``freshness`` as in :mod:`neuroranker_pipeline.assets.policies`. ``also_from`` gives the versions, by name, of what it
    reads beside assets and raw data.
    """

    def declare(body: Callable[[Step], None]) -> LakeAsset:
        return LakeAsset(
            name=body.__name__,
            body=body,
            group=group,
            kinds=frozenset(kinds),
            needs=tuple(need if isinstance(need, Needs) else Needs(need) for need in needs),
            from_source=from_source,
            settings=tuple(settings),
            shards=shards,
            checks=tuple(checks),
            pool=pool,
            code_version=code_version,
            by_content=by_content,
            columns=columns,
            automation=automation,
            freshness=freshness,
            also_from=also_from,
        )

    return declare


def _demand_one_lineage(manifests: Iterable[Manifest], versions: Mapping[str, str]) -> None:
    """Refuse inputs that were made from different versions of each other: an evaluation of another model, say."""
    for manifest in manifests:
        for name, version in manifest.inputs.items():
            if versions.get(name, version) != version:
                made = label(manifest.asset, manifest.partition)
                raise NotReady(f"{made} was made from another {name}: run `neuroranker run --select {manifest.asset}`")


def _lookup(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it, so that a fingerprint read back equals the one computed."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(item) for key, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
