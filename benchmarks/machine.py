"""The machine that was measured on: processor, versions, date."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import distributions
from pathlib import Path

PACKAGES = (
    "onnx-repfuse",
    "onnx",
    "onnxruntime",
    "onnx-graphsurgeon",
    "openvino",
    "onnxsim",
    "onnxslim",
    "onnxoptimizer",
    "onnxscript",
    "numpy",
)


def processor() -> str:
    """The model name of the processor, and the vector instructions that matter."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = entries.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    name = entries.get("model name", platform.machine())
    family = f"family {entries.get('cpu family', '?')} model {entries.get('model', '?')}"
    return f"{name} ({family}, {vectors}), {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Versions of the installed packages."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in distributions()}
    present = {name: installed[name] for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **present}


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def describe() -> dict[str, object]:
    """What the header of a result says."""
    return {
        "date": today(),
        "processor": processor(),
        "versions": versions(),
        "load": round(os.getloadavg()[0], 1),
    }
