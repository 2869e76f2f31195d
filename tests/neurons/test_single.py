"""Single steps by the fast path, in training and in streams: each equals ``step``."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import (
    DTYPES,
    MSF_FLOATS,
    PMSN_FLOATS,
    Precision,
    Seen,
    Way,
    all_backends,
    assert_matches_step,
    both_dtypes,
    loop,
    randn,
    singles,
)
from layouts import SHAPES, laid_out
from msf_pmsn_plugins.neurons import MSF, Neuron
from msf_pmsn_plugins.surrogate import gives_slopes
from subjects import CUSTOM, STREAMS, build_pmsn
from tolerances import F32, assert_close, assert_same

all_neurons = pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
MAKERS = {
    "msf": MSF,
    "msf-slopes": lambda **kw: MSF(surrogate=CUSTOM, detach_reset=False, **kw),
    "pmsn": lambda **kw: build_pmsn(3, **kw),
    "pmsn-slopes": lambda **kw: build_pmsn(3, surrogate=CUSTOM, **kw),
}
both_neurons = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def way_of(neuron, backend):
    """A backend is asked for by name where the neuron has a kernel."""
    return Way("singles", backend if gives_slopes(neuron.surrogate) else "auto")


@all_neurons
@all_backends
@both_dtypes
def test_a_stream_of_single_steps_is_the_loop(p, backend, make):
    neuron = make().to(DTYPES[p])
    x = randn(12, 2, 3, dtype=DTYPES[p]) * 1.5
    precision = MSF_FLOATS if isinstance(neuron, MSF) else PMSN_FLOATS
    if (
        not isinstance(neuron, MSF)
        and neuron.v_threshold
        and getattr(neuron, "reset_mode", "") in ("serial", "cumulative")
    ):
        precision = Precision("none", "residual", "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")
    s, _, _ = assert_matches_step(neuron, x, None, precision, way_of(neuron, backend))
    assert s.any()


@all_neurons
@all_backends
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_streaming_is_training_without_gradients(mode, backend, make):
    neuron, x = make(), randn(12, 2, 3, dtype=F32) * 1.5
    way = way_of(neuron, backend)
    expected = way(neuron, x)
    with mode():
        streamed = way(neuron, x)
    for ours, theirs in ((streamed[0], expected[0]), (streamed[2], expected[2])):
        assert_same(ours, theirs)
    for ours, theirs in zip(streamed[1], expected[1], strict=True):
        assert_same(ours, theirs)


@both_neurons
@all_backends
@pytest.mark.parametrize("layout", SHAPES)
def test_single_steps_in_every_layout(layout, backend, make):
    neuron = make(backend=backend)
    x = laid_out(2 * randn(*SHAPES[layout], dtype=F32), layout)
    precision = MSF_FLOATS if isinstance(neuron, MSF) else PMSN_FLOATS
    assert_matches_step(neuron, x, None, precision, Way("singles", backend))
    s, _, m = neuron.single(x[0], membrane=True)
    for out in (s, m):
        assert out.stride() == torch.empty_like(x[0]).stride()


@both_neurons
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_steps_keep_a_float32_state(half, make):
    neuron = make()
    x = torch.round(32 * randn(6, 2, 3)) / 32
    s, state, m = singles(neuron, x.to(half))
    full = singles(neuron, x.to(half).float())
    assert (s.dtype, m.dtype) == (half, F32)
    assert_same(s.float(), full[0])
    for ours, theirs in zip(state, full[1], strict=True):
        assert_same(ours, theirs)


@both_neurons
@all_backends
def test_no_step_loop_runs(backend, make, monkeypatch):
    neuron, x = make(backend=backend), randn(2, 3, dtype=F32)

    def refuse(*args, **kwargs):
        raise AssertionError("the oracle ran")

    monkeypatch.setattr(Neuron, "_loop", refuse)
    monkeypatch.setattr(type(neuron), "step", refuse)
    _, state, _ = neuron.single(x.requires_grad_())
    neuron.single(x, state)[0].sum().backward()
    assert x.grad.any()


class Named(torch.overrides.TorchFunctionMode):
    """Does nothing, but is there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Sub(torch.Tensor):
    """A subclass of Tensor, whose operations its authors want to see."""


@both_neurons
@pytest.mark.parametrize("steps", ["single", "sequence"])
def test_counters_and_modes_see_the_op(steps, make):
    neuron, x = make(), randn(2, 3, dtype=F32)
    kind = "msf" if isinstance(neuron, MSF) else "pmsn"

    def run(x):
        return neuron.single(x)[0] if steps == "single" else neuron(x.unsqueeze(0))[0]

    run(x)  # what is remembered from before must not hide the op
    with Seen() as seen:
        run(x)
    assert f"msf_pmsn_plugins.{kind}.default" in seen.names
    with FlopCounterMode(display=False), Seen() as seen:
        run(x)
    assert f"msf_pmsn_plugins.{kind}.default" in seen.names
    with torch.profiler.profile() as profile:
        run(x)
    assert any(f"msf_pmsn_plugins::{kind}" in event.name for event in profile.events())


@both_neurons
def test_modes_and_subclasses_change_no_bit(make):
    neuron, x = make(), 2 * randn(2, 3, dtype=F32)
    expected = neuron.single(x)
    with Named():
        seen = neuron.single(x)
    sub = neuron.single(x.as_subclass(Sub))
    for other in (seen, sub):
        assert_same(other[0].as_subclass(torch.Tensor), expected[0])
        for ours, theirs in zip(other[1], expected[1], strict=True):
            assert_same(ours.as_subclass(torch.Tensor), theirs)


@both_neurons
def test_saved_tensors_pass_the_hooks(make):
    """Checkpointing and offloading pack what the backward needs: what comes back is used."""
    neuron, x = make(), (2 * randn(2, 3, dtype=F32)).requires_grad_()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        s, state, _ = neuron.single(x)
        s, _, _ = neuron.single(x, state)
    assert packed
    (g,) = torch.autograd.grad(s.sum(), x)
    s, state, _ = neuron.single(x)
    (expected,) = torch.autograd.grad(neuron.single(x, state)[0].sum(), x)
    assert_same(g, expected)


@both_neurons
def test_vmap_compile_and_make_fx_of_single_steps(make):
    from torch.fx.experimental.proxy_tensor import make_fx

    neuron, x = make(), 2 * randn(4, 2, 3, dtype=F32)
    with torch.no_grad():
        expected = torch.stack([neuron.single(step)[0] for step in x])
        assert_same(torch.vmap(lambda step: neuron.single(step)[0])(x), expected)
        torch._dynamo.reset()
        compiled = torch.compile(lambda step: neuron.single(step)[0], fullgraph=True, backend="aot_eager")
        assert_same(torch.stack([compiled(step) for step in x]), expected)
        traced = make_fx(lambda step: neuron.single(step)[0])(x[0])
        assert_same(torch.stack([traced(step) for step in x]), expected)
    gradient = torch.func.grad(lambda step: neuron.single(step)[0].sum())
    leaf = x[0].clone().requires_grad_()
    neuron.single(leaf)[0].sum().backward()
    assert_close(gradient(x[0]), leaf.grad, "adjoint")


@both_neurons
def test_a_wrong_state_is_refused_as_in_a_sequence(make):
    neuron = make()
    _, state, _ = neuron.single(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.single(torch.zeros(5, 3), state)
    with pytest.raises(TypeError, match="real numbers"):
        neuron.single(torch.zeros(4, 3, dtype=torch.complex64))
    with pytest.raises(TypeError, match="takes a torch.Tensor"):
        neuron.single([[1.0]])


@both_neurons
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_empty_steps(shape, make):
    neuron = make()
    x = torch.zeros(shape, requires_grad=True)
    s, _, m = neuron.single(x, membrane=True)
    assert s.shape == m.shape == x.shape
    s.sum().backward()
    assert x.grad.shape == x.shape


@both_neurons
def test_the_oracle_and_single_steps_can_be_mixed(make):
    """One takes the state that the other left."""
    neuron, x = make(), 2 * randn(6, 2, 3, dtype=F32)
    state, rows = neuron.initial_state(x[0]), []
    for t, step in enumerate(x):
        s, state, _ = neuron.step(step, state) if t % 2 else neuron.single(step, state)
        rows.append(s)
    assert_same(torch.stack(rows), loop(neuron, x)[0])
