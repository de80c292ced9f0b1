"""What all tests share: no telemetry, no model hub."""

import os

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_OFFLINE"] = "1"
