"""Fusion as a pass of Olive's workflows.

    python -m onnx_repfuse.integrations.olive > package.json
    olive run --config workflow.json --package-config package.json

where the workflow has the pass:

    "passes": {"fuse": {"type": "OnnxRepfuse", "level": 2}, "quantize": {"type": "OnnxDynamicQuantization"}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from onnx_repfuse.api import fuse
from onnx_repfuse.options import Options
from onnx_repfuse.records.report import Kind

__all__ = ["OnnxRepfuse", "package_config"]


class OnnxRepfuse(Pass):
    """Fold the linear branches of a model and prove the result equal.

    Parameters of the workflow: `level` (1 or 2), `strict`, `keep` and `skip` (lists), as of `Options`. The pass fails,
    and with it the workflow, where `fuse` raises.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "level": PassConfigParam(
                type_=int, default_value=1, description="2 gives the fastest result, see -O2."
            ),
            "strict": PassConfigParam(
                type_=bool, default_value=False, description="Fail unless everything was observed."
            ),
            "keep": PassConfigParam(
                type_=list[str], default_value=[], description="Globs of nodes that stay."
            ),
            "skip": PassConfigParam(
                type_=list[str], default_value=[], description="Kinds of folds to leave out."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        values: Any = config
        options = Options(
            level=values.level,
            strict=values.strict,
            keep=tuple(values.keep),
            skip=frozenset(map(Kind.named, values.skip)),
        )
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        fuse(model.model_path, target, options)
        beside = [entry for entry in target.parent.iterdir() if entry != target]
        if beside:  # external data: Olive hands on the folder
            return ONNXModelHandler(model_path=str(target.parent), onnx_file_name=target.name)
        return ONNXModelHandler(model_path=str(target))


def package_config() -> dict[str, Any]:
    """Olive's own table of passes, and this pass."""
    path = Path(OlivePackageConfig.get_default_config_path())
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    anywhere = ["*"]
    config["passes"]["OnnxRepfuse"] = {
        "module_path": "onnx_repfuse.integrations.olive.OnnxRepfuse",
        "supported_providers": anywhere,
        "supported_accelerators": anywhere,
        "supported_precisions": anywhere,
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
    }
    return config


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=4))
