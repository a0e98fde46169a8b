"""Models that run on few integers, or on inputs of one size alone, are fed with such."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnx_repfuse import fuse
from onnx_repfuse.errors import InputError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
X = "float[n, 4, h, w] x"
FOLD = "a0 = Conv(x, k) a = Mul(a0, two)"
CASES = {
    "a Reshape's target": f"m ({X}, int64[4] i) => (y) {{ {FOLD} y = Reshape(a, i) }}",
    "sizes to expand to": f"m ({X}, int64[4] i) => (y) {{ {FOLD} y = Expand(a, i) }}",
    "images of a batch": f"m ({X}, float[r, 4] b, int64[r] i) => (y) {{ {FOLD} y = RoiAlign(a, b, i) }}",
    "two of one size": f"m ({X}, float[e, f, g, o] z) => (y) {{ {FOLD} y = Add(a, z) }}",
    "two of one size without names": f"m ({X}, float[?, ?, ?, ?] z) => (y) {{ {FOLD} y = Add(a, z) }}",
}


@pytest.mark.parametrize("name", CASES)
def test_the_model_runs_and_its_fold_is_proved(name: str) -> None:
    model = parser.parse_model(HEAD + CASES[name])
    kernel = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)
    weights = {"k": kernel, "two": np.float32(2)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    result = fuse(model)
    assert [fold.kind.value for fold in result.report.folds] == ["affine"]


@pytest.mark.parametrize(
    "body",
    [
        "f = Flatten(a) y = MatMul(f, m)",  # of 5x7 images alone
        "t = Transpose <perm = [0, 3, 2, 1]> (a) r = Reshape(t, r57) y = MatMul(r, m)",
        "p = Pad(a, pads) f = Flatten(p) y = MatMul(f, m)",
    ],
)
def test_sizes_that_constants_inside_ask_for_are_found(body: str) -> None:
    model = parser.parse_model(f"{HEAD}m ({X}) => (y) {{ {FOLD} {body} }}")
    rng = np.random.default_rng(0)
    rows = 140 if "Pad" not in body else 4 * 7 * 8
    weights = {
        "k": rng.standard_normal((4, 4, 1, 1)).astype(np.float32),
        "two": np.float32(2),
        "m": rng.standard_normal((rows, 3)).astype(np.float32),
        "r57": np.array([1, 140], np.int64),
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 1], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    result = fuse(model)
    assert result.report.folds
    assert result.report.verification is not None


def test_where_nothing_runs_the_first_reason_is_told() -> None:
    text = f"{HEAD}m ({X}, int64[1] i) => (y, z) {{ {FOLD} y = Reshape(a, t) z = Neg(i) }}"
    model = parser.parse_model(text)
    weights = {
        "k": np.ones((4, 4, 1, 1), np.float32),
        "two": np.float32(2),
        "t": np.array([5, 2, 7], np.int64),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    with pytest.raises(InputError, match=r"at no size that was tried.*Reshape"):
        fuse(model)
