"""An If that always takes one branch gives way to it: names, captures, weights, and what stays an If."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_repfuse import Options, Result, fuse
from onnx_repfuse.modelfile.weightless import INLINE_BYTES
from onnx_repfuse.records.report import Kind
from onnx_repfuse.records.verdict import Status
from tests.build import counts, run
from tests.parts import random
from tests.versions import since_parser

X = random(2, 3)
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
UNCHECKED = Options(check=False)


def _model(text: str, head: str = HEAD) -> onnx.ModelProto:
    made = parser.parse_model(f"{head}\n{text}")
    onnx.checker.check_model(made)
    return made


def _main(body: str, more: str = "", outputs: str = "float[N, 3] y") -> onnx.ModelProto:
    return _model(f"main (float[N, 3] x{more}) => ({outputs}) {{\n{body}\n}}")


def _same(made: onnx.ModelProto, **feeds: np.ndarray) -> Result:
    """The result, proved by the tool, valid, equal in ONNX Runtime to the last bit, and the end."""
    result = fuse(made)
    assert result.model is not None
    onnx.checker.check_model(result.model, full_check=True)
    for before, after in zip(run(made, {"x": X, **feeds}), run(result.model, {"x": X, **feeds}), strict=True):
        np.testing.assert_array_equal(before, after)
    assert result.report.verification is not None
    assert result.report.verification.status is Status.PASSED
    again = fuse(result.model)
    assert not again.report.folds
    assert not again.report.changes
    return result


TRUE = "t = Constant <value = bool {1}> ()"
FALSE = "t = Constant <value = bool[1] {0}> ()"
BRANCHES = """y = If (t) <
    then_branch = yes () => (float[N, 3] a) { u = Exp (x)  a = Neg (u) },
    else_branch = no () => (float[N, 3] b) { u = Sin (x)  b = Abs (u) }
>"""


@pytest.mark.parametrize(("condition", "left"), [(TRUE, {"Exp", "Neg"}), (FALSE, {"Sin", "Abs"})])
def test_the_branch_that_is_taken_is_in_its_place(condition: str, left: set[str]) -> None:
    result = _same(_main(f"{condition}\n{BRANCHES}"))
    assert result.model is not None
    assert set(counts(result.model)) == left
    (change,) = result.report.changes
    assert change.kind is Kind.CONSTANT
    assert "If 'y'" in change.claim
    assert ("always true" in change.claim) == (condition is TRUE)


def test_a_condition_that_shapes_prove() -> None:
    made = _main(
        "s = Shape (x)\nr = Size (s)\ntwo = Constant <value_int = 2> ()\nt = Equal (r, two)\n" + BRANCHES
    )
    result = _same(made)
    assert result.model is not None
    assert set(counts(result.model)) == {"Exp", "Neg"}


def test_a_condition_of_the_caller_stays() -> None:
    made = _main(BRANCHES, ", bool t")
    for taken in (True, False):
        result = _same(made, t=np.array(taken))
    assert result.model is not None
    assert counts(result.model)["If"] == 1


def test_a_default_that_a_caller_may_override_stays() -> None:
    made = _model(f"main (float[N, 3] x, bool t = {{1}}) => (float[N, 3] y) {{ {BRANCHES} }}")
    result = fuse(made, options=UNCHECKED)
    assert result.model is not None
    assert counts(result.model)["If"] == 1
    frozen = fuse(made, options=Options(check=False, freeze_initializers=True))
    assert frozen.model is not None
    assert "If" not in counts(frozen.model)


def test_a_branch_may_return_its_own_weights_and_one_tensor_twice() -> None:
    made = _main(
        f"""{TRUE}
        q, r, y = If (t) <
            then_branch = yes () => (float[3] w, float[N, 3] a, float[N, 3] a)
                <float[3] w = {{1, 2, 3}}> {{ a = Mul (x, w) }},
            else_branch = no () => (float[3] v, float[N, 3] b, float[N, 3] b)
                <float[3] v = {{1, 2, 3}}> {{ b = Sin (x) }}
        >""",
        outputs="float[3] q, float[N, 3] r, float[N, 3] y",
    )
    result = fuse(made, options=UNCHECKED)  # ONNX Runtime inlines it, too, and loses the last output
    assert result.model is not None
    onnx.checker.check_model(result.model, full_check=True)
    assert "If" not in counts(result.model)
    factors = np.array([1, 2, 3], np.float32)
    for value, wanted in zip(run(result.model, {"x": X}), (factors, X * factors, X * factors), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_names_that_are_in_use_get_a_number() -> None:
    """`u` and `w` are in both branches and another If's; `a`, of the branch, is an output of the If, too."""
    other = """then_branch = yes2 () => (float[N, 3] o) <float[3] w = {2, 2, 2}> { u = Mul (y0, w)  o = Neg (u) },
        else_branch = no2 () => (float[N, 3] o2) { u = Sin (y0)  o2 = Abs (u) }"""
    made = _main(
        f"""{TRUE}
        a, y0 = If (t) <
            then_branch = yes () => (float[N, 3] y0, float[N, 3] a)
                <float[3] w = {{1, 2, 3}}> {{ u = Mul (x, w)  y0 = Exp (u)  a = Neg (y0) }},
            else_branch = no () => (float[N, 3] u, float[N, 3] w) {{ u = Sin (x)  w = Abs (u) }}
        >
        y1 = If (c) <{other}>
        y = Add (y1, a)""",
        ", bool c",
    )
    for taken in (True, False):
        result = _same(made, c=np.array(taken))
        assert result.model is not None
        assert counts(result.model)["If"] == 1


@pytest.mark.parametrize("inner", ["t", "c"])
def test_nested_ifs_with_outputs_of_one_name(inner: str) -> None:
    made = _main(
        f"""{TRUE}
        y = If (t) <
            then_branch = yes () => (float[N, 3] y) {{
                u = Exp (x)
                y = If ({inner}) <
                    then_branch = yes2 () => (float[N, 3] y) {{ v = Neg (u)  y = Tanh (v) }},
                    else_branch = no2 () => (float[N, 3] y) {{ y = Abs (u) }}
                >
            }},
            else_branch = no () => (float[N, 3] y) {{ y = Sin (x) }}
        >""",
        ", bool c",
    )
    for taken in (True, False):
        result = _same(made, c=np.array(taken))
        assert result.model is not None
        assert counts(result.model).get("If", 0) == (inner == "c")


def test_a_graph_inside_the_branch_reads_what_was_renamed() -> None:
    made = _main(
        f"""{TRUE}
        u = Sin (x)
        y0 = If (t) <
            then_branch = yes () => (float[N, 3] o) {{
                k = Exp (x)
                o = If (c) <
                    then_branch = yes2 () => (float[N, 3] p) {{ p = Neg (k) }},
                    else_branch = no2 () => (float[N, 3] n) {{ n = Identity (k) }}
                >
            }},
            else_branch = no () => (float[N, 3] q) {{ q = Abs (x) }}
        >
        y1 = If (c) <
            then_branch = yes3 () => (float[N, 3] k) {{ k = Cos (y0) }},
            else_branch = no3 () => (float[N, 3] k) {{ k = Tan (y0) }}
        >
        y = Add (y1, u)""",
        ", bool c",
    )
    for taken in (True, False):
        _same(made, c=np.array(taken))


def test_an_if_in_the_body_of_a_loop() -> None:
    made = _main(
        f"""n = Constant <value_int = 3> ()
        {TRUE}
        y = Loop (n, t, x) <body = step (int64 i, bool go, float[N, 3] s) => (bool on, float[N, 3] r) {{
            on = Identity (go)
            f = Constant <value = bool {{0}}> ()
            r = If (f) <
                then_branch = yes () => (float[N, 3] a) {{ a = Neg (s) }},
                else_branch = no () => (float[N, 3] b) {{ u = Sin (s)  b = Add (u, x) }}
            >
        }}>"""
    )
    result = _same(made)
    assert result.model is not None
    assert counts(result.model)["Loop"] == 1
    assert "If" not in counts(result.model)


def test_ifs_in_a_branch_that_is_never_taken_are_not_reported() -> None:
    made = _main(
        f"""{TRUE}
        y = If (t) <
            then_branch = yes () => (float[N, 3] a) {{ a = Neg (x) }},
            else_branch = no () => (float[N, 3] b) {{
                b = If (t) <
                    then_branch = yes2 () => (float[N, 3] c) {{ c = Sin (x) }},
                    else_branch = no2 () => (float[N, 3] d) {{ d = Cos (x) }}
                >
            }}
        >"""
    )
    assert len(_same(made).report.changes) == 1


def test_what_an_inlined_branch_proves_decides_the_next_if() -> None:
    """Of `u`, the rank is not known as long as a branch computes it."""
    made = _main(
        f"""{TRUE}
        u = If (t) <
            then_branch = yes () => (float[N, 3] a) {{ a = Neg (x) }},
            else_branch = no () => (float[N, 3, 1] b) {{ ax = Constant <value_ints = [2]> ()  b = Unsqueeze (x, ax) }}
        >
        s = Shape (u)
        r = Size (s)
        two = Constant <value_int = 2> ()
        same = Equal (r, two)
        y = If (same) <
            then_branch = yes2 () => (float[N, 3] c) {{ c = Sin (u) }},
            else_branch = no2 () => (float[N, 3] d) {{ e = Constant <value_ints = [2]> ()  d = Squeeze (u, e) }}
        >"""
    )
    result = _same(made)
    assert result.model is not None
    assert set(counts(result.model)) == {"Neg", "Sin"}
    assert len(result.report.changes) >= 2


def _with_large_weights(name: str, typed: bool) -> onnx.ModelProto:
    """A Gemm in each branch; both call their weights W, as does the main graph if that is `name`."""
    large = random(INLINE_BYTES, 3)

    def branch(op: str, factor: float) -> onnx.GraphProto:
        nodes = [
            onnx.helper.make_node("MatMul", ["x", "W"], ["m"]),
            onnx.helper.make_node(op, ["m"], [op]),
        ]
        value = onnx.helper.make_tensor_value_info(op, onnx.TensorProto.FLOAT, None)
        stored = onnx.numpy_helper.from_array(np.ascontiguousarray(large.T) * np.float32(factor), "W")
        if typed:
            stored = onnx.helper.make_tensor("W", stored.data_type, stored.dims, (large.T * factor).ravel())
        return onnx.helper.make_graph(nodes, op, [], [value], [stored])

    made = _main(f"{TRUE}\nu = Identity (x)\ny = Identity (u)")
    del made.graph.node[1:]
    made.graph.node.append(
        onnx.helper.make_node(
            "If", ["t"], ["y0"], then_branch=branch("Exp", 0.1), else_branch=branch("Sin", 1)
        )
    )
    made.graph.node.append(onnx.helper.make_node("MatMul", ["y0", name], ["y"]))
    made.graph.initializer.append(onnx.numpy_helper.from_array(large, name))
    return made


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("name", ["V", "W"])
@pytest.mark.parametrize("external", [False, True])
def test_weights_of_a_branch_come_along(tmp_path: Path, name: str, typed: bool, external: bool) -> None:
    made = _with_large_weights(name, typed)
    before = tmp_path / "before.onnx"
    onnx.save(made, before, save_as_external_data=external, location="w.data", size_threshold=0)
    result = fuse(before, tmp_path / "after.onnx", options=Options(check=name == "V"))
    after = onnx.load(tmp_path / "after.onnx")
    assert {one.name for one in after.graph.initializer} == ({"V", "W"} if name == "V" else {"W", "W_1"})
    assert "If" not in counts(after)
    original = onnx.load(before)
    np.testing.assert_array_equal(run(original, {"x": X})[0], run(after, {"x": X})[0])
    assert result.report.after.bytes < 0.75 * result.report.before.bytes


def _kept(**choices: object) -> dict[str, int]:
    made = _main(f"{TRUE}\n{BRANCHES}")
    for node in made.graph.node:
        node.name = f"the {node.op_type}"
        for attribute in node.attribute if node.op_type == "If" else ():
            for inner in attribute.g.node:
                inner.name = f"inner {inner.op_type}"
    result = fuse(made, options=Options(check=False, **choices))  # type: ignore[arg-type]
    assert result.model is not None
    return counts(result.model)


def test_the_user_keeps_it() -> None:
    assert _kept(skip=frozenset({Kind.CONSTANT}))["If"] == 1
    assert _kept(only=frozenset({Kind.AFFINE}))["If"] == 1
    assert _kept(keep=("the If",))["If"] == 1
    assert _kept(keep=("inner Sin",))["If"] == 1  # it would be gone
    assert "If" not in _kept(keep=("inner Exp",))


@since_parser
def test_kept_nodes_that_only_the_condition_or_the_other_branch_reads_stay() -> None:
    body = """
    [stays] r = Relu(x)
    [goes] q = Abs(x)
    y = If(c) <then_branch = t () => (float[N, 3] a) { a = Neg(x) },
               else_branch = e () => (float[N, 3] b) { b = Add(r, q) }>"""
    made = _model(f"main (float[N, 3] x) => (float[N, 3] y) <bool c = {{1}}> {{{body}\n}}")
    names = [node.name for node in fuse(made, options=Options(keep=("stays",))).model.graph.node]
    assert "stays" in names
    assert "goes" not in names
    assert counts(fuse(made).model) == {"Neg": 1}


def test_sparse_weights_training_information_and_functions_keep_it() -> None:
    made = _main(f"{TRUE}\n{BRANCHES}")
    made.training_info.add()
    trained = fuse(made, options=UNCHECKED)
    assert trained.model is not None
    assert counts(trained.model)["If"] == 1

    called = _model(
        f"main (float[2, 3] x) => (float[2, 3] y) {{ y = local.pick (x) }}\n"
        f'<domain: "local", opset_import: ["" : 17]> pick (x) => (y) {{ {TRUE}\n{BRANCHES} }}',
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>',
    )
    result = fuse(called, options=UNCHECKED)
    assert result.model is not None
    assert any(node.op_type == "If" for node in result.model.functions[0].node)


def test_weights_of_a_branch_before_initializers_could_be_no_inputs() -> None:
    made = _main(
        f"""{TRUE}
        y = If (t) <
            then_branch = yes () => (float[N, 3] a) <float[3] w = {{1, 2, 3}}> {{ a = Mul (x, w) }},
            else_branch = no () => (float[N, 3] b) {{ b = Sin (x) }}
        >"""
    )
    made.ir_version = 3
    result = fuse(made, options=UNCHECKED)
    assert result.model is not None
    assert counts(result.model)["If"] == 1


def test_a_sequence_that_comes_from_outside_stays_where_identity_takes_none() -> None:
    text = f"""main (float[N, 3] x) => (float[N, 3] y) {{
        {TRUE}
        s = SequenceConstruct (x)
        q = If (t) <
            then_branch = yes () => (seq(float[N, 3]) s) {{ }},
            else_branch = no () => (seq(float[N, 3]) e) {{ e = SequenceConstruct (x, x) }}
        >
        i = Constant <value_int = 0> ()
        y = SequenceAt (q, i)
    }}"""
    for opset, left in (13, 1), (17, 0):
        # neither the checker nor ONNX Runtime lets a branch return what it does not compute
        made = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
        result = fuse(made, options=UNCHECKED)
        assert result.model is not None
        assert counts(result.model).get("If", 0) == left
    np.testing.assert_array_equal(run(result.model, {"x": X})[0], X)  # without an If


def test_other_branches_are_still_entered_by_the_proof() -> None:
    """Beside one that is always taken: the other If's branches differ in rank, and folds are tried in both."""
    made = _main(
        f"""{FALSE}
        {BRANCHES.replace("y = If", "k = If")}
        y = If (c) <
            then_branch = yes2 () => (float[N, 3] o) {{ o = Neg (k) }},
            else_branch = no2 () => (float[N, 3] o2) {{ o2 = Tanh (k) }}
        >""",
        ", bool c",
    )
    for taken in (True, False):
        _same(made, c=np.array(taken))
