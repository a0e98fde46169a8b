"""onnx-repfuse inside other people's tools: each recipe runs one, in a virtual environment of its own.

python -m recipes              # which there are
python -m recipes rapidocr     # make the environment, install, run

They need PyPI, and nothing else from outside. docs/recipes.md says what came out.
"""

from __future__ import annotations

__all__ = ["RECIPES"]

# Name of the module -> what it takes from PyPI. Torch's versions are those for which PyPI's torchvision is built.
_TORCH = ("torch==2.14.1", "torchvision==0.29.1")
RECIPES: dict[str, tuple[str, ...]] = {
    "rapidocr": ("rapidocr>=3.10", "rapidocr-onnxruntime"),
    "quantization": ("onnxruntime>=1.18", "sympy"),
    "polygraphy": ("polygraphy",),
    "action": ("pyyaml",),
    "precommit": ("pre-commit",),
    "ultralytics": (*_TORCH, "ultralytics", "onnxscript", "onnxslim"),
    "optimum": (*_TORCH, "optimum-onnx"),
    # olive-ai does not ask for requests, which it imports
    "olive": (*_TORCH, "olive-ai", "onnxscript", "requests"),
}
