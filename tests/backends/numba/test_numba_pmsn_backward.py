"""PMSN of the Numba backend, backward, against autograd through loops of the oracle, and laws of its own."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import (
    SOMAS,
    Problem,
    complex_randn,
    drives,
    paired,
    pmsn_grads,
    pmsn_loop,
    pmsn_problem,
    randn,
)

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.numba.pmsn import pmsn_backward, pmsn_forward
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate, slope
from msf_pmsn_plugins.tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
from tolerances import F32, F64, assert_close, assert_same

all_somas = pytest.mark.parametrize("settings", SOMAS.values(), ids=SOMAS)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def with_surrogate(settings, name):
    return replace(settings, surrogate=name, width=Surrogate(name).width)


def backward(grads, problem, settings, lengths=None, slopes=None):
    return pmsn_backward(
        grads, problem.x, problem.x, problem.state, problem.weights, lengths, slopes, settings
    )


def flat(gradients):
    gx, state, weights = gradients
    return gx, *state, *weights


def both_gradients(problem, settings, dtype):
    """Ours and those of autograd through the loop in float64, of a loss that uses every output; the loop's spikes."""
    cumulative = settings.reset_mode == "cumulative"
    grads = pmsn_grads(problem, F64, cumulative)
    leaves = Problem.of(t.requires_grad_() for t in problem.double().tensors)
    s, last, m = pmsn_loop(leaves, settings)
    loss = (s * grads.s).sum() + (drives(leaves) * grads.y).sum() + (m * grads.m).sum()
    loss = loss + (last.z * grads.z.conj()).real.sum()
    if cumulative:
        loss = loss + (last.r * grads.r).sum()
    expected = torch.autograd.grad(loss, leaves.tensors, allow_unused=True)
    expected = [
        torch.zeros_like(t) if g is None else g for g, t in zip(expected, leaves.tensors, strict=True)
    ]
    given = (None if g is None else g.to(dtype.to_complex() if g.is_complex() else dtype) for g in grads)
    return flat(backward(PMSNGrads(*given), problem, settings)), expected, s.detach()


@all_somas
@pytest.mark.parametrize("lanes", [(3, 5, 1), (2, 3, 43)], ids=str)
def test_gradients_are_those_of_the_loop(lanes, settings):
    for (modes, pairs), name in zip(
        ((0, False), (1, False), (3, True), (4, True), (4, False)), itertools.cycle(SURROGATES), strict=False
    ):
        problem = pmsn_problem(12, lanes, modes, pairs=pairs)
        ours, expected, _s = both_gradients(problem, with_surrogate(settings, name), F64)
        for g, g_ in zip(ours, expected, strict=True):
            assert_close(g, g_, "pmsn_adjoint")


@all_somas
def test_gradients_in_float32(settings):
    problem = pmsn_problem(12, (2, 3, 5), 4, F32, pairs=settings.reset_mode == "floor")
    s, *_ = pmsn_forward(problem.x, problem.state, problem.weights, None, settings)
    ours, expected, s_ = both_gradients(problem, with_surrogate(settings, "atan"), F32)
    # without a flip, so that the gradients are of the same spikes
    assert_same(s.double(), s_)
    for g, g_ in zip(ours, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")


@all_somas
def test_given_slopes_take_the_place_of_a_surrogate(settings):
    problem = pmsn_problem(12, (2, 3, 5), 4)
    named = with_surrogate(settings, "atan")
    _s, _y, m, _ = pmsn_forward(
        problem.x, problem.state, problem.weights, None, replace(settings, keep_membrane=True)
    )
    theta = settings.v_threshold
    u = m - theta
    if settings.burst == "nearest":
        u = m - theta * torch.round(m / theta).clamp(min=1)
    elif settings.burst == "sawtooth":
        u = torch.fmod((m - theta).abs(), theta)
    grads = pmsn_grads(problem)
    slopes = Slopes(slope(u, named.surrogate, named.width))
    ours = backward(grads, problem, replace(settings, surrogate=""), slopes=slopes)
    for g, g_ in zip(flat(ours), flat(backward(grads, problem, named)), strict=True):
        assert_close(g, g_, "pmsn_adjoint")


def test_conjugate_modes_are_halved_without_a_trace():
    """The same bits where one mode of another channel, or one state, spoils the symmetry."""
    problem = pmsn_problem(40, (2, 3, 17), 4, F32, pairs=True)
    x, state, (e, w, d) = problem.x, problem.state, problem.weights
    spoiled = w.clone()
    spoiled[2, 0] += 1e-3
    gs, gz = randn(*x.shape, seed=1, dtype=F32), paired(complex_randn(*state.z.shape, seed=2, dtype=F32))
    grads, settings, results = (
        PMSNGrads(gs, None, None, None, gz),
        PMSNSettings(surrogate="atan", width=2.0),
        [],
    )
    for weights in (PMSNWeights(e, w, d), PMSNWeights(e, spoiled, d)):
        s, y, _m, last = pmsn_forward(x, state, weights, None, settings)
        gx, g_state, g_weights = pmsn_backward(grads, x, y, state, weights, None, None, settings)
        sequences = [t[:, :, :2] for t in (s, y, gx)]
        results.append([*sequences, *(t[:, :2] for t in (*last, g_state.z)), *(g[:2] for g in g_weights)])
    for half, full in zip(*results, strict=True):
        assert_same(half, full)


@all_somas
def test_lengths_are_separate_runs(settings):
    problem = pmsn_problem(9, (11, 3, 7), 4)
    x, state, weights = problem.x, problem.state, problem.weights
    settings = replace(settings, keep_membrane=True)
    lengths = torch.arange(11) % 10
    grads = pmsn_grads(problem)
    forward = pmsn_forward(x, state, weights, lengths, settings)
    gx, g_state, g_weights = backward(grads, problem, settings, lengths)
    sums = [torch.zeros_like(g) for g in g_weights]
    for n, steps in enumerate(lengths.tolist()):
        row = slice(n, n + 1)
        short = Problem(x[:steps, row], PMSNState(state.r[row], state.z[row]), weights)
        here = PMSNGrads(*(g[:steps, row] for g in grads[:3]), grads.r[row], grads.z[row])
        *outputs, last = pmsn_forward(short.x, short.state, weights, None, settings)
        gx_, g_state_, g_weights_ = backward(here, short, settings)
        for whole, part in zip((*forward[:3], gx), (*outputs, gx_), strict=True):
            assert_same(whole[:steps, row], part)
            assert not whole[steps:, row].any()
        for whole, part in zip((*forward[3], *g_state), (*last, *g_state_), strict=True):
            assert_same(whole[row], part)
        sums = [total + g for total, g in zip(sums, g_weights_, strict=True)]
    for total, g in zip(sums, g_weights, strict=True):
        assert_close(g, total, "pmsn_adjoint")


def test_the_gradient_of_the_state_is_made_if_asked_for():
    problem = pmsn_problem(5, (2, 3, 7), 4)
    grads, settings = pmsn_grads(problem, cumulative=False), PMSNSettings()
    gx, g_state, g_weights = backward(grads, problem, settings)
    without = backward(grads, problem, replace(settings, state_grad=False))
    assert without[1].z.numel() == 0
    for ours, expected in zip((without[0], *without[2]), (gx, *g_weights), strict=True):
        assert_same(ours, expected)
    assert g_state.z.shape == problem.state.z.shape


@pytest.mark.parametrize(("steps", "lanes"), [(4096, 16), (1 << 18, 1)])
def test_gradients_stay_accurate_over_long_times(steps, lanes):
    """The same small addend at every step: a float32 sum would round each of them the same way."""
    a = np.array([[0.9999 * np.exp(0.001j), 0.99 * np.exp(0.1j), 0.5]])
    e = torch.from_numpy(a - 1).to(torch.complex64)
    w, d = torch.ones(1, 3, dtype=torch.complex64), torch.ones(1)
    x = torch.ones(steps, lanes, 1, 1)
    r, z = torch.zeros(lanes, 1, 1), torch.zeros(lanes, 1, 1, 3, dtype=torch.complex64)
    problem, settings, gy = Problem.of((x, r, z, e, w, d)), PMSNSettings(reset_mode="none"), x / 3
    *_, single = backward(PMSNGrads(None, gy, None, None, None), problem, settings)
    *_, double = backward(PMSNGrads(None, gy.double(), None, None, None), problem.double(), settings)
    for ours, expected in zip(single, double, strict=True):
        assert_close(ours, expected, "pmsn_adjoint")
    assert_close(single.d, torch.tensor([steps * lanes / 3], dtype=F64), "pmsn_adjoint")
