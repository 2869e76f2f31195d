"""Fuzzed calls: each raises a documented error or gives the loop's result; finite input never gives NaN."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import ON_CPU, examples, loop
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.neurons.pmsn import BURSTS
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import floating
from subjects import SOMAS
from tolerances import F64, assert_close

DOCUMENTED = (ValueError, TypeError)
numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf")]),
)
good = st.floats(0.125, 2, width=32)
dtypes = st.sampled_from(
    [torch.float32, F64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
)
shapes = st.lists(st.integers(0, 4), min_size=0, max_size=5)
lengths = st.one_of(st.none(), st.none(), st.lists(st.integers(-1, 5), max_size=4))


@st.composite
def inputs(draw):
    """Mostly a sequence that can run, sometimes anything."""
    usual = st.tuples(st.integers(0, 5), st.integers(1, 3), st.just(3))
    shape = draw(shapes if draw(st.integers(0, 6)) == 0 else usual)
    dtype = draw(dtypes if draw(st.integers(0, 6)) == 0 else st.sampled_from([torch.float32, F64]))
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * 2
    if x.dim() > 2 and draw(st.integers(0, 4)) == 0:
        x = x.transpose(0, 1)
    return x.to(dtype)


kernels = st.sampled_from(["auto", *ON_CPU])
flags = st.booleans()
surrogates = st.sampled_from([None, *SURROGATES])

# What can run, and what may stand in its place.
MSF_USUAL = {
    "D": st.integers(1, 5),
    "decay": st.floats(0, 1),
    "input_scale": good,
    "v_threshold": good,
    "threshold_step": good,
    "v_reset": st.floats(-1, 1),
    "reset_mode": st.sampled_from(["hard", "soft", "none"]),
    "detach_reset": flags,
    "surrogate": surrogates,
    "charge": st.sampled_from([*CHARGES]),
    "tau": st.floats(1.125, 8),
    "w": st.floats(-3, 3),
    "backend": kernels,
}
MSF_ODD = {
    "D": st.sampled_from([0, -1, 2.5, True, 40]),
    "decay": numbers,
    "input_scale": numbers,
    "v_threshold": numbers,
    "threshold_step": numbers,
    "v_reset": numbers,
    "reset_mode": st.sampled_from(["zero", None]),
    "surrogate": st.sampled_from(["atna", 3]),
    "charge": st.sampled_from(["lfi", ("lif", "if"), ()]),
    "tau": st.one_of(st.none(), numbers),
    "w": st.one_of(st.none(), numbers),
    "thresholds": st.lists(numbers, max_size=4),
    "learn_decay": st.just(True),
    "channel_dim": st.sampled_from([0, 9, (1, 2)]),
    "backend": st.sampled_from(["gpu", None]),
}
PMSN_USUAL = {
    "channels": st.sampled_from([None, 3]),
    "compartments": st.sampled_from([2, 3, 5, 17]),
    "channel_dim": st.sampled_from([1, -1]),
    "v_threshold": good,
    "surrogate": surrogates,
    "init": st.sampled_from(["sequence", "shd", "imagenet"]),
    "soma": st.sampled_from(SOMAS),
    "coeff": good,
    "context": st.sampled_from(["local", "local", "global"]),
    "dt_scale": good,
    "backend": kernels,
}
PMSN_ODD = {
    "channels": st.sampled_from([0, -1, 2.0, 5]),
    "compartments": st.sampled_from([0, 1, 4, 18, 5.0]),
    "channel_dim": st.sampled_from([0, 7, (1, 2), (2, 1), "c", ()]),
    "v_threshold": numbers,
    "surrogate": st.sampled_from(["atna", 3]),
    "init": st.sampled_from(["s4", None]),
    "reset_mode": st.sampled_from(["hard", None]),
    "burst": st.sampled_from([None, "nearest", 2]),
    "coeff": numbers,
    "residual": st.sampled_from(["double", None]),
    "tied": st.just(True),
    "context": st.sampled_from(["all", None]),
    "dt_scale": numbers,
    "backend": st.sampled_from(["gpu", None]),
}


@st.composite
def settings(draw, usual, odd):
    """Settings that can run, with up to two odd ones among them."""
    chosen = {name: draw(strategy) for name, strategy in usual.items()}
    if "soma" in chosen:
        chosen |= zip(("reset_mode", "burst", "residual"), chosen.pop("soma"), strict=True)
    for name in draw(st.lists(st.sampled_from([*odd]), max_size=2)) if draw(st.integers(0, 2)) == 0 else []:
        chosen[name] = draw(odd[name])
    return chosen


msfs, pmsns = settings(MSF_USUAL, MSF_ODD), settings(PMSN_USUAL, PMSN_ODD)


def attempt(make, x, valid):
    """The neuron and its results, or None where a documented error was raised."""
    try:
        neuron = make()
        return neuron, *neuron.sequence(x, membrane=True, lengths=valid)
    except DOCUMENTED as error:
        message = str(error)
    assert len(message) > 15  # it says something
    return None


def check(result, x, valid):
    neuron, s, state, m = result
    assert s.shape == m.shape == x.shape
    assert s.dtype == floating(x).dtype
    assert not any(part.isnan().any() for part in (s, m, *state))
    assert (s >= 0).all()
    assert (s == s.round()).all()
    return neuron


@examples(250)
@given(kwargs=msfs, x=inputs(), valid=lengths)
def test_any_msf(kwargs, x, valid):
    result = attempt(lambda: MSF(**kwargs), x, valid)
    if result is None:
        return
    neuron = check(result, x, valid)
    live = None if valid is None else torch.tensor(valid, dtype=torch.int64)
    s, _, m = loop(neuron, x, lengths=live)
    assert torch.equal(s, result[1])
    assert torch.equal(m, result[3])


@examples(250)
@given(kwargs=pmsns, x=inputs(), valid=lengths)
def test_any_pmsn(kwargs, x, valid):
    result = attempt(lambda: PMSN(**kwargs), x, valid)
    if result is None:
        return
    neuron = check(result, x, valid)
    if kwargs["context"] == "global" or x.numel() == 0:
        return
    neuron, live = neuron.double(), None if valid is None else torch.tensor(valid, dtype=torch.int64)
    _, _, m = loop(neuron, x.double(), lengths=live)
    _, _, ours = neuron.sequence(x.double(), membrane=True, lengths=valid)
    agree = ((m - ours).abs() <= 1e-9 * (1 + m.abs())).all(0)
    assert agree.float().mean() > 0.6  # a tie that one side rounds away leaves its lane a threshold off


@examples(60)
@given(x=inputs(), theta=numbers, burst=st.sampled_from([*BURSTS, "yes"]), valid=lengths)
def test_any_parallel_if(x, theta, burst, valid):
    result = attempt(lambda: ParallelIF(theta, burst=burst), x, valid)
    if result is not None:
        check(result, x, valid)


@examples(250)
@given(kwargs=st.one_of(msfs, pmsns), x=inputs())
def test_gradients_of_finite_input_are_finite(kwargs, x):
    make = PMSN if "compartments" in kwargs else MSF
    if not x.is_floating_point():
        return
    x = x.detach().requires_grad_()
    result = attempt(lambda: make(**kwargs), x, None)
    if result is None or not result[1].requires_grad:
        return
    neuron, s, _, m = result
    s.float().sum().backward()
    assert torch.isfinite(x.grad).all()
    for name, parameter in neuron.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    assert_close(m, m, "drive")
