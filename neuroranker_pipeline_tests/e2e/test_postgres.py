"""The smoke graph on a Dagster instance whose runs and events are in PostgreSQL, by the documented ``dagster.yaml``."""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from neuroranker_pipeline.assets import ASSETS
from neuroranker_pipeline.config.load import load_settings
from neuroranker_pipeline.orchestration.instance import TEMPLATE
from neuroranker_pipeline_tests.e2e.conftest import PROFILE, Graph, assert_whole

pytestmark = pytest.mark.e2e

SHORT = ("student.layers=1", "teacher.layers=1", "student.training.max_steps=2", "teacher.training.max_steps=2")
BRIEF = [word for setting in SHORT for word in ("--set", setting)]  # models are not what is looked at here
GUIDE = Path(__file__).parents[2] / "docs" / "orchestration.md"
AS_ROOT = os.geteuid() == 0
OWNER = "postgres"  # the server refuses to run as root


def documented_storage() -> str:
    """The YAML block of the guide's section on Postgres."""
    section = GUIDE.read_text(encoding="utf-8").partition("\n## Postgres\n")[2]
    found = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert found, f"{GUIDE} shows no YAML under Postgres"
    return found[1]


def programs() -> Path:
    """The folder of PostgreSQL's programs, which ``.ci/run`` installs."""
    if not glob.glob("/usr/lib/postgresql/*/bin/initdb"):
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return Path(max(glob.glob("/usr/lib/postgresql/*/bin")))


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    """A PostgreSQL cluster of its own, at a free port of the loopback interface, with a password: the variables of the
    guide's ``dagster.yaml``."""
    folder, binaries, password = Path(tempfile.mkdtemp(prefix="postgres-")), programs(), f"{secrets.token_hex(8)}@/%"
    if AS_ROOT:
        shutil.chown(folder, OWNER)

    def as_owner(*command: str) -> None:
        user = ["runuser", "-u", OWNER, "--"] if AS_ROOT else []
        subprocess.run([*user, str(binaries / command[0]), *command[1:]], check=True, capture_output=True, cwd=folder)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        (folder / "password").write_text(password)
        cluster = ["-D", f"{folder}/data"]
        as_owner(
            "initdb", *cluster, "-U", "dagster", "-A", "scram-sha-256", f"--pwfile={folder}/password", "-E", "UTF8"
        )
        options = f"-h 127.0.0.1 -p {port} -c unix_socket_directories={folder}"
        as_owner("pg_ctl", *cluster, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield {
                "PGHOST": "127.0.0.1",
                "PGPORT": str(port),
                "PGDATABASE": "postgres",
                "PGUSER": "dagster",
                "PGPASSWORD": password,
            }
        finally:
            as_owner("pg_ctl", *cluster, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_the_smoke_graph_passes_on_postgres(
    database: dict[str, str], graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(TEMPLATE.read_text() + documented_storage())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    for name, value in database.items():
        monkeypatch.setenv(name, value)
    ours = Graph(tmp_path)
    done = ours.command("run", *BRIEF)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = load_settings(PROFILE)
    pairs = {(asset.name, partition) for asset in ASSETS for partition in asset.partitions(settings)}
    assert assert_whole(ours.lake) >= len(pairs)

    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert type(instance.run_storage).__module__.startswith("dagster_postgres.")
        assert [run.status.value for run in instance.get_runs()] == ["SUCCESS"] * len(pairs)
        for asset, partition in pairs:
            events = instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[partition] if partition else None), limit=9
            )
            (record,) = events.records
            assert record.run_id == ours.lake.usable(asset, partition).run_id
        for pool in ("gpu", "jvm"):
            assert not instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    assert not list(home.rglob("*.db")), "nothing is in SQLite"

    # The retrieval half is deterministic to the byte: data versions of equal content are equal in both lakes.
    for asset, partition in (("passages", None), ("queries", None), ("qrels", None), ("bm25_candidates", "test")):
        here, there = (g.lake.usable(asset, partition) for g in (ours, graph))
        assert here.data_version == there.data_version, asset
        assert here.rows
