"""The Numba backend against loops of the oracles: every variant, odd sizes, layouts, threads, forks, caches."""

import itertools
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from helpers import loop, poisoned_empty
from msf_pmsn_plugins.backends import numba_backend, numba_kernels, numba_pool, torch_backend
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.msf import msf_step
from msf_pmsn_plugins.neurons.pmsn import pmsn_step
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate, slope
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

both_dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
RESETS = ("hard", "soft", "none")


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def complex_randn(*shape, seed=0, dtype=F64):
    return torch.complex(randn(*shape, seed=seed), randn(*shape, seed=seed + 1000)).to(dtype.to_complex())


# ---------------------------------------------------------------- MSF

THRESHOLDS = {
    1: [0.7],
    2: [1.0, 2.0],
    3: [0.5, 0.6, 2.5],
    4: [1.0, 2.0, 3.0, 4.0],
    9: [0.3 * d for d in range(1, 10)],
}


def rates(charge, lanes, dtype):
    """(rate_tensor, rate) of every kind that the charge takes."""
    kind = CHARGES[charge].rate
    if kind == "tau":
        return [(None, 2.7)]
    if kind == "none":
        return [(None, 0.0)]
    q = torch.rand(lanes, generator=torch.Generator().manual_seed(7)).to(dtype)
    learned = [(q[:1].squeeze(0), 0.0), (q, 0.0)]
    return [(None, 0.3), *learned] if kind == "decay" else learned


def msf_loop(x_seq, v, rate_tensor, rate, input_scale, charge, thresholds, v_reset, reset_mode, lengths=None):
    """Counts, membranes and last state by a loop of the oracle; zeros and no change at padded steps."""
    k = rate if rate_tensor is None else rate_tensor
    s_seq, m_seq = torch.zeros_like(x_seq), torch.zeros_like(x_seq)
    for t, x in enumerate(x_seq):
        s, after, m = msf_step(
            x, v, k, thresholds, Surrogate("atan"), charge, input_scale, v_reset, reset_mode
        )
        live = torch.ones(len(x), dtype=torch.bool) if lengths is None else t < lengths
        live = live.reshape(-1, *[1] * (x.dim() - 1))
        s_seq[t], m_seq[t] = torch.where(live, s, 0.0), torch.where(live, m, 0.0)
        v = torch.where(live, after, v)
    return s_seq, m_seq, v


def odd_input(steps, lanes, dtype, seed=0):
    """Some in quarters, so that membranes meet thresholds; some not finite."""
    x = randn(steps, lanes, seed=seed, dtype=dtype) * 2
    x[:, ::3] = torch.round(x[:, ::3] * 4) / 4
    if steps > 3:
        x[1, 0], x[2, lanes // 2], x[3, -1] = math.nan, math.inf, -math.inf
    return x


@both_dtypes
@pytest.mark.parametrize("charge", CHARGES)
def test_msf_forward_is_the_loop_to_the_bit(charge, dtype):
    sizes = itertools.cycle([1, 3, 63, 65, 130, 1000])
    for reset, v_reset, scale in itertools.product(RESETS, (0.0, -0.25), (1.0, 0.7)):
        for count, thresholds in THRESHOLDS.items():
            lanes = next(sizes)
            x, v = odd_input(6, lanes, dtype, seed=count), randn(lanes, seed=1, dtype=dtype)
            for rate in rates(charge, lanes, dtype):
                args = (*rate, scale, charge, thresholds, v_reset if reset == "hard" else 0.0, reset)
                s, m, v_last = numba_backend.msf_fwd(x, v, None, *args, 0.5, "membrane")
                s_, m_, v_last_ = msf_loop(x, v, *args)
                assert_same(s, s_)
                assert_same(m, m_)
                assert_same(v_last, v_last_)
                only, nothing, _ = numba_backend.msf_fwd(x, v, None, *args, 0.5, "none")
                assert_same(only, s_)
                assert nothing.shape == (0,)


@both_dtypes
def test_msf_fires_at_ties(dtype):
    """Decay 0.5 and quarters: every membrane is exact, and many are a threshold, or at the edge of its window."""
    x = torch.randint(-8, 17, (8, 70), generator=torch.Generator().manual_seed(0)).to(dtype) / 4
    args = (None, 0.5, 1.0, "decay", [1.0, 1.25, 2.0], 0.0, "hard")
    s, m, _ = numba_backend.msf_fwd(x, torch.zeros(70, dtype=dtype), None, *args, 0.25, "membrane")
    _, code, _ = numba_backend.msf_fwd(x, torch.zeros(70, dtype=dtype), None, *args, 0.25, "code")
    for theta in (1.0, 1.25, 2.0):
        assert (m == theta).any()
    assert_same(s, sum((m >= theta).to(dtype) for theta in (1.0, 1.25, 2.0)))
    assert_same(code.int() % 128, sum(((m - theta).abs() < 0.25).int() for theta in (1.0, 1.25, 2.0)))


@both_dtypes
def test_msf_code_is_what_the_windows_and_the_first_threshold_say(dtype):
    for count, thresholds in {**THRESHOLDS, 127: [0.02 * d for d in range(1, 128)]}.items():
        x, v = odd_input(6, 130, dtype), torch.zeros(130, dtype=dtype)
        args = (None, 0.5, 1.0, "decay", thresholds, 0.0, "hard")
        _, code, _ = numba_backend.msf_fwd(x, v, None, *args, 0.6, "code")
        _, m, _ = msf_loop(x, v, *args)
        near = sum(((m - theta).abs() < 0.6).int() for theta in thresholds)
        assert code.dtype == torch.uint8
        assert_same(code.int(), 128 * (m >= thresholds[0]).int() + near)
        assert near.max() > 1 or count == 1


def gradients_of(x, v, dtype, given):
    gs, gm, gv = (
        randn(*x.shape, seed=11, dtype=dtype),
        randn(*x.shape, seed=12, dtype=dtype),
        randn(*v.shape, seed=13, dtype=dtype),
    )
    return tuple(g if use else None for g, use in zip((gs, gm, gv), given, strict=True))


def backward_cases(charge, dtype):
    """(x, v, lengths, charge arguments, keep, detach) of every reset, rate, count and kind of what is kept."""
    sizes = itertools.cycle([1, 3, 65, 130])
    for reset, detach, count in itertools.product(RESETS, (True, False), (1, 9)):
        for rate in rates(charge, 130, dtype):
            lanes = 130 if rate[0] is not None and rate[0].dim() else next(sizes)
            x, v = odd_input(6, lanes, dtype, seed=count), randn(lanes, seed=1, dtype=dtype)
            lengths = None if lanes == 1 else torch.arange(lanes) % 7
            v_reset = -0.25 if reset == "hard" else 0.0
            args = (*rate, 0.7, charge, THRESHOLDS[count], v_reset, reset)
            windows = rate[0] is None and (detach or reset == "none")
            for keep in ("membrane", "code") if windows else ("membrane",):
                yield x, v, lengths, args, keep, detach


@both_dtypes
@pytest.mark.parametrize("charge", CHARGES)
def test_msf_backward_is_the_torch_backend_to_the_bit(charge, dtype):
    """Without an exp all bits are equal, NaN included; with one, a few units in the last place remain."""
    givens = itertools.cycle([(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    for x, v, lengths, args, keep, detach in backward_cases(charge, dtype):
        widths = {name: kind.width for name, kind in SURROGATES.items()}
        if keep == "code":  # 0.83 volts: up to six windows at once, whose heights add up with rounding
            widths = {"rectangular": 0.5 if len(args[4]) == 1 else 0.83}
        given = next(givens)
        grads = gradients_of(x, v, dtype, (given[0], given[1] and keep != "code", given[2]))
        for name, width in widths.items():
            _, kept, _ = numba_backend.msf_fwd(x, v, lengths, *args, width, keep)
            rest = (x, kept, v, lengths, *args, detach, name, width, keep)
            ours, theirs = numba_backend.msf_bwd(*grads, *rest), torch_backend.msf_bwd(*grads, *rest)
            for g, g_ in zip(ours, theirs, strict=True):
                if name in ("sigmoid", "gaussian"):
                    assert torch.equal(g.isnan(), g_.isnan())
                    assert_close(g.nan_to_num(), g_.nan_to_num(), "adjoint")
                else:
                    assert_same(g, g_)


@both_dtypes
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("charge", ["decay", "lif_decay_input", "plif", "plif_product"])
def test_msf_gradients_are_those_of_the_loop(charge, reset, dtype):
    """Against autograd of the oracle in float64, in all leaves."""
    for name, detach in itertools.product(("atan", "sigmoid", "triangle"), (True, False)):
        surrogate = Surrogate(name)
        x = randn(7, 5, seed=3, dtype=dtype).double().requires_grad_()
        v = randn(5, seed=4, dtype=dtype).double().requires_grad_()
        learned = CHARGES[charge].rate != "tau"
        rate = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype).double().requires_grad_()
        after, spikes, membranes = v, [], []
        for step in x:
            s, after, m = msf_step(
                step, after, rate if learned else 2.5, [1.0, 2.0], surrogate, charge, 1.0, 0.0, reset, detach
            )
            spikes.append(s)
            membranes.append(m)
        gs, gm, gv = gradients_of(x, v, F64, (1, 1, 1))
        loss = (torch.stack(spikes) * gs).sum() + (torch.stack(membranes) * gm).sum() + (after * gv).sum()
        leaves = [x, v, rate] if learned else [x, v]
        expected = torch.autograd.grad(loss, leaves)
        x_, v_, rate_ = (leaf.detach().to(dtype) for leaf in (x, v, rate))
        args = (None, rate_ if learned else None, 2.5, 1.0, charge, [1.0, 2.0], 0.0, reset)
        _, kept, _ = numba_backend.msf_fwd(x_, v_, *args, surrogate.width, "membrane")
        grads = (g.to(dtype) for g in (gs, gm, gv))
        ours = numba_backend.msf_bwd(
            *grads, x_, kept, v_, *args, detach, surrogate.name, surrogate.width, "membrane"
        )
        for g, g_ in zip(ours[: len(leaves)], expected, strict=True):
            assert_close(g, g_, "adjoint")


@both_dtypes
def test_slopes_to_the_last_places(dtype):
    """exp over its whole range, subnormal results and zero included; the squares of these u are exact."""
    u = torch.arange(-460, 461, dtype=F64) / 32
    u = torch.cat([u, torch.tensor([40.0, 100.0, 1e10, math.inf, -math.inf, math.nan], dtype=F64)])
    m = (u + 1).to(dtype)
    for name, width in (("gaussian", 1.0), ("sigmoid", 1.0), ("sigmoid", 8.0)):
        args = (None, 0.0, 1.0, "decay", [1.0], 0.0, "none", True, name, width, "membrane")
        g, _, _ = numba_backend.msf_bwd(
            torch.ones(1, len(u), dtype=dtype), None, None, None, m[None], m, None, *args
        )
        expected = slope((m - 1).double(), name, width)
        if name == "gaussian":
            relative = 4 * torch.finfo(dtype).eps
        else:  # 1 - s cancels in the formula itself
            relative = (
                4 * torch.finfo(dtype).eps / torch.sigmoid(-(m - 1).double().abs() * width).clamp(min=1e-30)
            )
        error = (g[0].double() - expected).abs()
        assert torch.equal(g[0].isnan(), m.isnan())
        allowed = relative * expected + 2 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert (error.nan_to_num() <= allowed.nan_to_num()).all()


@both_dtypes
def test_msf_lengths_are_separate_runs(dtype):
    x, v = randn(9, 70, 3, dtype=dtype) * 2, randn(70, 3, seed=1, dtype=dtype)
    lengths = torch.arange(70) % 10
    args = (None, 0.5, 1.0, "decay", [1.0, 2.0], -0.5, "soft")
    s, m, last = numba_backend.msf_fwd(x, v, lengths, *args, 0.5, "membrane")
    gs, gv = randn(*x.shape, seed=2, dtype=dtype), randn(70, 3, seed=3, dtype=dtype)
    after = (*args, False, "atan", 2.0, "membrane")
    gx, gv0, _ = numba_backend.msf_bwd(gs, None, gv, x, m, v, lengths, *after)
    for n, steps in enumerate(lengths.tolist()):
        row = slice(n, n + 1)
        s_, m_, last_ = numba_backend.msf_fwd(x[:steps, row], v[row], None, *args, 0.5, "membrane")
        gx_, gv0_, _ = numba_backend.msf_bwd(
            gs[:steps, row], None, gv[row], x[:steps, row], m_, v[row], None, *after
        )
        for whole, part in ((s, s_), (m, m_), (gx, gx_)):
            assert_same(whole[:steps, row], part)
            assert not whole[steps:, row].any()
        assert_same(last[row], last_)
        assert_same(gv0[row], gv0_)


# ---------------------------------------------------------------- PMSN

SOMAS = [
    ("floor", "", False),
    ("floor", "nearest", False),
    ("floor", "sawtooth", False),
    ("floor", "", True),
    ("floor", "nearest", True),
    ("serial", "", False),
    ("serial", "sawtooth", False),
    ("none", "", False),
    ("cumulative", "", False),
]
all_somas = pytest.mark.parametrize("soma", SOMAS, ids=lambda soma: "-".join(map(str, soma)))


def paired(t):
    """The same with the last half of the modes conjugate to the first, in reverse."""
    t, half = t.clone(), t.shape[-1] // 2
    if half:
        t[..., -half:] = t[..., :half].conj().flip(-1)
    return t


def pmsn_problem(steps, lanes, modes, dtype=F64, pairs=False, seed=0):
    """x, r, z, a, w, d for lanes (L, C, K)."""
    channels = lanes[1]
    a = torch.polar(
        0.95 * torch.rand(channels, modes, generator=torch.Generator().manual_seed(seed)),
        randn(channels, modes, seed=seed + 1).float(),
    ).to(dtype.to_complex())
    w, z = (
        complex_randn(channels, modes, seed=seed + 2, dtype=dtype),
        0.3 * complex_randn(*lanes, modes, seed=seed + 3, dtype=dtype),
    )
    a, w, z = (paired(t) for t in (a, w, z)) if pairs else (a, w, z)
    x = randn(steps, *lanes, seed=seed + 4, dtype=dtype) * 1.5
    r = torch.rand(lanes, generator=torch.Generator().manual_seed(seed + 5)).to(dtype)
    return x, r, z, a, w, randn(channels, seed=seed + 6, dtype=dtype)


def pmsn_loop(x_seq, r, z, a, w, d, v_threshold, soma, surrogate=None):
    """Spikes, last states and membranes by a loop of the oracle, with autograd."""
    a, w, d = a[:, None], w[:, None], d[:, None]
    s_seq, m_seq = [], []
    for x in x_seq:
        s, r, z, m = pmsn_step(x, r, z, a, w, d, v_threshold, surrogate or Surrogate("atan"), *soma)
        s_seq.append(s)
        m_seq.append(m)
    return torch.stack(s_seq), r, z, torch.stack(m_seq)


def drives(x_seq, z, a, w, d):
    """The drives of the soma, step by step."""
    y_seq = []
    for x in x_seq:
        z = a[:, None] * z + x.unsqueeze(-1)
        y_seq.append((w[:, None] * z).sum(-1).real + d[:, None] * x)
    return torch.stack(y_seq)


def widened(tensors):
    return tuple(t.to(torch.promote_types(t.dtype, F64)) for t in tensors)


@all_somas
@pytest.mark.parametrize("lanes", [(1, 1, 1), (3, 5, 1), (2, 3, 43), (1, 1, 300)], ids=str)
def test_pmsn_forward_is_the_loop(lanes, soma):
    for modes, pairs in ((0, False), (1, False), (3, True), (4, True), (4, False), (16, True)):
        problem = pmsn_problem(20, lanes, modes, pairs=pairs)
        s, y, r, z = numba_backend.pmsn_fwd(*problem, None, 0.75, *soma, True)
        s_, r_, z_, _m = pmsn_loop(*problem, 0.75, soma)
        assert_same(s, s_)
        assert_close(y, drives(problem[0], *problem[2:]), "drive")
        assert_close(r, r_, "residual")
        assert_close(z, z_, "drive")
        assert s.any() or lanes == (1, 1, 1)
        only, nothing, _, _ = numba_backend.pmsn_fwd(*problem, None, 0.75, *soma, False)
        assert_same(only, s)
        assert nothing.shape == (0,)


@pytest.mark.parametrize("pairs", [True, False], ids=["pairs", "free"])
def test_pmsn_flips_of_float32_are_proved(pairs):
    problem = pmsn_problem(784, (4, 8, 5), 4, F32, pairs)
    problem = (problem[0], torch.zeros_like(problem[1]), *problem[2:])
    s, y, _r, _z = numba_backend.pmsn_fwd(*problem, None, 1.0, "floor", "", False, True)
    wide = widened(problem)
    s_, *_ = numba_backend.pmsn_fwd(*wide, None, 1.0, "floor", "", False, False)
    assert_flips_proved(s, y, s_, drives(wide[0], *wide[2:]))
    assert 0.05 < s.mean() < 0.95


@all_somas
def test_pmsn_is_exact_where_float32_is(soma):
    """Dyadic numbers: no rounding anywhere, so any order of operations gives the bits of the loop."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-8, 9, (9, 2, 3, 7), generator=generator) / 4
    a = torch.tensor([[0.5, 0.5j, -0.5, -0.5j]] * 3, dtype=torch.complex64)
    w = torch.randint(-4, 5, (3, 4), generator=generator) / 2 + 1j * torch.randint(
        -4, 5, (3, 4), generator=generator
    )
    d = torch.tensor([1.0, -0.5, 2.0])
    r, z = torch.zeros(2, 3, 7), torch.zeros(2, 3, 7, 4, dtype=torch.complex64)
    s, _y, r_last, z_last = numba_backend.pmsn_fwd(
        x, r, z, a, w.to(torch.complex64), d, None, 0.5, *soma, False
    )
    s_, r_, z_, _m = pmsn_loop(x, r, z, a, w.to(torch.complex64), d, 0.5, soma)
    assert_same(s, s_)
    assert_same(r_last, r_)
    assert_same(z_last, z_)


@pytest.mark.parametrize("burst", ["nearest", "sawtooth"])
@both_dtypes
def test_halves_go_to_the_even_neighbour(dtype, burst):
    """In the residual of fixed point and in the nearest threshold. Without modes, x is the drive."""
    none = torch.zeros(1, 0, dtype=dtype.to_complex())
    x = torch.cat([torch.arange(17) / 2, (2 * torch.arange(9) + 1) * 2.0**-25, torch.tensor([1e13, 0.5])])
    x = x.to(dtype)[:, None, None, None]
    problem = (x, torch.zeros(1, 1, 1, dtype=dtype), none[None, None], none, none, torch.ones(1, dtype=dtype))
    for soma in (("floor", burst, True), ("floor", burst, False), ("serial", burst, False)):
        s, _y, r, _z = numba_backend.pmsn_fwd(*problem, None, 1.0, *soma, False)
        s_, r_, _z, _m = pmsn_loop(*problem, 1.0, soma)
        assert_same(s, s_)
        assert_same(r, r_)
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(pmsn_loop(leaf, *problem[1:], 1.0, soma)[0].sum(), leaf)
        gx, *_ = numba_backend.pmsn_bwd(
            torch.ones_like(x), None, None, None, x, x, *problem[1:], None, 1.0, *soma, "atan", 2.0
        )
        assert_close(gx, expected, "slope")


def pmsn_gradients(problem, soma, surrogate, dtype, theta=0.75):
    """Ours and those of autograd through the loop in float64, both of a loss that uses every output."""
    x, *_ = problem
    gs, gy = randn(*x.shape, seed=21), randn(*x.shape, seed=22)
    gr, gz = randn(*x.shape[1:], seed=23), complex_randn(*problem[2].shape, seed=24)
    leaves = tuple(t.requires_grad_() for t in widened(problem))
    s, r, z, _m = pmsn_loop(*leaves, theta, soma, surrogate)
    loss = (s * gs).sum() + (drives(leaves[0], *leaves[2:]) * gy).sum() + (z * gz.conj()).real.sum()
    if soma[0] == "cumulative":
        loss = loss + (r * gr).sum()
    expected = torch.autograd.grad(loss, leaves, allow_unused=True)
    given = (g.to(dtype.to_complex() if g.is_complex() else dtype) for g in (gs, gy, gr, gz))
    ours = numba_backend.pmsn_bwd(
        *given, x, x, *problem[1:], None, theta, *soma, surrogate.name, surrogate.width
    )
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    return ours, tuple(zero if g is None else g for g, zero in zip(expected, zeros, strict=True)), s.detach()


@all_somas
@pytest.mark.parametrize("lanes", [(3, 5, 1), (2, 3, 43)], ids=str)
def test_pmsn_gradients_are_those_of_the_loop(lanes, soma):
    for (modes, pairs), name in zip(
        ((0, False), (1, False), (3, True), (4, True), (4, False)), itertools.cycle(SURROGATES), strict=False
    ):
        ours, expected, _s = pmsn_gradients(
            pmsn_problem(12, lanes, modes, pairs=pairs), soma, Surrogate(name), F64
        )
        for g, g_ in zip(ours, expected, strict=True):
            assert_close(g, g_, "pmsn_adjoint")


@all_somas
def test_pmsn_gradients_in_float32(soma):
    problem = pmsn_problem(12, (2, 3, 5), 4, F32, pairs=soma[0] == "floor")
    s, *_ = numba_backend.pmsn_fwd(*problem, None, 0.75, *soma, False)
    ours, expected, s_ = pmsn_gradients(problem, soma, Surrogate("atan"), F32)
    # without a flip, so that the gradients are of the same spikes
    assert_same(s.double(), s_)
    for g, g_ in zip(ours, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")


def test_conjugate_modes_are_halved_without_a_trace():
    """The same bits where one mode of another channel, or one state, spoils the symmetry."""
    x, r, z, a, w, d = pmsn_problem(40, (2, 3, 17), 4, F32, pairs=True)
    spoiled = w.clone()
    spoiled[2, 0] += 1e-3
    gs, gz = randn(*x.shape, seed=1, dtype=F32), paired(complex_randn(*z.shape, seed=2, dtype=F32))
    results = []
    for weights in (w, spoiled):
        forward = numba_backend.pmsn_fwd(x, r, z, a, weights, d, None, 1.0, "floor", "", False, True)
        backward = numba_backend.pmsn_bwd(
            gs, None, None, gz, x, x, r, z, a, weights, d, None, 1.0, "floor", "", False, "atan", 2.0
        )
        lanes = [t[:, :, :2] for t in (*forward[:2], backward[0])]
        results.append(
            [*lanes, forward[2][:, :2], forward[3][:, :2], backward[2][:, :2], *(g[:2] for g in backward[3:])]
        )
    for half, full in zip(*results, strict=True):
        assert_same(half, full)


@all_somas
@pytest.mark.parametrize("modes", [0, 4])
def test_pmsn_chunks_are_the_whole_to_the_bit(modes, soma):
    """Cut anywhere, in any batch: a lane's bits depend on its inputs alone."""
    x, r, z, *weights = pmsn_problem(50, (5, 3, 7), modes, F32)
    s, y, r_last, z_last = numba_backend.pmsn_fwd(x, r, z, *weights, None, 0.75, *soma, True)
    s_parts, y_parts, r_, z_ = [], [], r, z
    for part in x.split([1, 0, 16, 32, 1]):
        s_part, y_part, r_, z_ = numba_backend.pmsn_fwd(part, r_, z_, *weights, None, 0.75, *soma, True)
        s_parts.append(s_part)
        y_parts.append(y_part)
    for parts, whole in ((torch.cat(s_parts), s), (torch.cat(y_parts), y), (r_, r_last), (z_, z_last)):
        assert_same(parts, whole)
    gs = randn(*x.shape, seed=1, dtype=F32)
    settings = (None, 0.75, *soma, "atan", 2.0)
    gx, _, gz0, *_ = numba_backend.pmsn_bwd(gs, None, None, None, x, x, r, z, *weights, *settings)
    for n in range(5):
        row = slice(n, n + 1)
        alone = numba_backend.pmsn_fwd(x[:, row], r[row], z[row], *weights, None, 0.75, *soma, True)
        for part, whole in zip(alone, (s[:, row], y[:, row], r_last[row], z_last[row]), strict=True):
            assert_same(part, whole)
        gx_, _, gz0_, *_ = numba_backend.pmsn_bwd(
            gs[:, row], None, None, None, x[:, row], x, r[row], z[row], *weights, *settings
        )
        assert_same(gx[:, row], gx_)
        assert_same(gz0[row], gz0_)


@all_somas
def test_pmsn_lengths_are_separate_runs(soma):
    x, r, z, *weights = pmsn_problem(9, (11, 3, 7), 4)
    lengths = torch.arange(11) % 10
    gs, gy = randn(*x.shape, seed=1), randn(*x.shape, seed=2)
    gr, gz = randn(*r.shape, seed=3), complex_randn(*z.shape, seed=4)
    forward = numba_backend.pmsn_fwd(x, r, z, *weights, lengths, 0.75, *soma, True)
    settings = (0.75, *soma, "triangle", 1.0)
    backward = numba_backend.pmsn_bwd(gs, gy, gr, gz, x, x, r, z, *weights, lengths, *settings)
    sums = [torch.zeros_like(g) for g in backward[3:]]
    for n, steps in enumerate(lengths.tolist()):
        row = slice(n, n + 1)
        short = x[:steps, row]
        s, y, r_last, z_last = numba_backend.pmsn_fwd(
            short, r[row], z[row], *weights, None, 0.75, *soma, True
        )
        gx, gr0, gz0, *params = numba_backend.pmsn_bwd(
            gs[:steps, row],
            gy[:steps, row],
            gr[row],
            gz[row],
            short,
            short,
            r[row],
            z[row],
            *weights,
            None,
            *settings,
        )
        for whole, part in ((forward[0], s), (forward[1], y), (backward[0], gx)):
            assert_same(whole[:steps, row], part)
            assert not whole[steps:, row].any()
        for whole, part in (
            (forward[2], r_last),
            (forward[3], z_last),
            (backward[1], gr0),
            (backward[2], gz0),
        ):
            assert_same(whole[row], part)
        sums = [total + g for total, g in zip(sums, params, strict=True)]
    for total, g in zip(sums, backward[3:], strict=True):
        assert_close(g, total, "pmsn_adjoint")


@pytest.mark.parametrize("modes", [0, 4])
@all_somas
def test_pmsn_is_lost_from_the_first_input_that_is_not_finite(soma, modes):
    x, r, z, *weights = pmsn_problem(12, (3, 2, 9), modes)
    x[4, 0, 0, 0], x[5, 1, 1, 3], x[0, 2, 0, 8] = math.nan, math.inf, -math.inf
    forward = numba_backend.pmsn_fwd(x, r, z, *weights, None, 0.75, *soma, True)
    for ours, theirs in zip(
        (forward[0], *forward[2:]), pmsn_loop(x, r, z, *weights, 0.75, soma)[:3], strict=True
    ):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert_close(torch.where(ours.isnan(), 0, ours), torch.where(theirs.isnan(), 0, theirs), "residual")
    # the parameters keep the gradients of the other lanes, and of the lost ones what came before
    gs = randn(*x.shape, seed=1)
    settings = (None, 0.75, *soma, "rectangular", 0.5)
    _, _, _, *params = numba_backend.pmsn_bwd(gs, None, None, None, x, x, r, z, *weights, *settings)
    lost = x.isfinite().logical_not().cumsum(0) > 0
    if soma[0] == "none" and modes == 0:
        lost = x.isfinite().logical_not()
    clean, gs = torch.where(lost, 0.0, x), torch.where(lost, 0.0, gs)
    _, _, _, *expected = numba_backend.pmsn_bwd(gs, None, None, None, clean, x, r, z, *weights, *settings)
    for g, g_ in zip(params, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")


def test_a_lost_state_leaves_its_lane_out():
    x, r, z, *weights = pmsn_problem(6, (2, 2, 3), 2)
    broken = z.clone()
    broken[0, 1, 2, 1] = complex(math.inf, 0)
    gs = randn(*x.shape, seed=1)
    settings = (None, 0.75, "floor", "", False, "atan", 2.0)
    ours = numba_backend.pmsn_bwd(gs, None, None, None, x, x, r, broken, *weights, *settings)
    gs[:, 0, 1, 2] = 0
    expected = numba_backend.pmsn_bwd(gs, None, None, None, x, x, r, z, *weights, *settings)
    for g, g_ in zip(ours, expected, strict=True):
        assert_close(g, g_, "pmsn_adjoint")


@pytest.mark.parametrize(("steps", "lanes"), [(4096, 16), (1 << 18, 1)])
def test_gradients_stay_accurate_over_long_times(steps, lanes):
    """The same small addend at every step: a float32 sum would round each of them the same way."""
    a = torch.tensor([[0.9999 * np.exp(0.001j), 0.99 * np.exp(0.1j), 0.5]], dtype=torch.complex64)
    w, d = torch.ones(1, 3, dtype=torch.complex64), torch.ones(1)
    x = torch.ones(steps, lanes, 1, 1)
    r, z = torch.zeros(lanes, 1, 1), torch.zeros(lanes, 1, 1, 3, dtype=torch.complex64)
    gy = x / 3
    settings = (None, 1.0, "none", "", False, "atan", 2.0)
    single = numba_backend.pmsn_bwd(None, gy, None, None, x, x, r, z, a, w, d, *settings)
    wide = widened((x, r, z, a, w, d))
    double = numba_backend.pmsn_bwd(None, gy.double(), None, None, wide[0], x, *wide[1:], *settings)
    for ours, expected in zip(single[3:], double[3:], strict=True):
        assert_close(ours, expected, "pmsn_adjoint")
    assert_close(single[5], torch.tensor([steps * lanes / 3], dtype=F64), "pmsn_adjoint")


# ---------------------------------------------------------------- layouts


def layouts(x):
    """The same numbers as other views: of step-contiguous ones no step is copied."""
    wide = x.new_empty(2 * len(x), *x.shape[1:])
    wide[::2] = x
    shifted = x.new_empty(x.numel() + 1)[1:].reshape(x.shape).copy_(x)
    yield wide[::2], True
    yield shifted, True
    yield x.flip(0).contiguous().flip(0), True
    yield x.transpose(1, -1).contiguous().transpose(1, -1), False
    yield x.transpose(0, 1).contiguous().transpose(0, 1), False


def test_layouts_of_msf():
    x, v = randn(6, 5, 40, dtype=F32) * 2, randn(5, 40, seed=1, dtype=F32)
    args = (None, 0.5, 1.0, "decay", [1.0, 2.0], 0.0, "hard")
    s, m, last = numba_backend.msf_fwd(x, v, None, *args, 0.5, "membrane")
    after = (*args, True, "atan", 2.0, "membrane")
    gx, gv, _ = numba_backend.msf_bwd(x, None, v, x, m, v, None, *after)
    for view, direct in layouts(x):
        copied, _ = numba_backend._steps(view, F32)
        assert (copied.data_ptr() == view.data_ptr()) == direct
        s_, m_, last_ = numba_backend.msf_fwd(view, v.t().contiguous().t(), None, *args, 0.5, "membrane")
        gx_, gv_, _ = numba_backend.msf_bwd(view, None, v.t().contiguous().t(), view, m, v, None, *after)
        for ours, expected in ((s_, s), (m_, m), (last_, last), (gx_, gx), (gv_, gv)):
            assert_same(ours, expected)
            assert ours.is_contiguous()


def test_layouts_of_pmsn():
    x, r, z, *weights = pmsn_problem(6, (2, 3, 40), 2, F32)
    settings = (None, 0.75, "floor", "", False)
    forward = numba_backend.pmsn_fwd(x, r, z, *weights, *settings, True)
    backward = numba_backend.pmsn_bwd(x, x, None, z, x, x, r, z, *weights, *settings, "atan", 2.0)
    others = tuple(t.transpose(0, -1).contiguous().transpose(0, -1) for t in (r, z))
    conjugates = (others[1].conj().contiguous().conj(), *(t.conj().contiguous().conj() for t in weights[:2]))
    for view, _ in layouts(x):
        state = (others[0], *conjugates, weights[2])
        ours = numba_backend.pmsn_fwd(view, *state, *settings, True)
        ours += numba_backend.pmsn_bwd(
            view, view, None, conjugates[0], view, x, *state, *settings, "atan", 2.0
        )
        for ours_, expected in zip(ours, forward + backward, strict=True):
            assert_same(ours_, expected)


def test_expanded_gradients_are_not_spread_out():
    """The gradient of a sum is one number for all: one step of it is made, not all of them."""
    one = torch.ones(()).expand(1000, 5, 7)
    steps, stride = numba_backend._steps(one, F32)
    assert stride == 0
    assert steps.untyped_storage().nbytes() == 5 * 7 * 4
    x, v = randn(1000, 5, 7, dtype=F32), torch.zeros(5, 7)
    args = (None, 0.5, 1.0, "decay", [1.0], 0.0, "hard", True, "atan", 2.0, "membrane")
    ours = numba_backend.msf_bwd(one, None, None, x, x, v, None, *args)
    for g, g_ in zip(
        ours, numba_backend.msf_bwd(one.contiguous(), None, None, x, x, v, None, *args), strict=True
    ):
        assert_same(g, g_)


@both_dtypes
def test_empty_inputs(dtype):
    args = (None, 0.5, 1.0, "decay", [1.0], 0.0, "hard")
    v = randn(3, 4, dtype=dtype)
    for shape in ((0, 3, 4), (5, 0, 4), (5, 3, 0)):
        x, state = (
            torch.zeros(shape, dtype=dtype),
            v if shape[0] == 0 else torch.zeros(shape[1:], dtype=dtype),
        )
        for keep in ("none", "membrane", "code"):
            s, kept, last = numba_backend.msf_fwd(x, state, None, *args, 0.5, keep)
            assert s.shape == x.shape
            assert kept.shape == ((0,) if keep == "none" else x.shape)
            assert_same(last, state)
            assert last.data_ptr() != state.data_ptr() or last.numel() == 0
        gx, gv, grate = numba_backend.msf_bwd(
            None, None, state, x, x, state, None, *args, True, "atan", 2.0, "membrane"
        )
        assert (gx.shape, grate.item()) == (x.shape, 0)
        assert_same(gv, state)
    x, r, z, *weights = pmsn_problem(0, (2, 3, 4), 2, dtype)
    forward = numba_backend.pmsn_fwd(x, r, z, *weights, None, 1.0, "cumulative", "", False, True)
    for ours, expected in zip(forward, (x, x, r, z), strict=True):
        assert_same(ours, expected)
    gx, gr, gz, *params = numba_backend.pmsn_bwd(
        x, x, r, z, x, x, r, z, *weights, None, 1.0, "cumulative", "", False, "atan", 2.0
    )
    for ours, expected in ((gx, x), (gr, r), (gz, z)):
        assert_same(ours, expected)
    assert not any(g.any() for g in params)


def test_large_outputs_in_huge_pages():
    x, v = torch.ones(3, 600_000), torch.zeros(600_000)
    s, _, _ = numba_backend.msf_fwd(x, v, None, None, 0.5, 1.0, "decay", [1.5], 0.0, "hard", 0.5, "none")
    assert s.nbytes >= numba_backend.HUGE
    assert_same(s, torch.tensor([0.0, 1.0, 0.0])[:, None].expand(s.shape))


# ---------------------------------------------------------------- threads


@pytest.fixture
def _threads():
    yield
    torch.set_num_threads(1)


def inputs():
    """For both neurons, large enough for several threads."""
    x, v = randn(40, 5, 601, dtype=F32) * 2, randn(5, 601, seed=1, dtype=F32)
    assert x.numel() > numba_backend.SMALL
    return x, v, pmsn_problem(40, (30, 9, 7), 4, F32)


def everything(given):
    """Outputs and gradients of both neurons."""
    x, v, problem = given
    args = (torch.tensor(0.5), 0.0, 1.0, "decay", [1.0, 2.0], 0.0, "hard")
    out = numba_backend.msf_fwd(x, v, None, *args, 0.5, "membrane")
    out += numba_backend.msf_bwd(x, None, v, x, out[1], v, None, *args, False, "atan", 2.0, "membrane")
    soma = (None, 0.75, "floor", "", False)
    out += numba_backend.pmsn_fwd(*problem, *soma, True)
    x, *rest = problem
    return out + numba_backend.pmsn_bwd(x, None, None, rest[1], x, x, *rest, *soma, "atan", 2.0)


@pytest.mark.usefixtures("_threads")
def test_any_number_of_threads_gives_the_same_bits():
    given = inputs()
    expected = everything(given)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for ours, theirs in zip(everything(given), expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.usefixtures("_threads")
def test_four_threads_may_call_at_once():
    given = inputs()
    expected = everything(given)
    torch.set_num_threads(2)
    results = {}

    def call(name):
        results[name] = [everything(given) for _ in range(3)]

    callers = [threading.Thread(target=call, args=(name,)) for name in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 4
    for outputs in itertools.chain(*results.values()):
        for ours, theirs in zip(outputs, expected, strict=True):
            assert_same(ours, theirs)


@pytest.mark.parametrize("own", [False, True], ids=["torch's", "ours"])
def test_the_threads_cover_every_piece_once_and_raise_what_a_piece_raised(own, monkeypatch):
    if own:
        monkeypatch.setattr(numba_pool, "_openmp", lambda: None)
    for count, threads in ((1, 4), (3, 8), (100, 3), (7, 1)):
        seen = []
        numba_pool.run(lambda first, last, seen=seen: seen.extend(range(first, last)), count, threads)
        assert sorted(seen) == list(range(count))
    here, seen = threading.current_thread(), []

    def slow_elsewhere(first, last):
        time.sleep(0 if threading.current_thread() is here else 0.2)
        seen.extend(range(first, last))

    numba_pool.run(slow_elsewhere, 40, 2)
    assert sorted(seen) == list(range(40))
    pieces = []

    def fail(first, last):
        pieces.append(first)
        if first == 0:
            raise ZeroDivisionError("piece 0")

    with pytest.raises(ZeroDivisionError, match="piece 0"):
        numba_pool.run(fail, 40, 2)
    assert len(pieces) == 2 * numba_pool.PIECES
    assert numba_pool._pool.threads <= 8


@pytest.mark.skipif(sys.platform != "linux", reason="looks for GNU OpenMP")
def test_threads_are_those_of_torch():
    """The wheels of torch on Linux run on an OpenMP that we find; a region of ours starts no others."""
    assert numba_pool._openmp() is not None
    seen = set()

    def work(first, last):
        time.sleep(0.02)
        seen.add(threading.get_native_id())

    before = numba_pool._pool.threads
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).add_(1)  # starts torch's own
        numba_pool.run(work, 40, 2)
        count = len(os.listdir("/proc/self/task"))
        numba_pool.run(work, 40, 2)
        torch.ones(1 << 20).add_(1)
        assert len(os.listdir("/proc/self/task")) == count
    finally:
        torch.set_num_threads(1)
    assert len(seen) == 2
    assert numba_pool._pool.threads == before


# OpenMP does not survive a fork: there our own pool computes, and torch's operations are on one thread throughout.
FORKS = """
import os, sys
sys.path.insert(0, {tests!r})
import torch, test_numba
from torch.utils.data import DataLoader, Dataset
pool = test_numba.numba_pool
torch.set_num_threads(1)
given = test_numba.inputs()

def flat():
    torch.set_num_threads(2)
    outputs = test_numba.everything(given)
    torch.set_num_threads(1)
    return torch.cat([part.flatten() for t in outputs for part in ((t.real, t.imag) if t.is_complex() else (t,))])

class Items(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return flat()

expected = flat()
assert pool._pool.threads == (pool._openmp() is None)
for _ in range(2):
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = pool._pool.threads == 0 and torch.equal(flat(), expected) and pool._pool.threads == 1
        finally:
            os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
for batch in DataLoader(Items(), num_workers=2, multiprocessing_context="fork"):
    assert torch.equal(batch[0], expected)
assert torch.equal(flat(), expected)
print("fine")
"""


def python(script, **environment):
    return subprocess.run(
        [sys.executable, "-B", "-P", "-W", "ignore::DeprecationWarning", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_children_forked_after_the_first_use_compute():
    """By hand and by two workers of a DataLoader, each with threads of its own."""
    done = python(FORKS.format(tests=str(Path(__file__).parents[2])))
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# ---------------------------------------------------------------- compilation

READ_ONLY = """
import sys
sys.path.insert(0, {folder!r})
import torch, msf_pmsn_plugins
assert msf_pmsn_plugins.__file__.startswith({folder!r})
from msf_pmsn_plugins.backends import numba_backend
x = torch.tensor([[[1.0]], [[0.25]], [[1.0]]])
s, _, v = numba_backend.msf_fwd(x, torch.zeros(1, 1), None, None, 0.5, 1.0, "decay", [1.0], 0.0, "hard", 0.5, "none")
assert s.flatten().tolist() == [1, 0, 1], s
assert type(numba_backend.kernels.msf_forward._cache).__name__ == "NullCache"
print("fine")
"""


def test_without_a_writable_folder_the_cache_is_in_memory(tmp_path):
    """Read-only for root, too: where folders should be made, files are in the way."""
    package = Path(numba_backend.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / package.name / "backends" / "__pycache__").touch()
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    for unwritable in ({"NUMBA_CACHE_DIR": nowhere}, {"NUMBA_CACHE_DIR": ""}):
        done = python(
            READ_ONLY.format(folder=str(tmp_path)), HOME=nowhere, XDG_CACHE_HOME=nowhere, **unwritable
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")
        if not os.environ.get("CI"):
            break


def test_a_kernel_that_cannot_be_saved_runs(monkeypatch):
    """A disk that is full at the first call: the kernel is compiled by then, and the second try finds it."""
    calls = []

    def kernel(first, last, *args):
        calls.append((first, last))
        if len(calls) == 1:
            raise OSError("No space left on device")

    numba_backend._run(kernel, 3, 1, 64, ())
    assert calls == [(0, 3), (0, 3)]


def test_kernels_are_compiled_once_per_dtype_and_kept_on_disk():
    seconds = numba_backend.warm_up(dtypes=(F32, F64))
    assert seconds > 0
    everything(inputs())
    for name in ("msf_forward", "msf_backward", "pmsn_forward", "pmsn_backward"):
        kernel = getattr(numba_kernels, name)
        assert len(kernel.signatures) == 2
        assert kernel._cache.cache_path
    assert numba_backend.warm_up() < 1
    with pytest.raises(ValueError, match="'msf', 'pmsn'"):
        numba_backend.warm_up(["lif"])


# ---------------------------------------------------------------- the module


def test_every_charge_and_surrogate_is_known():
    assert set(numba_backend.CHARGES) == set(CHARGES)
    for name, charge in CHARGES.items():
        assert bool(numba_backend.CHARGES[name].learned) == (charge.rate_grad is not None)
    codes = [numba_backend._surrogate(name, 0.5)[0] for name in SURROGATES]
    assert len(set(codes)) == len(SURROGATES)


def test_refusals():
    x, v = torch.zeros(2, 3), torch.zeros(3)
    args = (None, None, 0.5, 1.0, "decay", [1.0], 0.0, "hard")
    with pytest.raises(TypeError, match=r"float32 and float64, got torch\.float16"):
        numba_backend.msf_fwd(x.half(), v.half(), *args, 0.5, "none")
    with pytest.raises(ValueError, match="CPU tensors, this input is on meta"):
        numba_backend.msf_fwd(x.to("meta"), v, *args, 0.5, "none")
    with pytest.raises(ValueError, match="no charge 'leak'; known: decay"):
        numba_backend.msf_fwd(x, v, None, None, 0.5, 1.0, "leak", [1.0], 0.0, "hard", 0.5, "none")
    with pytest.raises(ValueError, match="no surrogate 'step'; known: rectangular"):
        numba_backend.msf_bwd(x, None, None, x, x, v, *args, True, "step", 0.5, "membrane")
    with pytest.raises(ValueError, match="charge 'lif' has no gradient to its rate"):
        numba_backend.msf_bwd(
            x,
            None,
            None,
            x,
            x,
            v,
            None,
            torch.ones(()),
            0.0,
            1.0,
            "lif",
            [1.0],
            0.0,
            "hard",
            True,
            "atan",
            2.0,
            "membrane",
        )
    problem = pmsn_problem(1, (1, 1, 1), 1)
    with pytest.raises(ValueError, match="fixed point belongs to reset_mode 'floor', got 'serial'"):
        numba_backend.pmsn_fwd(*problem, None, 1.0, "serial", "", True, False)


@both_dtypes
def test_through_the_neurons(dtype):
    """Named as a backend: counts, states, membranes and gradients of the loop."""
    x = (randn(9, 4, 3, 5, dtype=dtype) * 2).requires_grad_()
    msf, pmsn = MSF(backend="numba", reset_mode="soft", learn_decay=True), PMSN(3, backend="numba").to(dtype)
    gs = randn(*x.shape, seed=1, dtype=dtype)
    for neuron in (msf, pmsn):
        (s, state, m), (s_, state_, m_) = neuron.sequence(x, membrane=True), loop(neuron, x)
        assert_same(s, s_)
        assert_close(m, m_, "drive")
        for ours, expected in zip(state, state_, strict=True):
            assert_close(ours, expected, "residual")
        leaves = [x, *neuron.parameters()]
        grads, grads_ = (torch.autograd.grad((spikes * gs).sum(), leaves) for spikes in (s, s_))
        for ours, expected in zip(grads, grads_, strict=True):
            assert_close(ours, expected, "pmsn_adjoint")
