"""Models of one node, made from the onnx package's node tests: other opsets, sizes, constants and attributes."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper

__all__ = ["Case", "node_tests", "operators", "variants"]

AUTO_PADS = ("SAME_UPPER", "SAME_LOWER", "VALID")
MAX_TESTS = 12  # of one operator: Cast has hundreds


@dataclass(frozen=True, eq=False)
class Case:
    """A model of one node, and values of its inputs by name."""

    operator: str
    opset: int
    variant: str
    model: onnx.ModelProto
    inputs: dict[str, Any]

    @property
    def node(self) -> onnx.NodeProto:
        """Its node."""
        return self.model.graph.node[0]

    @property
    def rank(self) -> int:
        """Of the first input; 0 if there is none."""
        first = self.inputs.get(self.node.input[0]) if self.node.input else None
        return first.ndim if isinstance(first, np.ndarray) else 0

    def copy(self, variant: str) -> Case:
        """A copy to be changed, with values that its copy may change, too."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return replace(self, variant=variant, model=model, inputs=dict(self.inputs))


@cache
def _tests() -> dict[str, list[Case]]:
    """The node tests of one node, by operator. To load them all takes seconds: poolings are computed in Python."""
    from onnx.backend.test.loader import load_model_tests

    return _cases(load_model_tests(kind="node"))


def _cases(tests: Iterable[Any]) -> dict[str, list[Case]]:
    result: dict[str, list[Case]] = {}
    for test in tests:
        model = test.model
        if model is None or len(model.graph.node) != 1 or not test.data_sets or model.functions:
            continue
        if model.graph.node[0].domain:
            continue
        operator = model.graph.node[0].op_type
        opset = max((i.version for i in model.opset_import if i.domain == ""), default=0)
        names = [value.name for value in model.graph.input]
        inputs = dict(zip(names, test.data_sets[0][0], strict=False))
        del model.graph.value_info[:]
        if opset and len(result.setdefault(operator, [])) < MAX_TESTS:
            result[operator].append(Case(operator, opset, "", model, inputs))
    return result


def operators() -> list[str]:
    """Those that have node tests."""
    return sorted(_tests())


def node_tests(operator: str, most: int | None = None) -> list[Case]:
    """The node tests of an operator, at most so many."""
    tests = _tests() if most is None else _tests_of_module(operator.lower())
    return tests.get(operator, [])[:most]


@cache
def _tests_of_module(name: str) -> dict[str, list[Case]]:
    """Those that one module of the onnx package defines, and others that were imported before it."""
    from onnx.backend.test.case import node

    importlib.import_module(f"{node.__name__}.{name}")
    return _cases(node._NodeTestCases)


def variants(test: Case) -> Iterator[Case]:
    """A node test at each version of its operator, with each change."""
    for opset in _opsets(test):
        at = test.copy("")
        at = replace(at, opset=opset)
        del at.model.opset_import[:]
        at.model.opset_import.add(domain="", version=opset)
        _fit_to_opset(at)
        for changed in (at, *_with_other_attributes(at), *_with_another_axis(at)):
            yield changed
            yield from _with_unknown_sizes(changed)
            yield from _with_constants(changed)
        for changed in _with_other_values(at):
            yield from _with_constants(changed)


def _opsets(test: Case) -> list[int]:
    schemas = onnx.defs.get_all_schemas_with_history()
    versions = {s.since_version for s in schemas if s.name == test.operator and not s.domain}
    return sorted(version for version in {*versions, test.opset} if version <= test.opset)


def _fit_to_opset(case: Case) -> None:
    """Write inputs that the version does not have as attributes, and leave out attributes that it does not have."""
    schema = onnx.defs.get_schema(case.operator, case.opset)
    latest = onnx.defs.get_schema(case.operator, onnx.defs.onnx_opset_version())
    node = case.node
    names = [latest.inputs[min(place, len(latest.inputs) - 1)].name for place in range(len(node.input))]
    for place in range(len(node.input) - 1, schema.max_input - 1, -1):
        value = case.inputs.get(node.input[place])
        name = names[place]
        if isinstance(value, np.ndarray) and name in schema.attributes:
            kind = AttributeProto.AttributeType.Value(schema.attributes[name].type.name)
            is_list = kind in (AttributeProto.INTS, AttributeProto.FLOATS)
            given = value.ravel().tolist() if is_list else value.ravel()[0].item() if value.size else None
            if given is not None:
                node.attribute.append(helper.make_attribute(name, given, attr_type=kind))
        _drop_input(case, place)
    kept = [attribute for attribute in node.attribute if attribute.name in schema.attributes]
    del node.attribute[:]
    node.attribute.extend(kept)


def _drop_input(case: Case, place: int) -> None:
    name = case.node.input[place]
    del case.node.input[place]
    values = [value for value in case.model.graph.input if value.name != name]
    del case.model.graph.input[:]
    case.model.graph.input.extend(values)
    case.inputs.pop(name, None)


# sizes


def _with_unknown_sizes(case: Case) -> Iterator[Case]:
    for variant in ("batch unknown", "sizes unknown", "rank unknown"):
        result = case.copy(f"{case.variant} {variant}".strip())
        for value in result.model.graph.input:
            if value.type.HasField("tensor_type"):
                _forget(value.type.tensor_type, variant)
        for value in result.model.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        yield result


def _forget(tensor: onnx.TypeProto.Tensor, variant: str) -> None:
    if variant == "rank unknown":
        tensor.ClearField("shape")
        return
    for dim in tensor.shape.dim[:1] if variant == "batch unknown" else tensor.shape.dim:
        dim.Clear()


# constants


def _with_constants(case: Case) -> Iterator[Case]:
    """Parameters, then all inputs, as initializers."""
    names = [name for name in case.node.input if name]
    for variant, fixed in (("parameters constant", names[1:]), ("all constant", names)):
        arrays = {name: case.inputs.get(name) for name in fixed}
        if not fixed or not all(
            isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays.values()
        ):
            continue
        result = case.copy(f"{case.variant} {variant}".strip())
        result.model.ir_version = 10  # that onnx and ONNX Runtime of two years ago know
        graph = result.model.graph
        kept = [value for value in graph.input if value.name not in arrays]
        del graph.input[:]
        graph.input.extend(kept)
        graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
        for value in graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        yield result


def _with_other_values(case: Case) -> Iterator[Case]:
    """Other numbers for a parameter: axes, sizes, pads, ends, scales."""
    for name in case.node.input[1:]:
        value = case.inputs.get(name)
        if not isinstance(value, np.ndarray) or not 0 < value.size <= 8:
            continue
        for text, changed in _other_values(value):
            result = case.copy(f"{name} {text}")
            result.inputs[name] = changed.astype(value.dtype)
            yield result


def _other_values(value: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if value.dtype.kind == "f":
        for factor in (0.7, 1.3, 0.0):
            yield f"times {factor}", value * factor
    if value.dtype.kind not in "iu":
        return
    yield "plus 1", value + 1
    yield "minus 1", value - 1
    yield "negated", 0 - value
    yield "all 0", value * 0
    last = value.copy().ravel()
    last[-1] = np.iinfo(value.dtype).max
    yield "the last one the greatest", last.reshape(value.shape)


# attributes


def _with_other_attributes(case: Case) -> Iterator[Case]:
    attributes = onnx.defs.get_schema(case.operator, case.opset).attributes
    given = {a.name: helper.get_attribute_value(a) for a in case.node.attribute}
    for changes in _changes(attributes, given, case.rank):
        result = case.copy(", ".join(f"{name}={value}" for name, value in changes.items()))
        kept = [a for a in result.node.attribute if a.name not in changes]
        del result.node.attribute[:]
        result.node.attribute.extend(kept)
        for name, value in changes.items():
            if value is not None:
                kind = AttributeProto.INTS if isinstance(value, list) else None
                result.node.attribute.append(helper.make_attribute(name, value, attr_type=kind))
        for value in result.model.graph.output:
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")
        yield result


def _changes(attributes: Any, given: dict[str, Any], rank: int) -> Iterator[dict[str, Any]]:
    """Attributes to be set, or left out (None)."""
    space = max(rank - 2, 0)
    if "auto_pad" in attributes:
        for auto_pad in AUTO_PADS:
            yield {"auto_pad": auto_pad, "pads": None}
            yield {"auto_pad": auto_pad, "pads": [1] * 2 * space}
            yield {"auto_pad": auto_pad, "pads": [0] * 2 * space}
            yield {"auto_pad": auto_pad, "pads": None, "strides": [2] * space, "dilations": [2] * space}
    if "ceil_mode" in attributes:
        for pads in ([0] * 2 * space, [1] * 2 * space, [0] * space + [1] * space):
            for strides in (2, 3):
                yield {"ceil_mode": 1, "auto_pad": None, "pads": pads, "strides": [strides] * space}
    for name, value in (("dilations", 2), ("strides", 2), ("strides", 3), ("output_padding", 1)):
        if name in attributes and space:
            yield {name: [value] * space}
    for name in ("axis", "axes"):
        if name in attributes:
            yield from _other_axes(name, given, rank)
    for name, attribute in attributes.items():
        is_number = attribute.type == onnx.defs.OpSchema.AttrType.INT and name not in ("axis", "ceil_mode")
        value = given.get(name, attribute.default_value.i) if is_number else None
        if value in (0, 1):
            yield {name: 1 - value}


def _other_axes(name: str, given: dict[str, Any], rank: int) -> Iterator[dict[str, Any]]:
    """The same axes counted from the other end, others, and none."""
    yield {name: None}
    if name == "axes":
        axes = given.get("axes") or [0]
        yield {"axes": [axis - rank if axis >= 0 else axis + rank for axis in axes]}
        yield {"axes": []}
        return
    for axis in range(-rank, rank + 1):
        yield {"axis": axis}


def _with_another_axis(case: Case) -> Iterator[Case]:
    """The second operand with one more axis in front, of two elements."""
    names = [name for name in case.node.input if name]
    value = case.inputs.get(names[1]) if len(names) > 1 else None
    if not isinstance(value, np.ndarray):
        return
    for count in (1, 2):
        result = case.copy(f"a leading axis of {count} more")
        result.inputs[names[1]] = np.stack([value] * count)
        for declared in result.model.graph.input:
            if declared.name == names[1]:
                type_ = helper.make_tensor_type_proto(
                    declared.type.tensor_type.elem_type, result.inputs[names[1]].shape
                )
                declared.type.CopyFrom(type_)
        for output in result.model.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        yield result
