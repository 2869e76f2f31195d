"""Gradients of several outputs at once: ``is_grads_batched`` and ``vectorize``, an older vmap than torch.func's."""

import pytest
import torch
from torch.autograd.functional import jacobian

from helpers import all_backends, randn
from layouts import laid_out
from msf_pmsn_plugins import snntorch as ours
from msf_pmsn_plugins.neurons import MSN, ParallelIF
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from subjects import STREAMS, build_msn, build_pmsn
from tolerances import F32, F64, assert_close, assert_same

NEURONS = {name: make for name, make in STREAMS.items() if not name.endswith("-loop")} | {
    "parallel_if": lambda: ParallelIF(0.7),
    "msn": lambda: build_msn(3),
    "pmsn-global": lambda: build_pmsn(3, context="global"),
}
all_neurons = pytest.mark.parametrize("name", NEURONS)


def assert_batched_gradients_are_those_of_each(outputs, leaves):
    """Random gradients of all outputs, three at once against one after the other."""
    outputs = [out for out in outputs if out is not None and out.requires_grad]
    ups = [randn(3, *out.shape, seed=i, dtype=out.dtype) for i, out in enumerate(outputs)]
    options = {"retain_graph": True, "allow_unused": True}
    made = torch.autograd.grad(outputs, leaves, ups, is_grads_batched=True, **options)
    each = [torch.autograd.grad(outputs, leaves, [up[i] for up in ups], **options) for i in range(3)]
    assert any(g is not None for g in made)
    for together, one in zip(made, zip(*each, strict=True), strict=True):
        assert (together is None) == (one[0] is None)
        if together is not None:
            assert_close(together, torch.stack(one), "adjoint")


@all_neurons
@all_backends
@pytest.mark.parametrize("layout", ["contiguous", "tokens", "batch_first", "expanded"])
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16], ids=["f32", "f64", "bf16"])
def test_sequences(dtype, layout, backend, name):
    neuron = NEURONS[name]()
    neuron.backend = backend if not isinstance(neuron, MSN) else "auto"
    x = (2 * randn(5, 2, 4, 3, dtype=dtype)).requires_grad_()  # channels behind
    neuron = neuron.double() if dtype == F64 else neuron
    if hasattr(neuron, "channel_dim"):
        neuron.channel_dim = -1
    s, state, m = neuron.sequence(laid_out(x * 1, layout), membrane=True)
    assert_batched_gradients_are_those_of_each([s, m, *state], [x, *neuron.parameters()])


@pytest.mark.parametrize("name", [name for name in NEURONS if name != "pmsn-global"])  # a mean over time
@all_backends
@pytest.mark.parametrize("membrane", [True, False])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_single_steps(again, membrane, backend, name):
    neuron = NEURONS[name]()
    neuron.backend = backend if not isinstance(neuron, MSN) else "auto"
    x = (2 * randn(3, 2, 3, dtype=F32)).requires_grad_()
    state = neuron.single(x[0].detach())[1] if again else None
    s, state, m = neuron.single(x[1], state, membrane=membrane)
    s2, state, _m = neuron.single(x[2], state)
    assert_batched_gradients_are_those_of_each([s, s2, m, *state], [x, *neuron.parameters()])


@all_backends
@pytest.mark.parametrize("name", ["msf", "msf-soft", "msf-threshold", "pmsn"])
def test_jacobians(name, backend):
    neuron = NEURONS[name]()
    neuron.backend = backend
    x = 2 * randn(3, 2, 3, dtype=F32)
    for run in (lambda x: neuron.sequence(x)[0], lambda x: neuron.single(x[0])[0]):
        assert_same(jacobian(run, x, vectorize=True), jacobian(run, x))
        assert_same(jacobian(run, x, vectorize=True, create_graph=True), jacobian(run, x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MSFNode(step_mode="m"),
        lambda: MSFNode(),
        lambda: PMSNNode(channels=3, step_mode="m"),
        lambda: PMSNNode(channels=3, channel_dim=2),
        lambda: ours.MSF(init_hidden=True),
        lambda: ours.PMSN(channels=3, init_hidden=True, sequence=True),
    ],
)
def test_nodes(make):
    x = (2 * randn(4, 2, 3, dtype=F32)).requires_grad_()
    node = make()
    outputs = [node(x * 1), node(x * 1)]
    assert_batched_gradients_are_those_of_each(outputs, [x])
