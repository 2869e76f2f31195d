"""Nothing waits for the device: sequences and steps could be captured in a CUDA graph."""

import contextlib

import pytest
import torch

from helpers import randn
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.neurons.msf import op as msf_op
from msf_pmsn_plugins.neurons.pmsn import op as pmsn_op
from networks import both_hosts, network
from subjects import build_pmsn
from tolerances import F32, assert_same

# ---------------------------------------------------------------- CUDA graphs


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Raise where a CUDA graph could not be captured: at a copy between the host and a device.

    The device is ``meta``, so no GPU is needed: its tensors have no values, and reading one, or a size that depends on
    one, raises by itself.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [
            t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)
        ]
        places = {t.device.type for t in tensors if t.dim()}  # numbers are passed along with the kernel
        assert len(places) <= 1, f"{func} works on {places}"
        return out


@pytest.fixture
def kernels(monkeypatch):
    """The code of the torch backend runs on meta tensors too, in place of the shapes that its custom ops declare."""
    for module, names in (
        (msf_op, ("_msf_op", "_msf_backward_op")),
        (pmsn_op, ("_pmsn_op", "_pmsn_backward_op")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name)._init_fn)
    # only sets flags, and autocast does not know the device
    monkeypatch.setattr(backends.load("torch", "pmsn"), "_full_precision", lambda x: contextlib.nullcontext())


CAPTURED = {
    "msf": lambda: MSF(),
    "msf-atan-through-reset": lambda: MSF(surrogate="atan", detach_reset=False),
    "msf-learned": lambda: MSF(decay=0.5, learn_decay=True),
    "pmsn": lambda: PMSN(3),
    "pmsn-burst": lambda: PMSN(3, burst=True, coeff=0.2),
    "pmsn-cumulative": lambda: PMSN(3, reset_mode="cumulative"),
    "parallel-if": lambda: ParallelIF(),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_nothing_waits_for_the_device(name, kernels):
    """Forward and backward of sequence and step could be captured in a CUDA graph."""
    neuron = CAPTURED[name]().to("meta")
    for steps, membrane in ((70 if isinstance(neuron, PMSN) else 5, False), (5, True)):
        x_seq = torch.empty(steps, 4, 3, device="meta").requires_grad_()
        with NoWaiting():
            s_seq, state, _m = neuron.sequence(x_seq, membrane=membrane)
            s_seq, _state, _m = neuron.sequence(s_seq, state)
            torch.autograd.grad(s_seq.sum(), [x_seq, *neuron.parameters()])
    if name != "pmsn-burst":
        with NoWaiting():
            s, state, _m = neuron.step(x_seq[0], neuron.initial_state(x_seq[0]))
            s, state, _m = neuron.step(s, state)
            torch.autograd.grad(s.sum(), x_seq)


@both_hosts
def test_nothing_in_the_nodes_waits_for_the_device(host, kernels):
    net = network(host).to("meta")
    x_seq = torch.empty(5, 4, 3, device="meta")
    with NoWaiting():
        torch.autograd.grad(net(x_seq).sum(), list(net.parameters()))


def test_reading_a_length_waits_for_the_device(kernels):
    """The one thing that a CUDA graph cannot hold, and proof that the tests above can fail."""
    x_seq = torch.empty(70, 4, 3, device="meta")
    lengths = torch.empty(4, dtype=torch.int64, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)unique|item|meta"):
        PMSN(3).to("meta").sequence(x_seq, lengths=lengths)
    with pytest.raises(AssertionError, match="works on"), NoWaiting():
        torch.empty(3).to("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_a_cuda_graph_replays_the_neuron(make):
    neuron = make().cuda()
    x_seq = (2 * randn(70, 4, 3, dtype=F32)).cuda()
    expected = neuron(x_seq)[0]
    graph = torch.cuda.CUDAGraph()
    held = torch.zeros_like(x_seq)
    with torch.no_grad():
        neuron(held)  # warm up
        with torch.cuda.graph(graph):
            s_seq, _ = neuron(held)
    held.copy_(x_seq)
    graph.replay()
    assert_same(s_seq, expected)
