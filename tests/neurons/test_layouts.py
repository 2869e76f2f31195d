"""Memory layouts: outputs keep the input's, gradients come as those of a loop over time; eager, fake and compiled."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import all_backends, randn
from layouts import DENSE, SHAPES, laid_out
from msf_pmsn_plugins.neurons import MSF, ParallelIF
from subjects import CUSTOM, Triangle, build_pmsn
from tolerances import F32, F64, assert_close, assert_same

NEURONS = {
    "msf": lambda **kw: MSF(D=2, surrogate="atan", **kw),
    "msf-channels": lambda **kw: MSF(
        D=2, v_threshold=torch.tensor([0.5, 1.0, 1.5]), learn_threshold=True, **kw
    ),
    "msf-slopes": lambda **kw: MSF(D=2, surrogate=CUSTOM, **kw),
    "pmsn": lambda **kw: build_pmsn(3, **kw),
    "parallel_if": lambda **kw: ParallelIF(0.7, **kw),
}
all_neurons = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)
all_layouts = pytest.mark.parametrize("layout", SHAPES)


def input_in(layout, dtype=F32):
    return laid_out(2 * randn(*SHAPES[layout], dtype=dtype), layout)


@all_neurons
@all_layouts
@all_backends
@pytest.mark.parametrize("membrane", [True, False], ids=["membrane", "spikes"])
def test_outputs_keep_the_layout(membrane, layout, make, backend):
    """A convolution net in channels_last would be copied at every neuron."""
    x = input_in(layout)
    s, state, m = make(backend=backend).sequence(x, membrane=membrane)
    for out in (s, m):
        assert out is None or out.stride() == torch.empty_like(x).stride()
    if layout in DENSE:
        assert s.stride() == x.stride()
    whole = make(backend=backend).sequence(x.contiguous(), membrane=membrane)
    assert_same(s, whole[0])
    for ours, theirs in zip(state, whole[1], strict=True):
        assert_close(ours, theirs, "residual")  # PMSN in other blocks of lanes: products in another order


CONSUMERS = {
    "as_it_is": lambda s: s,
    "contiguous": lambda s: s.contiguous(),
    "tokens": lambda s: s.flatten(3).transpose(-1, -2),
    "batch_first": lambda s: s.transpose(0, 1),
    "mean": lambda s: s.mean(0),
}


def loop_over_time(x_seq):
    """An integrate-and-fire neuron in plain torch, step by step, as the hosts have them."""
    v, rows = torch.zeros_like(x_seq[0]), []
    for x in x_seq.unbind(0):
        v = v + (x - v) / 2
        s = Triangle.apply(v - 1)
        v = v * (1 - s.detach())
        rows.append(s)
    return torch.stack(rows)


def gradient_strides(function, x, consume):
    seen = []
    inner = x.detach().requires_grad_() * 1  # of a leaf, autograd would lay the gradient out anew
    inner.register_hook(lambda g: seen.append(g.stride()))
    out = consume(function(inner))
    out.backward(torch.ones(out.shape))
    return seen


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("name", ["msf", "pmsn"])
@all_backends
def test_gradients_lie_as_those_of_a_loop_over_time(name, layout, consumer, backend):
    """A batch norm in front sums in memory order, so its bits depend on it."""
    x, neuron, consume = input_in(layout), NEURONS[name](backend=backend), CONSUMERS[consumer]
    expected = gradient_strides(loop_over_time, x, consume)
    assert gradient_strides(lambda u: neuron(u)[0], x, consume) == expected


@all_neurons
@all_layouts
def test_fake_tensors_have_the_strides_of_real_ones(layout, make):
    """What torch.compile and torch.export believe: outputs, states, and the gradients to input and parameters."""
    neuron, x = make(), input_in(layout)

    def strides(x):
        x = x.requires_grad_()
        s, state, m = neuron.sequence(x, membrane=True)
        total = s.sum() + m.sum()
        grads = torch.autograd.grad(total, [x, *neuron.parameters()], torch.ones_like(total))
        return [(tuple(t.shape), t.stride(), t.dtype) for t in (s, m, *state, *grads)]

    real = strides(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = strides(mode.from_tensor(x.detach()))
    assert fake == real


@pytest.mark.parametrize("layout", ["channels_last", "batch_first"])
@pytest.mark.parametrize("kind", ["msf-channels", "pmsn"])
def test_compiled_equals_eager_in_layout_and_bits(kind, layout):
    neuron = NEURONS[kind]()
    x = input_in(layout)

    def run(function):
        seen = {}
        inner = x.detach().requires_grad_() * 1
        inner.register_hook(lambda g: seen.update(g=g))
        s, m = function(inner)
        (s + m).sum().backward()
        return s, m, seen["g"]

    def function(x):
        s, _state, m = neuron.sequence(x, membrane=True)
        return s, m

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (s, m, g), (s_, m_, g_) = run(compiled), run(function)
    for ours, theirs in ((s, s_), (m, m_)):
        assert_same(ours, theirs)
        assert ours.stride() == theirs.stride()
    assert_close(g, g_, "adjoint")


@all_neurons
@all_backends
@pytest.mark.parametrize("layout", ["channels_last", "tokens", "batch_innermost"])
def test_nothing_is_copied_on_the_way(layout, make, backend):
    """Dense inputs are walked as they lie: no op of torch copies or permutes a sequence around the kernel."""
    neuron, x = make(backend=backend), input_in(layout)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        copies = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            whole = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
            if name in ("clone", "copy_", "_to_copy", "contiguous") and any(
                t.numel() >= x.numel() for t in whole
            ):
                self.copies.append(name)
            return out

    with torch.no_grad(), Watch() as watch:
        neuron.sequence(x)
    assert watch.copies == []


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_a_state_in_another_layout_goes_on(dtype):
    """The state that one layout left is taken by a sequence in another."""
    neuron = MSF(D=2, decay=0.5)
    x = input_in("channels_last", dtype)
    _, state = neuron(x)
    s, _ = neuron(x.contiguous(), state)
    expected, _ = neuron(x.contiguous(), tuple(part.contiguous() for part in state))
    assert_same(s, expected)
