"""What every test starts from: hypothesis draws the same examples on every run and machine; texts have no width."""

import os

from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("deterministic")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # where a test imports onnxruntime itself
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers, and lines would be wrapped
