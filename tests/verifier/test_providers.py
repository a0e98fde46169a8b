"""Execution providers: by their names, and never another one in silence."""

from __future__ import annotations

import pytest

from onnx_repfuse import Options, UsageError, fuse, verify
from onnx_repfuse.quiet_runtime import ort
from onnx_repfuse.records.runtime import Runtime
from onnx_repfuse.verifier.providers import available, provider_named
from onnx_repfuse.verifier.session import DoesNotRun, open_session
from tests.build import Net


@pytest.mark.parametrize("word", ["CPUExecutionProvider", "cpu", "CPU", "cpuexecutionprovider"])
def test_a_provider_has_a_short_name(word):
    assert provider_named(word) == "CPUExecutionProvider"


def test_an_unknown_provider_is_wrong_usage_that_lists_those_there_are():
    with pytest.raises(UsageError) as caught:
        provider_named("nonsense")
    assert all(name in str(caught.value) for name in available())


@pytest.mark.parametrize(
    "call", [lambda m: fuse(m, options=Options(provider="x")), lambda m: verify(m, m, provider="x")]
)
def test_the_library_refuses_it_too(call):
    net = Net(2)
    with pytest.raises(UsageError, match="no provider 'x'"):
        call(net.model(net.op("Relu", "x")))


def test_a_provider_that_cannot_be_loaded_is_not_replaced_by_the_cpu(monkeypatch):
    """As CUDA's without its libraries: ONNX Runtime says a word on standard error, and runs on the CPU."""
    make = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *given, providers, **rest: make(*given, **rest))
    net = Net(2)
    with pytest.raises(DoesNotRun, match="cannot load the provider"):
        open_session(net.model(net.op("Relu", "x")), Runtime(providers=("MissingExecutionProvider",)))


def test_the_library_runs_on_a_provider_with_threads():
    net = Net(2)
    model = net.model(net.conv_bn("x", 2, 2, 3))
    found = fuse(model, options=Options(provider="cpu", threads=2)).report.verification
    assert found
    assert (found.provider, found.threads) == ("CPUExecutionProvider", 2)
