"""Export one network to ONNX by either of torch's exporters, as trained or as its author deploys it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

LEGACY_OPSET = 17


def export(
    model: nn.Module,
    inputs: Tensor,
    *,
    dynamo: bool,
    keep_batchnorm: bool = False,
    dynamic: dict[int, str] | None = None,
    input_name: str = "input",
    output_names: list[str] | None = None,
) -> onnx.ModelProto:
    """Export `model.eval()` on `inputs`. `dynamic` names the input's symbolic axes; the output has the same batch axis.

    The legacy exporter folds BatchNormalization into the Conv before it. `keep_batchnorm` prevents that by
    `training=PRESERVE`. The new exporter has no such switch: its optimizer folds what it can.
    """
    model.eval()
    with _quiet():
        if dynamo:
            return _export_dynamo(model, inputs, dynamic, input_name, output_names)
        return _export_legacy(model, inputs, keep_batchnorm, dynamic, input_name, output_names)


def _export_legacy(
    model: nn.Module,
    inputs: Tensor,
    keep_batchnorm: bool,
    dynamic: dict[int, str] | None,
    input_name: str,
    output_names: list[str] | None,
) -> onnx.ModelProto:
    mode = torch.onnx.TrainingMode
    names = output_names or ["output"]
    axes = (
        {input_name: dynamic, **{name: {0: dynamic[0]} for name in names if 0 in dynamic}}
        if dynamic
        else None
    )
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (inputs,),
        buffer,
        dynamo=False,
        opset_version=LEGACY_OPSET,
        training=mode.PRESERVE if keep_batchnorm else mode.EVAL,
        do_constant_folding=not keep_batchnorm,
        input_names=[input_name],
        output_names=names,
        dynamic_axes=axes,
    )
    return onnx.load_from_string(buffer.getvalue())


def _export_dynamo(
    model: nn.Module,
    inputs: Tensor,
    dynamic: dict[int, str] | None,
    input_name: str,
    output_names: list[str] | None,
) -> onnx.ModelProto:
    shapes = ({axis: torch.export.Dim(name) for axis, name in dynamic.items()},) if dynamic else None
    program = torch.onnx.export(
        model,
        (inputs,),
        dynamo=True,
        input_names=[input_name],
        output_names=output_names or ["output"],
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield


_KEPT_METADATA = ("pkg.torch.onnx.name_scopes", "pkg.torch.onnx.original_node_name")


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove, in place, what depends on the machine or only fills the file: doc strings, stack traces, the signature.

    Scope names stay. They say which module a node comes from, and tests check that they are kept.
    """
    _strip(model)
    for function in model.functions:
        _strip(function)
        for node in function.node:
            _strip(node)
    _clean_graph(model.graph)
    return model


def _clean_graph(graph: onnx.GraphProto) -> None:
    _strip(graph)
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in part:
            _strip(item)
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _clean_graph(attribute.g)
            for inner in attribute.graphs:
                _clean_graph(inner)


def _strip(item: onnx.ModelProto | onnx.GraphProto | onnx.NodeProto | onnx.FunctionProto) -> None:
    item.ClearField("doc_string")
    kept = [entry for entry in item.metadata_props if entry.key in _KEPT_METADATA]
    del item.metadata_props[:]
    item.metadata_props.extend(kept)
