"""Loading the code location, as every Dagster process does first: the web server's code server, the daemon, each run.

    python benchmarks/definitions.py [--times 5]

Each loading is a new process: Python starts, the module is imported, and all definitions of a profile are made. The peers
are Python alone and ``import dagster`` in it, below which no code location can get.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from measured import measure, table

LOAD = "from neuroranker_pipeline.definitions import defs; defs().get_repository_def().load_all_definitions()"
PROGRAMS = {
    "Python alone": "pass",
    "import dagster": "import dagster",
    "import neuroranker_pipeline.definitions": "import neuroranker_pipeline.definitions",
    "and all definitions of `quickstart`": LOAD,
}
LIMIT = 3.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    rows, seconds = [], 0.0
    for name, code in PROGRAMS.items():
        runs = [measure([sys.executable, "-c", code], {"NEURORANKER_PROFILE": "quickstart"}) for _ in range(times)]
        seconds = statistics.median(run.wall for run in runs)
        slowest, peak = max(run.wall for run in runs), max(run.peak for run in runs)
        rows.append([name, f"{seconds:.2f}", f"{slowest:.2f}", f"{peak:.0f}"])
    print(table(["", "median, s", "slowest, s", "peak, MiB"], rows))
    if seconds >= LIMIT:
        raise SystemExit(f"the code location takes {seconds:.2f} s to load: {LIMIT:.0f} s were promised")


if __name__ == "__main__":
    main()
