"""What makes an asset run by itself, and how old one may become before the UI says so."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

# For assets that take seconds to minutes on one core, and neither a GPU nor the JVM: the tables of the collection. What
# follows them costs hours of a GPU on a large collection, so it runs when a person, a schedule or the sensor asks.
# The inputs' checks count too: an asset refuses an input that failed one, and a run that can only fail says nothing.
WHEN_INPUTS_CHANGE = (
    dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()
).with_label("when its inputs change")

# The raw data is outside: nobody tells when it changes, so it is looked at. Its digest reads changed files alone.
EVERY_HOUR = dg.AutomationCondition.on_cron("@hourly").with_label("every hour")

# A schedule may be missed once; a second time is worth a colour.
NIGHTLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=3), warn_window=timedelta(hours=36))
WEEKLY = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8))
