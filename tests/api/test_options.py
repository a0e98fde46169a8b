"""`Options` refuses values that cannot have been meant, and says what it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_repfuse import Kind, Options, fuse, plan
from onnx_repfuse.errors import UsageError

ACNET = Path(__file__).parents[2] / "models" / "acnet.train.onnx"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cost": "mac"}, "one of 'ort-cpu', 'macs', not 'mac'; did you mean 'macs'?"),
        ({"cost": None}, "Options.cost is one of"),
        ({"simplify": "onnxslm"}, "did you mean 'onnxslim'"),
        ({"simplify": True}, "Options.simplify is one of"),
        ({"skip": "pool"}, "Options.skip takes a collection, not the text 'pool': write ('pool',)"),
        ({"skip": ("pol",)}, "did you mean 'pool'"),
        ({"skip": 3}, "Options.skip is a collection, not 3"),
        ({"only": ()}, "names no kind of fold"),
        ({"skip": ("pool",), "only": ("pool", "pad")}, "both name 'pool'"),
        ({"avoid": ("",)}, "a collection of operators"),
        ({"keep": (3,)}, "a collection of globs on node names"),
        ({"custom_ops": (3,)}, "int is no path"),
        ({"provider": ""}, "the name of an execution provider"),
        ({"check": 0}, "Options.check is True or False, not 0"),
        ({"strict": "yes"}, "Options.strict is True or False"),
        ({"external": "auto"}, "(or None)"),
        ({"level": 3}, "level must be 1 or 2, not 3"),
        ({"level": True}, "level must be 1 or 2, not True"),
        ({"opset": 0}, "opset must be a whole number > 0, not 0"),
        ({"opset": "17"}, "opset must be a whole number > 0, not '17'"),
        ({"opset": 17.5}, "opset must be a whole number > 0, not 17.5"),
        ({"threads": -1}, "threads must be a whole number >= 0, not -1"),
        ({"rtol": "1e-5"}, "rtol must be a number >= 0"),
        ({"atol": np.inf}, "atol must be a number >= 0, not inf"),
        ({"rtol": True}, "rtol must be a number >= 0"),
        ({"input_shapes": [("x", (1, 3))]}, "as {'input': (1, 3, 224, 224)}"),
        ({"input_shapes": {"x": "1,3"}}, "a dict, input name -> shape"),
        ({"input_shapes": {"x": (1, -3)}}, "a dict, input name -> shape"),
        ({"input_data": "batch.npz"}, "write ('batch.npz',)"),
        ({"input_data": ("batch.npz",)}, "as ((None, 'batch.npz'),)"),
        ({"input_data": {"x": np.ones(3)}}, "`verify(feeds=...)` takes arrays"),
        ({"input_data": (("x", np.ones(3)),)}, "`verify(feeds=...)` takes arrays"),
        ({"check": False, "strict": True}, "strict is about the check, which check=False leaves out"),
        ({"check": False, "rtol": 1e-5}, "rtol is about the check"),
        ({"check": False, "precision_study": True}, "precision_study is about the check"),
    ],
)
def test_slips_are_refused_with_a_suggestion(words, message):
    with pytest.raises(UsageError) as caught:
        Options(**words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_only_mean_one_thing_is_taken():
    options = Options(
        skip=["pool"],
        keep=["/head/*"],
        avoid={"Sum"},
        custom_ops=["lib.so"],
        input_shapes={"x": [np.int64(1), 3]},
        input_data=[("x", "x.npy")],
        rtol=np.float32(0.5),
        opset=np.int64(17),
    )
    assert options.skip == frozenset({Kind.POOL})
    assert (options.keep, options.avoid) == (("/head/*",), frozenset({"Sum"}))
    assert (options.custom_ops, options.input_data) == ((Path("lib.so"),), (("x", Path("x.npy")),))
    assert options.input_shapes == {"x": (1, 3)}


@pytest.mark.parametrize("work", [plan, fuse])
def test_misspelled_operators_are_refused(work):
    with pytest.raises(UsageError, match="did you mean 'BatchNormalization'"):
        work(ACNET, options=Options(avoid=frozenset({"BatchNorm"})))
