"""The Triton text of PMSN under the interpreter against the oracle: its axes crossed."""

from __future__ import annotations

import pytest
import torch

from covering import label, pairwise
from msf_pmsn_plugins.backends.triton import config, launch
from msf_pmsn_plugins.surrogate import SURROGATES
from shim.cases import STATES, PMSNCase, check_pmsn, laid_out, pmsn_backward, pmsn_forward, pmsn_problem
from shim.crossed import DTYPES, LAYOUTS, LENGTHS
from shim.edges import check_fixed_chunks, check_lengths_out_of_range, check_lost_lanes
from tolerances import assert_close, assert_same

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("poisoned", "launches")]

LANES = {"small": (5, 3, 2), "inner": (2, 3, 17), "one": (1, 1, 1)}
FACTORS = {
    "modes": ["0", "1", "2", "3", "5", "8", "16"],
    "reset": ["floor", "fixed", "serial", "none", "cumulative"],
    "burst": ["", "nearest", "sawtooth"],
    "surrogate": list(SURROGATES),
    "dtype": list(DTYPES),
    "lengths": LENGTHS,
    "gy": ["", "gy"],
    "gm": ["", "gm"],
    "slopes": ["named", "given"],
    "lanes": list(LANES),
    "layout": LAYOUTS,
    "states": ["plain", "odd", "lazy", "strided"],
    "time": ["whole", "chunks"],
}


def possible(case):
    # The saw jumps at every threshold: a rounding there is a threshold of its width.
    return case["burst"] != "sawtooth" or case["dtype"] == "f64"


@pytest.mark.parametrize("case", pairwise(FACTORS, possible), ids=label)
def test_crossed(case, monkeypatch, launches):
    fixed = case["reset"] == "fixed"
    made = PMSNCase(
        int(case["modes"]),
        "floor" if fixed else case["reset"],
        burst=case["burst"],
        fixed=fixed,
        surrogate=case["surrogate"],
        dtype=DTYPES[case["dtype"]],
        lengths=case["lengths"] != "whole",
        grad_drive=bool(case["gy"]),
        grad_membrane=bool(case["gm"]),
        slopes=case["slopes"] == "given",
        threshold=0.75,
        lanes=LANES[case["lanes"]],
    )
    if case["time"] == "chunks":
        monkeypatch.setattr(config, "LEAST_STEPS", 2)
        monkeypatch.setattr(config, "LEAST_CHUNKS", 2)
        monkeypatch.setattr(launch, "INTERPRETED", config.Device(processors=132))
    odd = STATES if case["states"] == "odd" else ()
    lazy, strided = case["states"] == "lazy", case["lengths"] == "strided"
    p = laid_out(pmsn_problem(made), case["layout"], odd, lazy, strided)
    if case["states"] == "strided":
        p["w"], p["d"] = p["w"].t().contiguous().t(), p["d"][:1].expand(p["d"].shape)
    if case["modes"] == "0":  # a soma alone that gets one drive again and again must reach the threshold
        p["d"] = torch.ones_like(p["d"])
    check_pmsn(made, p, backend="triton")
    cut = case["time"] == "chunks" and case["modes"] != "0" and not fixed
    assert any(name == "pmsn_carry" for name, *_ in launches) == cut


@pytest.mark.parametrize(
    ("lanes", "steps"), [((1, 3, 1), 1), ((3, 130, 1), 4), ((1, 1, 70), 8), ((150, 1, 1), 3), ((33, 5, 2), 2)]
)
@pytest.mark.parametrize("modes", [1, 6])
def test_any_shape_of_pmsn(lanes, steps, modes):
    check_pmsn(PMSNCase(modes, lanes=lanes, steps=steps, seed=sum(lanes)), backend="triton")


@pytest.mark.parametrize("modes", [17, 70])
def test_more_modes_than_registers(modes):
    """They share more threads: there is no most."""
    check_pmsn(PMSNCase(modes, lanes=(2, 1, 2), steps=3), backend="triton")


def test_few_rows_take_many_lanes(monkeypatch, launches):
    monkeypatch.setattr(config, "GATHERING", 256)
    check_pmsn(PMSNCase(lanes=(90, 3, 2), steps=4), backend="triton")
    gathers = [(grid, settings) for name, grid, _, _, settings in launches if name == "pmsn_gather"]
    assert [(grid, settings["HIGH"], settings["WIDE"]) for grid, settings in gathers] == [((1, 2), 16, 8)]


def test_sums_for_the_parameters_keep_their_digits():
    check_pmsn(PMSNCase(modes=2, lanes=(64, 2, 8), steps=64), backend="triton")


def test_few_lanes_and_many_steps_are_cut(monkeypatch, launches):
    """By the rule, on a device of 132 processors: 800 steps are twelve chunks of 67, the last one shorter."""
    device = config.Device(processors=132)
    monkeypatch.setattr(launch, "INTERPRETED", device)
    assert config.for_time(800, 6, 4, False, device) == config.Chunks(12, 67)
    check_pmsn(PMSNCase(1, steps=800, lanes=(2, 3, 1)), backend="triton")
    assert any(name == "pmsn_carry" for name, *_ in launches)


@pytest.mark.parametrize("modes", [2, 6])
@pytest.mark.parametrize("reset_mode", ["floor", "serial"])
@pytest.mark.parametrize("time", ["whole", "chunks"])
def test_a_lost_lane_of_pmsn_spoils_no_other(request, modes, reset_mode, time):
    if time == "chunks":
        request.getfixturevalue("chunked")
    check_lost_lanes(PMSNCase(modes, reset_mode, grad_drive=False), "triton")


@pytest.mark.parametrize("modes", [0, 3])
def test_an_infinite_gradient_stays_one(modes):
    """Rows of a tile that stand for no mode must not make NaN of it."""
    case = PMSNCase(modes)
    p = pmsn_problem(case)
    p["gy_seq"][2, 0] = torch.inf
    p["w"], p["d"] = torch.ones_like(p["w"]), p["d"].abs()
    assert (pmsn_backward("triton", case, p, p["x_seq"])[0][2, 0] == torch.inf).all()


def test_lengths_out_of_range_stay_in_memory():
    check_lengths_out_of_range("triton")


def test_fixed_point_chunks_have_equal_bits():
    check_fixed_chunks("triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("time", ["whole", "chunks"])
@pytest.mark.parametrize("reset", ["floor", "cumulative"])
def test_half_precision_is_float32_rounded_once(request, dtype, time, reset):
    """Sequences in half precision beside a float32 state: in and out as they are, inside in float32."""
    if time == "chunks":
        request.getfixturevalue("chunked")
    case = PMSNCase(5, reset, lengths=True)
    p = pmsn_problem(case)
    half = {**p, **{key: p[key].to(dtype) for key in ("x_seq", "gs_seq")}}
    wide = {**half, **{key: half[key].float() for key in ("x_seq", "gs_seq")}}
    forwards = [pmsn_forward("triton", case, q) for q in (half, wide)]
    assert_same(forwards[0][0], forwards[1][0].to(dtype))
    backwards = [pmsn_backward("triton", case, q, q["x_seq"]) for q in (half, wide)]
    assert_same(backwards[0][0], backwards[1][0].to(dtype))
    for one, two in zip(forwards[0][1:] + backwards[0][1:], forwards[1][1:] + backwards[1][1:], strict=True):
        assert_same(one, two)


def test_the_shape_of_a_launch_changes_rounding_alone(monkeypatch):
    case = PMSNCase(4, lanes=(40, 3, 2))
    p = pmsn_problem(case)
    results = []
    for processors in (1, 132):
        monkeypatch.setattr(launch, "INTERPRETED", config.Device(processors))
        forward = pmsn_forward("triton", case, p)
        results.append((*forward, *pmsn_backward("triton", case, p, forward[1])))
    for one, two in zip(*(result[:8] for result in results), strict=True):
        assert_same(one, two)
    for one, two in zip(*(result[8:] for result in results), strict=True):
        assert_close(one, two, "pmsn_adjoint")
