"""PMSN of the Numba backend, forward, against loops of the oracle: every soma, odd sizes, exactness, chunks."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import SOMAS, Problem, drives, only_spikes, pmsn_loop, pmsn_problem, randn

from helpers import poisoned_empty
from msf_pmsn_plugins.backends.numba.pmsn import pmsn_backward, pmsn_forward
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.tensors import PMSNState
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
all_somas = pytest.mark.parametrize("settings", SOMAS.values(), ids=SOMAS)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def forward(problem, settings, lengths=None):
    return pmsn_forward(problem.x, problem.state, problem.weights, lengths, settings)


@all_somas
@pytest.mark.parametrize("lanes", [(1, 1, 1), (3, 5, 1), (2, 3, 43), (1, 1, 300)], ids=str)
def test_forward_is_the_loop(lanes, settings):
    for modes, pairs in ((0, False), (1, False), (3, True), (4, True), (4, False), (16, True)):
        problem = pmsn_problem(20, lanes, modes, pairs=pairs)
        s, y, m, last = forward(problem, replace(settings, keep_membrane=True))
        s_, last_, m_ = pmsn_loop(problem, settings)
        assert_same(s, s_)
        assert_close(y, drives(problem), "drive")
        assert_close(m, m_, "residual")
        assert_close(last.r, last_.r, "residual")
        assert_close(last.z, last_.z, "drive")
        assert s.any() or lanes == (1, 1, 1)
        only, *nothing, _ = forward(problem, replace(settings, keep_drive=False))
        assert_same(only, s)
        assert [part.shape for part in nothing] == [(0,), (0,)]


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "free"])
def test_flips_of_float32_are_proved(pairs):
    problem, settings = pmsn_problem(784, (4, 8, 5), 4, F32, pairs), PMSNSettings()
    problem.state = PMSNState(torch.zeros_like(problem.state.r), problem.state.z)
    s, y, *_ = forward(problem, settings)
    wide = problem.double()
    assert_flips_proved(s, y, forward(wide, settings)[0], drives(wide))
    assert 0.05 < s.mean() < 0.95


@all_somas
def test_it_is_exact_where_float32_is(settings):
    """Dyadic numbers: no rounding anywhere, so any order of operations gives the bits of the loop."""
    settings = replace(settings, v_threshold=0.5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (9, 2, 3, 7), generator=generator) / 4
    e = torch.tensor([[0.5, 0.5j, -0.5, -0.5j]] * 3, dtype=torch.complex64) - 1
    re, im = (torch.randint(-4, 5, (3, 4), generator=generator) / 2 for _ in range(2))
    d = torch.tensor([1.0, -0.5, 2.0])
    r, z = torch.zeros(2, 3, 7), torch.zeros(2, 3, 7, 4, dtype=torch.complex64)
    problem = Problem.of((x, r, z, e, torch.complex(re, im), d))
    s, _y, _m, last = forward(problem, settings)
    s_, last_, _m = pmsn_loop(problem, settings)
    assert_same(s, s_)
    assert_same(last.r, last_.r)
    assert_same(last.z, last_.z)


@pytest.mark.parametrize("burst", ["nearest", "sawtooth"])
@both_dtypes
def test_halves_go_to_the_even_neighbour(dtype, burst):
    """In the residual of fixed point and in the nearest threshold. Without modes, x is the drive."""
    none = torch.zeros(1, 0, dtype=dtype.to_complex())
    x = torch.cat([torch.arange(17) / 2, (2 * torch.arange(9) + 1) * 2.0**-25, torch.tensor([1e13, 0.5])])
    x = x.to(dtype)[:, None, None, None]
    r, d = torch.zeros(1, 1, 1, dtype=dtype), torch.ones(1, dtype=dtype)
    problem = Problem.of((x, r, none[None, None], none, none, d))
    for reset, fixed in (("floor", True), ("floor", False), ("serial", False)):
        settings = PMSNSettings(1.0, reset, burst, fixed, "atan", 2.0)
        s, y, _m, last = forward(problem, settings)
        s_, last_, _m = pmsn_loop(problem, settings)
        assert_same(s, s_)
        assert_same(last.r, last_.r)
        leaf = Problem.of((x.clone().requires_grad_(), *problem.tensors[1:]))
        (expected,) = torch.autograd.grad(pmsn_loop(leaf, settings)[0].sum(), leaf.x)
        ones = only_spikes(torch.ones_like(x))
        gx, *_ = pmsn_backward(ones, x, y, problem.state, problem.weights, None, None, settings)
        assert_close(gx, expected, "slope")


def test_slow_modes_keep_their_digits():
    """At dt = 1e-3 a rounded factor beside 1 would err the same way at every step; ``e = a - 1`` does not."""
    steps, dt = 1 << 14, 1e-3
    wide = torch.expm1(
        torch.complex(torch.tensor([[-0.5]], dtype=F64), torch.tensor([[3.0]], dtype=F64)) * dt
    )
    x, one = randn(steps, 8, 1, 1), torch.ones(1, 1, dtype=torch.complex128)
    r, z = torch.zeros(8, 1, 1, dtype=F64), torch.zeros(8, 1, 1, 1, dtype=torch.complex128)
    problem = Problem.of((x, r, z, wide, one * dt, torch.zeros(1, dtype=F64)))
    single = Problem.of(t.to(torch.complex64 if t.is_complex() else F32) for t in problem.tensors)
    # the float32 problem in double precision: what is left is the rounding of the walk
    expected = forward(single.double(), PMSNSettings())[1].cumsum(0)
    error = (forward(single, PMSNSettings())[1].double().cumsum(0) - expected).abs().max()
    assert error < 3e-6 * expected.abs().max()


@all_somas
@pytest.mark.parametrize("modes", [0, 4])
def test_chunks_are_the_whole_to_the_bit(modes, settings):
    """Cut anywhere, in any batch: a lane's bits depend on its inputs alone."""
    problem = pmsn_problem(50, (5, 3, 7), modes, F32)
    x, state, weights = problem.x, problem.state, problem.weights
    settings = replace(settings, keep_membrane=True, surrogate="atan", width=2.0)
    *whole, last = pmsn_forward(x, state, weights, None, settings)
    parts, after = [], state
    for part in x.split([1, 0, 16, 32, 1]):
        *outputs, after = pmsn_forward(part, after, weights, None, settings)
        parts.append(outputs)
    for pieces, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert_same(torch.cat(pieces), expected)
    assert_same(after.r, last.r)
    assert_same(after.z, last.z)
    gs = randn(*x.shape, seed=1, dtype=F32)
    gx, g_state, _ = pmsn_backward(only_spikes(gs), x, whole[1], state, weights, None, None, settings)
    for n in range(5):
        row = slice(n, n + 1)
        here = PMSNState(state.r[row], state.z[row])
        *alone, after = pmsn_forward(x[:, row], here, weights, None, settings)
        for part, expected in zip(
            (*alone, *after), (*(t[:, row] for t in whole), *(t[row] for t in last)), strict=True
        ):
            assert_same(part, expected)
        gx_, g_state_, _ = pmsn_backward(
            only_spikes(gs[:, row]), x[:, row], alone[1], here, weights, None, None, settings
        )
        assert_same(gx[:, row], gx_)
        assert_same(g_state.z[row], g_state_.z)


@pytest.mark.parametrize("modes", [0, 4])
@all_somas
def test_a_lane_is_lost_from_the_first_input_that_is_not_finite(settings, modes):
    problem = pmsn_problem(12, (3, 2, 9), modes)
    x, state, weights = problem.x, problem.state, problem.weights
    x[4, 0, 0, 0], x[5, 1, 1, 3], x[0, 2, 0, 8] = math.nan, math.inf, -math.inf
    s, y, _m, last = forward(problem, settings)
    s_, last_, _m = pmsn_loop(problem, settings)
    for ours, theirs in zip((s, *last), (s_, *last_), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert_close(torch.where(ours.isnan(), 0, ours), torch.where(theirs.isnan(), 0, theirs), "residual")
    # the parameters keep the gradients of the other lanes, and of the lost ones what came before
    gs = randn(*x.shape, seed=1)
    settings = replace(settings, surrogate="rectangular", width=0.5)
    *_, grads = pmsn_backward(only_spikes(gs), x, y, state, weights, None, None, settings)
    lost = x.isfinite().logical_not().cumsum(0) > 0
    if settings.reset_mode == "none" and modes == 0:
        lost = x.isfinite().logical_not()
    clean, gs = torch.where(lost, 0.0, x), torch.where(lost, 0.0, gs)
    *_, expected = pmsn_backward(only_spikes(gs), clean, y, state, weights, None, None, settings)
    for g, g_ in zip(grads, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")


def test_a_lost_state_leaves_its_lane_out():
    problem = pmsn_problem(6, (2, 2, 3), 2)
    x, (r, z), weights = problem.x, problem.state, problem.weights
    settings = PMSNSettings(0.75, surrogate="atan", width=2.0)
    broken = z.clone()
    broken[0, 1, 2, 1] = complex(math.inf, 0)
    gs = randn(*x.shape, seed=1)
    *_, ours = pmsn_backward(only_spikes(gs), x, x, PMSNState(r, broken), weights, None, None, settings)
    gs[:, 0, 1, 2] = 0
    *_, expected = pmsn_backward(only_spikes(gs), x, x, PMSNState(r, z), weights, None, None, settings)
    for g, g_ in zip(ours, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")
