"""The CUDA kernels' text on a CPU (see ``shim``) against the oracle."""

from __future__ import annotations

import itertools

import pytest
import torch

from helpers import poisoned_empty
from msf_pmsn_plugins.backends import cupy_backend, torch_backend
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.surrogate import SURROGATES
from shim import ShimDevice
from shim.cases import (
    MSFCase,
    PMSNCase,
    check_msf,
    check_pmsn,
    cut_time,
    msf_backward,
    msf_forward,
    msf_oracle,
    msf_problem,
    pmsn_backward,
    pmsn_forward,
    pmsn_problem,
)
from tolerances import assert_same

pytestmark = pytest.mark.kernels

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def shim(monkeypatch):
    device = ShimDevice()
    monkeypatch.setattr(launch, "device", device)
    with poisoned_empty():
        yield device


def slow_unless(values, quick):
    """Parameters of which all but the ``quick`` ones belong to the slow tests: each needs libraries of its own."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def cycle(*lists):
    """As many tuples as the longest list has entries; the shorter ones start over."""
    count = max(map(len, lists))
    return list(zip(*(itertools.islice(itertools.cycle(values), count) for values in lists), strict=True))


CHARGE_CASES = [
    MSFCase(charge, reset, surrogate, levels, lengths=lengths, v_reset=-0.25 if reset == "hard" else 0.0)
    for charge, reset, surrogate, levels, lengths in cycle(
        list(CHARGES), ["hard", "soft", "none"], list(SURROGATES), [1, 4], [False, True, False]
    )
]


@pytest.mark.parametrize("case", CHARGE_CASES, ids=lambda case: f"{case.charge}-{case.reset_mode}")
def test_every_charge(case):
    check_msf(case)


@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("reset", slow_unless([("hard", 1), ("hard", 3), ("soft", 3)], [("hard", 3)]))
def test_a_reset_with_its_gradient(surrogate, reset):
    reset_mode, levels = reset
    check_msf(MSFCase("lif", reset_mode, surrogate, levels, detach=False, v_reset=0.5, grad_membrane=True))


@pytest.mark.parametrize("learned", ["one", "lanes"])
@pytest.mark.parametrize("charge", [name for name, rule in CHARGES.items() if rule.rate_grad])
def test_a_learned_rate(charge, learned):
    reset_mode = {"plif": "soft", "plif_product": "none"}.get(charge, "hard")
    check_msf(MSFCase(charge, reset_mode, "atan", learned=learned, lengths=learned == "lanes", detach=False))


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.parametrize("shape", [(2, 16), (3, 5)], ids=["wide", "one-lane"])
def test_msf_in_every_dtype(shim, dtype, shape):
    check_msf(MSFCase("decay", surrogate="triangle", dtype=dtype, shape=shape, lengths=True))
    wide = shape == (2, 16)
    assert all(
        ("VEC", 16 // dtype.itemsize if wide else 1) in launch.kernel.macros for launch in shim.launches
    )


@pytest.mark.parametrize("reset_mode", ["hard", "soft", "none"])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_kept_bytes_give_the_same_bits(dtype, reset_mode):
    check_msf(MSFCase("lif", reset_mode, levels=5, dtype=dtype, keep="code", lengths=True))


@pytest.mark.parametrize("levels", slow_unless([1, 2, 127, 128, 256, 257, 1000], [1, 257]))
def test_any_number_of_thresholds(levels):
    check_msf(MSFCase(levels=levels, steps=2, shape=(2, 4)))


# One library serves all of these.
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 64, 300])
@pytest.mark.parametrize("lanes", [1, 3, 64, 130, 1028])
def test_any_size(steps, lanes):
    check_msf(MSFCase(steps=steps, shape=(lanes,), seed=steps + lanes))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_threads_does_not_matter(shim, order):
    shim.order = order
    check_msf(MSFCase(shape=(3, 1000)))
    check_pmsn(PMSNCase(lanes=(9, 5, 3)))
    check_pmsn(PMSNCase(modes=5, reset_mode="cumulative", lanes=(300, 2, 1), steps=3))


def test_nan_and_inf_do_as_in_the_oracle():
    case = MSFCase("lif", "soft", "triangle", detach=False, shape=(4, 8))
    p = msf_problem(case)
    p["x_seq"][1, 0], p["x_seq"][2, 1, :4], p["x_seq"][0, 2] = torch.nan, torch.inf, -torch.inf
    (s, kept, v), expected = msf_forward("cupy", case, p), msf_oracle(case, p)
    for actual, ref in zip((s, kept, v), expected[:3], strict=True):
        assert_same(actual, ref)
    for grad, ref in zip(
        msf_backward("cupy", case, p, kept), msf_backward("torch", case, p, kept), strict=True
    ):
        assert_same(grad, ref)


def test_padding_may_hold_anything():
    case = MSFCase("plif", "hard", "atan", learned="lanes", lengths=True, shape=(4, 8), grad_membrane=True)
    p = msf_problem(case)
    padded = (torch.arange(case.steps)[:, None] >= p["lengths"])[..., None]
    assert padded.any()
    dirty = dict(p)
    for key in ("x_seq", "gs_seq", "gm_seq"):
        dirty[key] = torch.where(padded, torch.nan, p[key])
    kept = msf_forward("cupy", case, p)[1]
    for clean, other in [
        (msf_forward("cupy", case, p), msf_forward("cupy", case, dirty)),
        (msf_backward("cupy", case, p, kept), msf_backward("cupy", case, dirty, kept)),
    ]:
        for one, two in zip(clean, other, strict=True):
            assert_same(one, two)
            assert torch.isfinite(one).all()


def views(seq):
    """Views [T, *] with the values of ``seq``: misaligned, with a gap between steps, permuted, one step repeated."""
    odd = torch.empty(seq.numel() + 1, dtype=seq.dtype)[1:].view(seq.shape).copy_(seq)
    gap = torch.empty(seq.shape[0], 3, *seq.shape[1:], dtype=seq.dtype)[:, 1].copy_(seq)
    turned = seq.movedim(-1, 0).contiguous().movedim(0, -1)
    return {"odd": odd, "gap": gap, "turned": turned, "repeated": seq[:1].expand(seq.shape)}


@pytest.mark.parametrize("view", ["odd", "gap", "turned", "repeated"])
def test_views_of_msf(shim, view):
    case = MSFCase("plif", surrogate="atan", learned="one", grad_membrane=True, shape=(3, 8))
    p = msf_problem(case)
    for key in ("x_seq", "gs_seq", "gm_seq"):
        p[key] = views(p[key])[view]
    for key in ("v", "gv"):
        p[key] = views(p[key][None])["odd"][0]
    plain = {key: value.clone().contiguous() if torch.is_tensor(value) else value for key, value in p.items()}
    results = []
    for given in (p, plain):
        forward = msf_forward("cupy", case, given)
        results.append((*forward, *msf_backward("cupy", case, given, forward[1])))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)
    assert ("VEC", 1) in shim.launches[0].kernel.macros
    assert ("VEC", 4) in shim.launches[2].kernel.macros


@pytest.mark.parametrize("modes", slow_unless(range(17), [0, 1, 4, 5, 7, 16]))
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
    PMSNCase(fixed=True, burst="nearest", surrogate="sigmoid", dtype=F64, threshold=0.7, lengths=True),
]


@pytest.mark.parametrize("case", PMSN_CASES, ids=lambda c: f"{c.reset_mode}-{c.burst}-{c.fixed}-{c.modes}")
def test_every_reset_of_pmsn(case):
    check_pmsn(case)


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


@pytest.fixture
def chunked(shim, monkeypatch):
    """Every sequence of four steps and more is cut."""
    cut_time(monkeypatch, shim)
    yield
    names = {launch.kernel.name for launch in shim.launches}
    assert {"pmsn_chunk", "pmsn_carry", "pmsn_soma"} <= names


CHUNKED_CASES = [
    PMSNCase(),
    PMSNCase(1, "serial", dtype=F64, threshold=0.75, lengths=True),
    PMSNCase(5, "cumulative", dtype=F64, threshold=0.75, lengths=True, steps=11),
    PMSNCase(7, burst="nearest", surrogate="rectangular", threshold=0.5, lengths=True),
    PMSNCase(16, "none", surrogate="atan", grad_drive=False),
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
    check_lost_lanes(PMSNCase(6, reset_mode, grad_drive=False))


@pytest.mark.parametrize("modes", [2, 6])
@pytest.mark.parametrize("reset_mode", ["floor", "serial"])
def test_a_lost_lane_of_pmsn_spoils_no_other(modes, reset_mode):
    check_lost_lanes(PMSNCase(modes, reset_mode, grad_drive=False))


def check_lost_lanes(case):
    p = pmsn_problem(case)
    lost = {**p, "x_seq": p["x_seq"].clone(), "z": p["z"].clone()}
    lost["x_seq"][4, 0], lost["z"][1, 0] = torch.inf, torch.nan
    s, y, r, z = pmsn_forward("cupy", case, lost)
    s_ref, y_ref, r_ref, z_ref = pmsn_forward("torch", case, lost)
    assert_same(s, s_ref)
    for one, two in ((y, y_ref), (r, r_ref), (z.real, z_ref.real)):
        assert_same(one.isnan(), two.isnan())
    assert y[4:, 0].isnan().all()
    assert y[:, 1, 0].isnan().all()
    assert torch.isfinite(y[:, 2:]).all()
    grads = pmsn_backward("cupy", case, lost, y)
    # What the parameters get is what the other lanes, and the steps before, give.
    live = {**p, "gs_seq": p["gs_seq"].clone(), "x_seq": p["x_seq"].clone(), "z": p["z"].clone()}
    live["gs_seq"][4:, 0], live["gs_seq"][:, 1, 0] = 0, 0
    live["x_seq"][4, 0], live["z"][1, 0] = 0, 0
    ref = pmsn_backward("cupy", case, live, y)
    for one, two in zip(grads[3:], ref[3:], strict=True):
        assert_same(one, two)
    assert_same(grads[0][:, 2:], ref[0][:, 2:])


def test_lengths_out_of_range_stay_in_memory():
    # On a device nobody looks at their values.
    case = PMSNCase(lengths=True)
    p = pmsn_problem(case)
    results = []
    for low, high in ((-7, 10**9), (0, case.steps)):
        given = {**p, "lengths": torch.tensor([low, high, 3, low, high])}
        forward = pmsn_forward("cupy", case, given)
        results.append((*forward, *pmsn_backward("cupy", case, given, forward[1])))
    for one, two in zip(*results, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("view", ["odd", "gap", "turned", "repeated"])
def test_views_of_pmsn(view):
    case = PMSNCase()
    p = pmsn_problem(case)
    for key in ("x_seq", "gs_seq", "gy_seq"):
        p[key] = views(p[key])[view]
    p["a"], p["gz"] = p["a"].conj().resolve_conj().conj(), p["gz"].conj().resolve_conj().conj()
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
    case = PMSNCase(fixed=True, steps=12, threshold=0.7)
    p = pmsn_problem(case)
    whole = pmsn_forward("cupy", case, p)
    parts, state = [], p
    for piece in p["x_seq"].split([1, 5, 6]):
        s, y, r, z = pmsn_forward("cupy", case, {**state, "x_seq": piece})
        parts.append((s, y))
        state = {**state, "r": r, "z": z}
    assert_same(torch.cat([s for s, _ in parts]), whole[0])
    assert_same(torch.cat([y for _, y in parts]), whole[1])
    assert_same(state["r"], whole[2])
    assert_same(state["z"], whole[3])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(back ? chunks - 1 - i : i)", "i"),
        ("back ? -pi : pi", "pi"),
        ("Gathered gathered{State<TAKEN>(p0, v, first)}", "Gathered gathered{State<TAKEN>()}"),
        ("gz && last ?", "gz && (last || true) ?"),
        ("own.steps != known", "known < 0"),
    ],
    ids=["direction", "conjugate", "sensitivity", "last gradient", "shorter chunk"],
)
def test_a_mistake_in_chunks_shows(shim, chunked, right, wrong):
    case = PMSNCase(lengths=True, dtype=F64, steps=11)
    planted = []

    def plant(text):
        planted.append(right in text)
        return text.replace(right, wrong)

    shim.edit = plant
    with pytest.raises(AssertionError):
        check_pmsn(case)
    assert any(planted)
    shim.edit = None
    check_pmsn(case)


BARRIER = "    __syncthreads();\n    for (int n = threadIdx.y;"
WIDE = PMSNCase(lanes=(40, 2, 200), steps=2)

# Each of these mistakes in a kernel must show in a check above.
MISTAKES = {
    "tie": (MSFCase(), "m >= theta.at[d]", "m > theta.at[d]"),
    "tie of the reset": (MSFCase(), "m >= theta.at[0] ? v_reset", "m > theta.at[0] ? v_reset"),
    "bound": (MSFCase(shape=(3, 5)), "(first >= lanes) return;", "(first + 1 >= lanes) return;"),
    "stride": (MSFCase(), "t * lanes + first, gx)", "t * (lanes - 4) + first, gx)"),
    "padding": (MSFCase(lengths=True), "return t < steps[j];", "return t <= steps[j];"),
    "order of operations": (MSFCase("lif"), "v - (v - r) / k + x", "v + x - (v - r) / k"),
    "carry": (PMSNCase(), "next.r = next.v - k;", "next.r = next.v - next.s;"),
    "reduction": (PMSNCase(lanes=(8, 3, 2)), "y < blockDim.y; ++y", "y + 1 < blockDim.y; ++y"),
    "tree": (WIDE, "half = THREADS / 2", "half = THREADS / 4"),
    "first row": (PMSNCase(), "? real_t(0) : *place", "? *place : *place"),
    "barrier": (PMSNCase(), BARRIER, BARRIER.replace("__syncthreads();", "")),
    "divergent barrier": (PMSNCase(), BARRIER, BARRIER.replace("__sync", "if (threadIdx.y) __sync")),
    "barrier of the tree": (WIDE, "+ half];\n      __syncthreads();", "+ half];"),
    "uninitialised shared memory": (PMSNCase(), "n < SUMS; ++n) given", "n + 1 < SUMS; ++n) given"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake_shows(shim, name):
    case, right, wrong = MISTAKES[name]
    planted = []

    def plant(text):
        planted.append(right in text)
        return text.replace(right, wrong)

    shim.edit = plant
    check = check_msf if isinstance(case, MSFCase) else check_pmsn
    with pytest.raises((AssertionError, RuntimeError)):
        for shim.order in (0, 1):
            check(case)
    assert any(planted)
    shim.edit = None
    check(case)
