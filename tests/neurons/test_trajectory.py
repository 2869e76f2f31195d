"""The state that every step left, from the fused pass: equal to a loop of ``step``, with its gradients."""

import pytest
import torch

from helpers import DTYPES, all_backends, poisoned_empty, randn
from layouts import SHAPES, laid_out
from msf_pmsn_plugins.lengths import valid_steps
from msf_pmsn_plugins.neurons import MSF, Neuron
from msf_pmsn_plugins.surrogate import gives_slopes
from subjects import CUSTOM, STREAMS, build_msn, build_pmsn
from tolerances import F32, F64, assert_close, assert_same

X = 1.5 * randn(7, 4, 3)
LENGTHS = torch.tensor([7, 3, 0, 1])
MASK = torch.rand(7, 4, generator=torch.Generator().manual_seed(1)) < 0.6
VALID = {"all": None, "lengths": LENGTHS, "mask": MASK}
EVERY = {
    **STREAMS,
    "msf-hard-attached": lambda: MSF(D=3, decay=0.3, detach_reset=False, surrogate="atan", v_reset=-0.2),
    "msf-hard-one": lambda: MSF(D=1, decay=0.3, detach_reset=False, surrogate="atan"),
    "msf-hard-slopes": lambda: MSF(D=2, decay=0.3, detach_reset=False, surrogate=CUSTOM),
    "msf-soft-learned": lambda: MSF(
        D=2, v_threshold=0.7, learn_threshold=True, reset_mode="soft", detach_reset=False, surrogate="atan"
    ),
    "msf-retake-learned": lambda: MSF(
        D=2, decay=0.6, learn_decay=True, reset_mode="soft", retake=True, surrogate="atan"
    ),
    "msf-no-reset": lambda: MSF(D=2, decay=0.3, reset_mode="none"),
    "msn": build_msn,
}


def by_steps(neuron, x_seq, state, valid):
    """Spikes, the last state and those after each step, from a loop of ``step``."""
    live_seq = torch.ones(x_seq.shape[:2], dtype=torch.bool) if valid is None else valid_steps(x_seq, valid)
    s_seq, states = [], []
    for x, live in zip(x_seq, live_seq, strict=True):
        live = live.reshape(-1, *[1] * (x.dim() - 1))
        s, after, _ = neuron.step(torch.where(live, x, 0.0), state)
        state = tuple(
            torch.where(live if new.dim() == x.dim() else live.unsqueeze(-1), new, old)
            for new, old in zip(after, state, strict=True)
        )
        s_seq.append(torch.where(live, s, 0.0))
        states.append(state)
    return (
        torch.stack(s_seq),
        state,
        dict(zip(neuron.state_names, map(torch.stack, zip(*states, strict=True)), strict=True)),
    )


def gradients(neuron, leaves, s_seq, last, kept):
    """Of a random functional of all that came out, to the input, the first state and the parameters."""
    numbered = [(i, out) for i, out in enumerate((s_seq, *last, *kept.values())) if out.requires_grad]
    outputs = [out for _, out in numbered]
    ups = [randn(*out.shape, seed=i, dtype=out.dtype) for i, out in numbered]
    leaves = [leaf for leaf in (*leaves, *neuron.parameters()) if leaf.requires_grad]
    found = torch.autograd.grad(outputs, leaves, ups, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def begin(neuron, x):
    """An input and a first state that want gradients."""
    x = x.detach().clone().requires_grad_()
    start = neuron.initial_state(x[0])
    state = tuple(
        (part + 0.3 * randn(*part.shape, seed=5, dtype=part.dtype).abs()).detach() for part in start
    )
    for name, part in zip(neuron.state_names, state, strict=True):
        part.requires_grad_(name != "r" or getattr(neuron, "reset_mode", "") == "cumulative")
    return x, state


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("valid", VALID.values(), ids=VALID)
@all_backends
def test_states_are_those_of_a_loop_of_steps(valid, backend, make):
    neuron = make().double()
    x, state = begin(neuron, X)
    expected = by_steps(neuron, x, state, valid)
    theirs = gradients(neuron, (x, *state), *expected)
    if not isinstance(neuron, type(build_msn())) and gives_slopes(neuron.surrogate):
        neuron.backend = backend
    with poisoned_empty():
        found = neuron.trajectory(x, state, valid)
        ours = gradients(neuron, (x, *state), *found)
    assert_same(found[0], expected[0])
    assert found[2].keys() == expected[2].keys()
    for name, seq in found[2].items():
        assert_close(seq, expected[2][name], "residual")
    for g, g_ref in zip(ours, theirs, strict=True):
        assert_close(g, g_ref, "pmsn_adjoint")
    with torch.no_grad():
        streamed = neuron.trajectory(x, state, valid)
    assert_same(streamed[0], found[0])
    for name, seq in streamed[2].items():
        assert_same(seq, found[2][name])
    s_seq, last, _ = neuron.sequence(x, state, lengths=valid)
    assert_same(found[0], s_seq)
    for part, expected_part in zip(found[1], last, strict=True):
        assert_same(part, expected_part)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("p", DTYPES)
def test_the_last_of_them_is_the_state(p, make):
    neuron, x = make().to(DTYPES[p]), X.to(DTYPES[p])
    _, last, kept = neuron.trajectory(x)
    with torch.no_grad():
        _, _, streamed = neuron.trajectory(x)
    for name, part in zip(neuron.state_names, last, strict=True):
        assert_same(kept[name][-1], part)
        assert_same(kept[name], streamed[name])


@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
@pytest.mark.parametrize("layout", SHAPES)
@all_backends
def test_states_in_every_layout(layout, backend, make):
    neuron = make()
    neuron.backend = backend
    x = laid_out(2 * randn(*SHAPES[layout], dtype=F32), layout)
    plain = neuron.trajectory(x.contiguous())
    found = neuron.trajectory(x)
    assert_same(found[0], plain[0])
    for name, seq in found[2].items():
        assert_close(seq, plain[2][name], "residual")


@pytest.mark.parametrize("make", [MSF, lambda: build_pmsn(3)], ids=["msf", "pmsn"])
def test_no_step_runs(make, monkeypatch):
    neuron = make()

    def refuse(*args, **kwargs):
        raise AssertionError("the oracle ran")

    monkeypatch.setattr(Neuron, "_loop", refuse)
    monkeypatch.setattr(Neuron, "_trajectory", refuse)
    monkeypatch.setattr(type(neuron), "step", refuse)
    assert neuron.trajectory(X.float())[2].keys() == set(neuron.state_names)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_an_empty_sequence_leaves_nothing(make):
    neuron = make()
    s_seq, last, kept = neuron.trajectory(torch.zeros(0, 4, 3))
    assert s_seq.shape == (0, 4, 3)
    for name, part in zip(neuron.state_names, last, strict=True):
        assert kept[name].shape == (0, *part.shape)


def test_parts_of_the_state_can_be_asked_for():
    neuron = build_pmsn(3, dtype=F64)
    assert neuron.trajectory(X, names=["z"])[2].keys() == {"z"}
    assert neuron.trajectory(X, names=[])[2] == {}


def test_the_mean_over_time_leaves_no_state():
    with pytest.raises(ValueError, match="no state is left by one of them"):
        build_pmsn(3, context="global").trajectory(X.float())


@all_backends
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "make", [lambda: MSF(D=3, decay=0.3), lambda: MSF(D=2, reset_mode="soft"), build_pmsn]
)
def test_half_precision_is_float32_with_its_spikes_rounded(make, dtype, grad, backend):
    """States are float32 whatever the input is."""
    neuron = make()
    neuron.backend = backend
    with torch.set_grad_enabled(grad):
        x_seq = X.to(dtype).requires_grad_(grad)
        s_seq, last, kept = neuron.trajectory(x_seq)
        wide, last_wide, kept_wide = neuron.trajectory(x_seq.float())
    assert s_seq.dtype == dtype
    assert_same(s_seq, wide.to(dtype))
    assert kept.keys() == kept_wide.keys()
    for one, two in zip((*last, *kept.values()), (*last_wide, *kept_wide.values()), strict=True):
        assert_same(one, two)
    if grad:
        gradients = [torch.autograd.grad(s.float().sum(), x_seq)[0] for s in (s_seq, wide)]
        assert gradients[0].dtype == dtype
        assert_same(*gradients)
