"""The CUDA text of PMSN on a CPU (see ``shim``) against the oracle."""

from __future__ import annotations

import pytest
import torch

from msf_pmsn_plugins.backends.cupy import geometry
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import (
    PMSNCase,
    check_pmsn,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
    slow_unless,
    views,
)
from shim.edges import check_fixed_chunks, check_lengths_out_of_range, check_lost_lanes
from tolerances import assert_close, assert_same

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned")]

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.mark.parametrize("modes", slow_unless([*range(17), 17, 70], [0, 1, 4, 5, 7, 16, 17]))
def test_every_number_of_modes(modes):
    reset_mode = ["floor", "cumulative", "serial", "none"][modes % 4]
    dtype = [F32, F64][modes // 4 % 2]
    surrogate = list(SURROGATES)[modes % 5]
    check_pmsn(PMSNCase(modes, reset_mode, surrogate=surrogate, dtype=dtype, lengths=modes % 3 == 1))


PMSN_CASES = [
    PMSNCase(reset_mode="floor", dtype=F64, threshold=0.75),
    PMSNCase(reset_mode="serial", dtype=F64, threshold=0.75, lengths=True),
    PMSNCase(reset_mode="none", dtype=F64, threshold=0.75),
    PMSNCase(reset_mode="cumulative", dtype=F64, threshold=0.75, lengths=True),
    PMSNCase(modes=7, burst="nearest", surrogate="rectangular", threshold=0.5),
    PMSNCase(modes=2, burst="sawtooth", surrogate="gaussian", dtype=F64, reset_mode="serial", threshold=0.5),
    PMSNCase(fixed=True, threshold=0.3),
    PMSNCase(grad_membrane=True, slopes=True, lengths=True, dtype=F64, threshold=0.75),
    PMSNCase(5, "serial", grad_membrane=True, lengths=True, dtype=F64, threshold=0.75),
    PMSNCase(2, "cumulative", grad_membrane=True, surrogate="atan", dtype=F64),
    PMSNCase(fixed=True, burst="nearest", surrogate="sigmoid", dtype=F64, threshold=0.7, lengths=True),
]


@pytest.mark.parametrize(
    "case", PMSN_CASES, ids=lambda c: f"{c.reset_mode}-{c.burst}-{c.fixed}-{c.modes}-{c.slopes}"
)
def test_every_reset_of_pmsn(case):
    check_pmsn(case)


@pytest.mark.parametrize("reset_mode", ["floor", "serial", "none", "cumulative"])
@pytest.mark.parametrize("steps", [6, 300])
def test_residuals_come_out_of_every_step(steps, reset_mode):
    case = PMSNCase(reset_mode=reset_mode, threshold=0.75, lengths=True, dtype=F64, steps=steps)
    p = pmsn_problem(case)
    residuals, theirs = (pmsn_forward(backend, case, p, residuals=True)[3] for backend in ("cupy", "torch"))
    assert_close(residuals, theirs, "residual")
    assert_same(residuals[-1], pmsn_forward("cupy", case, p)[3])


# One library for each modes; channels 1, 3, 64, 130; blocks of one and of many columns, of few and of many l.
@pytest.mark.parametrize(
    ("lanes", "steps"),
    [
        ((1, 1, 1), 300),
        ((1, 3, 1), 1),
        ((2, 64, 1), 5),
        ((3, 130, 1), 4),
        ((1, 1, 70), 8),
        ((2, 3, 50), 3),
        ((150, 1, 1), 3),
        ((33, 5, 2), 2),
        ((1, 2, 200), 2),
    ],
)
@pytest.mark.parametrize("modes", [1, 6])
def test_any_shape_of_pmsn(lanes, steps, modes):
    check_pmsn(PMSNCase(modes, lanes=lanes, steps=steps, seed=sum(lanes)))


def test_few_rows_take_many_lanes(monkeypatch):
    monkeypatch.setattr(geometry, "FULL", 512)
    assert geometry.gather_of(90, 6) == geometry.Gather((8, 16), 4, 4)
    check_pmsn(PMSNCase(lanes=(90, 3, 2), steps=4))
    check_pmsn(PMSNCase(modes=6, lanes=(90, 3, 2), steps=4))


def test_sums_for_the_parameters_keep_their_digits():
    check_pmsn(PMSNCase(modes=2, lanes=(256, 2, 8), steps=64))


def test_the_sums_for_the_parameters_are_rounded_once(shim):
    case = PMSNCase(modes=2, lanes=(4096, 2, 3), steps=2)
    p = pmsn_problem(case)
    pmsn_backward("cupy", case, p, p["x_seq"])
    partial, ge, gw, gd = shim.launches[-1].args[:4]
    assert len(partial) == 256
    # [rows, groups, sums, C, K] -> [sums, C]: the real and the imaginary parts for e, then for w, then d
    sums = partial.double().sum((0, 1, 4)).float()
    expected = sums[:-1].unflatten(0, (2, 2, case.modes)).permute(0, 3, 2, 1)
    for grad, total in zip((ge, gw, gd), (*expected, sums[-1]), strict=True):
        assert_same(torch.view_as_real(grad) if grad.is_complex() else grad, total)


CHUNKED_CASES = [
    PMSNCase(),
    PMSNCase(1, "serial", dtype=F64, threshold=0.75, lengths=True),
    PMSNCase(5, "cumulative", dtype=F64, threshold=0.75, lengths=True, steps=11),
    PMSNCase(7, burst="nearest", surrogate="rectangular", threshold=0.5, lengths=True),
    PMSNCase(16, "none", surrogate="atan", grad_drive=False),
    PMSNCase(2, "serial", lengths=True, grad_membrane=True, dtype=F64, threshold=0.75, steps=11),
    PMSNCase(3, "cumulative", grad_membrane=True, slopes=True),
    PMSNCase(4, "cumulative", surrogate="gaussian", lanes=(2, 3, 50), steps=4),
    PMSNCase(4, "floor", lanes=(33, 5, 2), steps=7, dtype=F64),
]


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("case", CHUNKED_CASES, ids=lambda c: f"{c.reset_mode}-{c.modes}-{c.steps}")
def test_time_in_chunks(case):
    check_pmsn(case)


def test_few_lanes_and_many_steps_are_cut(shim):
    """By the rule, on a device of 132 multiprocessors: 800 steps are twelve chunks of 67, the last one shorter."""
    case = PMSNCase(steps=800, lanes=(2, 3, 1))
    shim.size = 132
    p = pmsn_problem(case)
    assert geometry.chunks_of(p["x_seq"], 4, False) == geometry.Chunks(12, 67)
    assert geometry.chunks_of(p["x_seq"], 4, True).count == 1
    assert geometry.chunks_of(p["x_seq"], 0, False).count == 1
    assert geometry.chunks_of(p["x_seq"][:767], 4, False).count == 1
    assert geometry.chunks_of(p["x_seq"].double(), 9, False).count == 1
    many = torch.empty(800, 10_000, 1, 1, device="meta")
    assert geometry.chunks_of(many, 4, False).count == 1
    check_pmsn(case)
    assert any(launch.kernel.name == "pmsn_carry" for launch in shim.launches)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("reset_mode", ["floor", "serial"])
def test_a_lost_lane_in_chunks(reset_mode):
    check_lost_lanes(PMSNCase(6, reset_mode, grad_drive=False), "cupy")


@pytest.mark.parametrize("modes", [2, 6])
@pytest.mark.parametrize("reset_mode", ["floor", "serial"])
def test_a_lost_lane_of_pmsn_spoils_no_other(modes, reset_mode):
    check_lost_lanes(PMSNCase(modes, reset_mode, grad_drive=False), "cupy")


def test_lengths_out_of_range_stay_in_memory():
    check_lengths_out_of_range("cupy")


@pytest.mark.parametrize("view", ["odd", "gap", "turned", "repeated"])
def test_views_of_pmsn(view):
    case = PMSNCase()
    p = pmsn_problem(case)
    for key in ("x_seq", "gs_seq", "gy_seq"):
        p[key] = views(p[key])[view]
    p["e"], p["gz"] = p["e"].conj().resolve_conj().conj(), p["gz"].conj().resolve_conj().conj()
    p["w"], p["d"] = p["w"].t().contiguous().t(), p["d"][:1].expand(p["d"].shape)
    plain = {key: value.clone().contiguous() if torch.is_tensor(value) else value for key, value in p.items()}
    plain = {k: v.resolve_conj() if torch.is_tensor(v) else v for k, v in plain.items()}
    results = []
    for given in (p, plain):
        forward = pmsn_forward("cupy", case, given)
        results.append((*forward, *pmsn_backward("cupy", case, given, forward[1])))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)


def test_fixed_point_chunks_have_equal_bits():
    check_fixed_chunks("cupy")
