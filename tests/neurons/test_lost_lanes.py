"""Lanes that are lost to NaN, inf or overflow: they are silent, and spoil nothing that others share."""

import math

import pytest
import torch

from helpers import DTYPES, all_backends, both_dtypes, loop, randn
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from subjects import CUSTOM, SOMAS, build_msf, build_pmsn, with_soma
from tolerances import F32, F64, assert_close, assert_same

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
all_bad = pytest.mark.parametrize("bad", BAD.values(), ids=BAD)

MSFS = {
    "decay": lambda **kw: MSF(D=2, learn_decay=True, decay=0.25, **kw),
    "decay-channels": lambda **kw: MSF(D=2, learn_decay=True, decay=torch.full((3,), 0.25), **kw),
    "threshold": lambda **kw: MSF(D=2, learn_threshold=True, **kw),
    "soft": lambda **kw: MSF(
        D=2, learn_decay=True, decay=0.25, learn_threshold=True, reset_mode="soft", **kw
    ),
    "amount": lambda **kw: MSF(D=2, reset_mode="soft", reset_step=torch.nn.Parameter(torch.ones(3)), **kw),
    "delayed": lambda **kw: MSF(
        D=2, learn_decay=True, decay=0.25, learn_threshold=True, reset_mode="soft", reset_delay=True, **kw
    ),
    "attached": lambda **kw: MSF(D=2, learn_decay=True, decay=0.25, detach_reset=False, **kw),
    "slopes": lambda **kw: MSF(D=2, learn_decay=True, decay=0.25, **kw | {"surrogate": CUSTOM}),
    "none": lambda **kw: MSF(D=2, learn_decay=True, decay=0.25, reset_mode="none", **kw),
}


def gradients(neuron, x):
    return torch.autograd.grad(neuron(x)[0].sum(), list(neuron.parameters()))


def assert_spared(grads, neuron, x, lane, since, tolerance):
    """Raise unless these are the gradients of the other lanes, with or without what the lost one gave before."""
    keep = [n for n in range(x.shape[1]) if n != lane]
    others = gradients(neuron, x[:, keep])
    early = gradients(neuron, x[:since, lane : lane + 1])
    for counted in (0, 1):
        try:
            for ours, other, before in zip(grads, others, early, strict=True):
                assert_close(ours, other + counted * before, tolerance)
        except AssertionError:
            if counted:
                raise
        else:
            return


@all_bad
@all_backends
@both_dtypes
@pytest.mark.parametrize("surrogate", ["rectangular", "atan", "gaussian"])
@pytest.mark.parametrize("kind", MSFS)
def test_a_lost_lane_leaves_the_shared_gradients_of_msf_alone(kind, surrogate, p, backend, bad):
    """A whole sample is lost; what is learned gets the gradient of the others, in every variant."""
    neuron = MSFS[kind](surrogate=surrogate, backend=backend).to(DTYPES[p])
    x = 2 * randn(20, 3, 3, dtype=DTYPES[p])
    x[5, 1] = bad
    grads = gradients(neuron, x)
    assert all(g.isfinite().all() for g in grads)
    if math.isnan(bad):  # through an inf a lane may live: it resets
        assert_spared(grads, neuron, x, 1, 5, "adjoint")


@all_backends
@pytest.mark.parametrize("name", [name for name, charge in CHARGES.items() if charge.rate == "w"])
def test_a_lost_lane_leaves_a_shared_w_alone(name, backend):
    neuron = build_msf(name, D=2, surrogate="atan", backend=backend).double()
    x = 2 * randn(20, 3, 3)
    x[5, 1] = math.nan
    assert_spared(gradients(neuron, x), neuron, x, 1, 5, "adjoint")


@all_bad
@all_backends
@both_dtypes
@pytest.mark.parametrize("steps", [20, 70])
@pytest.mark.parametrize("soma", SOMAS, ids=lambda soma: "-".join(map(str, soma)))
def test_a_lost_lane_leaves_the_parameters_of_pmsn_alone(soma, steps, p, backend, bad):
    neuron = with_soma(soma, channels=3, dtype=DTYPES[p], backend=backend)
    x = 2 * randn(steps, 3, 3, dtype=DTYPES[p])
    x[5, 1] = bad
    leaf = x.clone().requires_grad_()
    s, _ = neuron(leaf)
    assert not s[5:, 1].any()
    gx, *grads = torch.autograd.grad(s.sum(), [leaf, *neuron.parameters()])
    assert_spared(grads, neuron, x, 1, 5, "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")
    assert gx[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("part", ["r", "z"])
@all_backends
@pytest.mark.parametrize("steps", [1, 6, 70])
def test_nan_in_a_carried_state_is_a_lost_lane(steps, part, backend):
    neuron = build_pmsn(3, dtype=F64, backend=backend)
    x = 2 * randn(steps, 3, 3)
    r, z = (state.clone() for state in neuron.initial_state(x[0]))
    {"r": r, "z": z}[part][1] = math.nan
    s, _ = neuron(x, (r, z))
    assert not s[:, 1].any()
    grads = torch.autograd.grad(s.sum(), list(neuron.parameters()))
    assert_spared(grads, neuron, x, 1, 0, "pmsn_adjoint")


@all_backends
def test_global_context_ignores_padding(backend):
    neuron = PMSN(2, context="global", backend=backend)
    x = randn(6, 2, 2, dtype=F32)
    x[3:, 1] = math.nan  # padding of the second sample
    neuron(x, lengths=[6, 3])[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in neuron.parameters())


@all_backends
def test_a_lost_lane_of_the_global_context(backend):
    neuron = build_pmsn(3, dtype=F64, context="global", backend=backend)
    x = 2 * randn(20, 3, 3)
    x[5, 1] = math.nan
    assert_spared(gradients(neuron, x), neuron, x, 1, 0, "pmsn_adjoint")


# ---------------------------------------------------------------- large, and finite


@all_backends
@pytest.mark.parametrize("big", [1e12, 1e14, 1e16])
def test_one_large_drive_does_not_silence_a_neuron(big, backend):
    """The reset is a prefix sum of remainders: whole thresholds, however many, never enter it."""
    x = torch.full((2000, 1, 1), 0.3)
    x[0] = big
    neuron = ParallelIF(backend=backend)
    assert_same(neuron(x)[0], loop(neuron, x)[0])


@all_backends
@pytest.mark.parametrize("big", [2.0**40, 2.0**60])
@pytest.mark.parametrize("burst", [False, True, "published"])
def test_a_large_drive_goes_on_in_the_next_chunk(burst, big, backend):
    x = torch.full((200, 1, 1), 0.25)
    x[4] = big  # on an empty soma: a float32 residual would be swallowed
    neuron = ParallelIF(burst=burst, backend=backend)
    first, state = neuron(x[:50])
    second, _ = neuron(x[50:], state)
    assert_same(torch.cat([first, second]), loop(neuron, x)[0])


@all_backends
@pytest.mark.parametrize("big", [1e30, 1e37, 1e38, 3e38])
@pytest.mark.parametrize("steps", [20, 70])
def test_a_large_finite_input_gives_finite_gradients(steps, big, backend):
    neuron = PMSN(3, backend=backend)
    x = randn(steps, 2, 3, dtype=F32)
    x[1, 0, 0] = big
    neuron(x)[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in neuron.parameters())


@all_backends
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("surrogate", ["rectangular", "atan", "sigmoid", "gaussian", "triangle"])
def test_huge_inputs_give_msf_finite_shared_gradients(surrogate, reset, backend):
    neuron = MSF(
        D=3, learn_decay=True, learn_threshold=True, reset_mode=reset, surrogate=surrogate, backend=backend
    )
    x = randn(12, 2, 3, dtype=F32)
    x[1, 0, 0], x[4, 1, 1] = 3e38, -3e38
    neuron(x)[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in neuron.parameters())
