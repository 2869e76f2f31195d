"""MSF: golden vectors, the identities of its specification, and ``sequence`` against a loop of ``step``."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from helpers import DTYPES, ON_CPU, PATHS, chunks, examples, golden, loop, poisoned_empty, sequence, tensor
from msf_pmsn_plugins.backends import BACKENDS
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.neurons.msf import msf
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate
from tolerances import F32, F64, assert_close, assert_same

V1 = {"v1p0": 1.0, "v0p5": 0.5}
# the loop needs no backend; every backend runs the other paths
RUNS = ["loop", *(f"{path}-{backend}" for path in ("sequence", "chunks") for backend in ON_CPU)]
all_runs = pytest.mark.parametrize("how", RUNS)
both_dtypes = pytest.mark.parametrize("p", DTYPES)


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def run(how, neuron, x_seq, state=None):
    path, _, backend = how.partition("-")
    neuron.backend = backend or "auto"
    return PATHS[path](neuron, x_seq, state)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def lattice(shape, bound=8.0, steps=64):
    """Multiples of 1/64: with decay 0.25 and at most 8 steps every membrane is exact in float32."""
    limit = int(bound * steps)
    return arrays(np.int16, shape, elements=st.integers(-limit, limit)).map(lambda a: a / steps)


def by_the_book(x, D=4, v1=1.0, h=1.0, decay=0.25):
    """Section 2 of the specification in float64 numpy, mask and all (finite inputs only)."""
    counts, membranes, keep, m = [], [], 1.0, 0.0
    for current in x:
        m = decay * m * keep + current
        y = sum((m >= v1 + d * h).astype(float) for d in range(D))
        keep = 1.0 - (y > 0)
        counts.append(y)
        membranes.append(m)
    return np.stack(counts), np.stack(membranes)


# ---------------------------------------------------------------- golden vectors


def sets(name):
    g = golden(name)
    return [(name, v, int(t)) for v in V1 for t in g["T_values"]]


@all_runs
@both_dtypes
@pytest.mark.parametrize(("name", "v", "steps"), sets("msf_d4") + sets("msf_d8_rectangular"))
def test_golden(name, v, steps, p, how):
    g = golden(name)
    x = tensor(g[f"x_T{steps}"], DTYPES[p])
    gy = tensor(g[f"gy_T{steps}"], DTYPES[p])
    for surrogate in ("rectangular", "sigmoid", "atan", "gaussian") if "d4" in name else ("rectangular",):
        neuron = MSF(D=int(g["D"]), decay=float(g["decay"]), v_threshold=V1[v], surrogate=surrogate)
        x.requires_grad_()
        s, _, m = run(how, neuron, x)
        assert_same(s, tensor(g[f"y_{p}_{v}_T{steps}"], DTYPES[p]))
        assert_close(m, tensor(g[f"m_f64_{v}_T{steps}"]), "membrane")
        (gx,) = torch.autograd.grad(s, x, gy)
        assert_close(gx, tensor(g[f"gx_f64_{surrogate}_{v}_T{steps}"]), "msf_gradient")


@all_runs
@both_dtypes
@pytest.mark.parametrize(("v", "steps"), [case[1:] for case in sets("msf_lif")])
def test_one_threshold_is_the_published_lif_to_the_bit(v, steps, p, how):
    g = golden("msf_lif")
    x = tensor(g[f"x_T{steps}"], DTYPES[p]).requires_grad_()
    neuron = MSF(D=1, v_threshold=V1[v], surrogate=Surrogate("rectangular", float(g["alpha"])))
    s, _, _ = run(how, neuron, x)
    (gx,) = torch.autograd.grad(s, x, tensor(g[f"gy_T{steps}"], DTYPES[p]))
    assert_same(s, tensor(g[f"y_{p}_{v}_T{steps}"], DTYPES[p]))
    assert_same(gx, tensor(g[f"gx_{p}_{v}_T{steps}"], DTYPES[p]))


@all_runs
@both_dtypes
@pytest.mark.parametrize("part", ["sweep", "seq"])
@pytest.mark.parametrize("v", V1)
@pytest.mark.parametrize("count", [4, 8, 1])
def test_golden_ties(count, v, part, p, how):
    g = golden("msf_ties")
    key = "lif" if count == 1 else f"D{count}"
    x = tensor(g[f"x_{part}"], DTYPES[p]).requires_grad_()
    for surrogate in ("rectangular", "sigmoid", "atan", "gaussian") if count == 4 else ("rectangular",):
        s, _, m = run(how, MSF(D=count, v_threshold=V1[v], surrogate=surrogate), x)
        assert_same(s, tensor(g[f"y_{key}_{v}_{part}"], DTYPES[p]))
        if count > 1:
            assert_same(m, tensor(g[f"m_{key}_{v}_{part}"], DTYPES[p]))
        (gx,) = torch.autograd.grad(s, x, tensor(g[f"gy_{part}"], DTYPES[p]))
        expected = tensor(g[f"gx_{key}_{v}_{part}" if count == 1 else f"gx_{key}_{surrogate}_{v}_{part}"])
        if surrogate == "rectangular" and part == "sweep":
            assert_same(gx, expected.to(gx.dtype))  # one product with 0 or 1
        assert_close(gx, expected, "msf_gradient", F32)  # the file holds float32 gradients


HOSTS = list(itertools.product(["tau2p0", "tau1p3333"], [0, 1], ["th1p0", "th0p5"]))


@all_runs
@both_dtypes
@pytest.mark.parametrize(("tau", "decay_input", "th"), HOSTS)
def test_spikingjelly_lif_in_its_own_order_of_operations(tau, decay_input, th, p, how):
    g = golden("spikingjelly_lif")
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    case = f"{p}_{tau}_di{decay_input}_{th}"
    for surrogate in ("atan", "sigmoid"):
        neuron = MSF(
            D=1,
            v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
            charge="lif_decay_input" if decay_input else "lif",
            tau={"tau2p0": 2.0, "tau1p3333": 4 / 3}[tau],
            surrogate=surrogate,
        )
        s, (v,), _ = run(how, neuron, x)
        assert_same(s, tensor(g[f"y_{case}"], DTYPES[p]))
        assert_close(v, tensor(g[f"v_{case}"])[-1], "host")
        (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
        assert_close(gx, tensor(g[f"gx_{surrogate}_{case.replace('f32', 'f64')}"]), "msf_gradient")


@all_runs
@both_dtypes
@pytest.mark.parametrize(("tau", "decay_input", "th"), HOSTS)
def test_spikingjelly_lif_is_one_threshold_with_decay_1_minus_1_over_tau(tau, decay_input, th, p, how):
    g = golden("spikingjelly_lif")
    k = {"tau2p0": 2.0, "tau1p3333": 4 / 3}[tau]
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    neuron = MSF(
        D=1,
        decay=1 - 1 / k,
        input_scale=1 / k if decay_input else 1.0,
        v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
        surrogate="atan",
    )
    s, (v,), _ = run(how, neuron, x)
    case = f"{p}_{tau}_di{decay_input}_{th}"
    # up to rounding only, but no membrane of this file lies that close to a threshold
    assert_same(s, tensor(g[f"y_{case}"], DTYPES[p]))
    assert_close(v, tensor(g[f"v_{case}"])[-1], "host")
    (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
    assert_close(gx, tensor(g[f"gx_atan_{case.replace('f32', 'f64')}"]), "msf_gradient")


@all_runs
@both_dtypes
@pytest.mark.parametrize("th", ["th1p0", "th0p5"])
@pytest.mark.parametrize("beta", ["beta0p25", "beta0p5"])
def test_snntorch_leaky_is_one_threshold_off_ties(beta, th, p, how):
    g = golden("snntorch_leaky")
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    neuron = MSF(
        D=1,
        decay={"beta0p25": 0.25, "beta0p5": 0.5}[beta],
        v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
        surrogate="atan",
    )
    s, _, m = run(how, neuron, x)
    case = f"{beta}_{th}_zero_delay1"
    assert_same(s, tensor(g[f"y_{p}_{case}"], DTYPES[p]))
    assert_close(m, tensor(g[f"mem_f64_{case}"]), "host")
    (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
    assert_close(gx, tensor(g[f"gx_f64_{case}"]), "msf_gradient")


@pytest.mark.parametrize("th", ["th1p0", "th0p5"])
def test_hosts_at_exact_ties(th):
    """SpikingJelly fires there, as MSF does; snnTorch is silent."""
    theta = {"th1p0": 1.0, "th0p5": 0.5}[th]
    g = golden("spikingjelly_lif")
    s, _, _ = loop(MSF(D=1, decay=0.5, v_threshold=theta), tensor(g["x_tie"]))
    assert_same(s, tensor(g[f"y_tie_tau2p0_di0_{th}"], F32))
    g = golden("snntorch_leaky")
    s, _, _ = loop(MSF(D=1, v_threshold=theta), tensor(g["x_tie"]))
    assert not torch.equal(s, tensor(g[f"y_tie_beta0p25_{th}_zero"], F32))


# ---------------------------------------------------------------- by hand


@all_runs
@both_dtypes
def test_by_hand(p, how):
    x = torch.tensor([0.5, 1.0, 3.0, -1.0, 1.0, 6.0, 0.875], dtype=DTYPES[p]).unsqueeze(1).requires_grad_()
    s, (v,), m = run(how, MSF(D=4), x)
    # decay 0.25; the membrane after a spike starts from 0
    assert m.flatten().tolist() == [
        0.5,
        0.25 * 0.5 + 1.0,
        3.0,
        -1.0,
        0.25 * -1.0 + 1.0,
        0.25 * 0.75 + 6.0,
        0.875,
    ]
    assert s.flatten().tolist() == [0, 1, 3, 0, 0, 4, 0]  # 3.0 ties with the third threshold; 6.19 saturates
    assert v.tolist() == [0.875]
    s.sum().backward()
    # slope 1 on (0.5, 4.5) off half-integers: 0, 1, 1, 0, 1, 0, 1; silent steps pass a quarter of the later gradient
    assert x.grad.flatten().tolist() == [0.25, 1.0, 1.0, 0.25, 1.0, 0.0, 1.0]


@all_runs
def test_by_hand_soft_reset_and_none(how):
    x = torch.tensor([2.5, 0.5, 0.5]).unsqueeze(1)
    s, (v,), m = run(how, MSF(D=2, decay=0.5, reset_mode="soft"), x)
    assert m.flatten().tolist() == [2.5, 0.75, 0.875]  # 2.5 - 2*1 = 0.5 is kept
    assert (s.flatten().tolist(), v.tolist()) == ([2, 0, 0], [0.875])
    s, (v,), m = run(how, MSF(D=2, decay=0.5, reset_mode="none"), x)
    assert m.flatten().tolist() == [2.5, 1.75, 1.375]
    assert (s.flatten().tolist(), v.tolist()) == ([2, 1, 1], [1.375])


@all_runs
def test_by_hand_hard_reset_to_a_potential(how):
    x = torch.tensor([1.75, 1.0, 0.0]).unsqueeze(1)
    s, (v,), m = run(how, MSF(D=2, decay=0.5, v_reset=-0.5, input_scale=0.5), x)
    # from -0.5: m = -0.5 + 0.5*(v + 0.5) + 0.5*x
    assert m.flatten().tolist() == [0.375, 0.4375, -0.5 + 0.5 * 0.9375]
    assert s.sum() == 0
    s, (v,), m = run(how, MSF(D=2, decay=0.5, v_reset=-0.5), x)
    assert m.flatten().tolist() == [1.25, 0.5, 0.0]  # 1.25 fires, then -0.5 + 0 + 1
    assert (s.flatten().tolist(), v.tolist()) == ([1, 0, 0], [0.0])


# ---------------------------------------------------------------- identities of the specification, section 6


@all_runs
@examples(25)
@given(x=lattice((1, 40)), v1=st.sampled_from([0.5, 1.0]), count=st.integers(1, 9))
def test_one_step_or_no_decay_is_a_quantizer(how, x, v1, count):
    expected = np.clip(np.floor(x - v1 + 1), 0, count)
    s, _, _ = run(how, MSF(D=count, v_threshold=v1), torch.from_numpy(x).float())
    assert_same(s, torch.from_numpy(expected).float())
    column = torch.from_numpy(x).float().reshape(-1, 1)  # as 40 steps without memory
    s, _, _ = run(how, MSF(D=count, v_threshold=v1, decay=0.0), column)
    assert_same(s, torch.from_numpy(expected).float().reshape(-1, 1))


@all_runs
def test_quantized_relu(how):
    x = randn(2, 300) * 3
    neuron = MSF(D=16, decay=0.0, v_threshold=0.5)
    x.requires_grad_()
    s, _, _ = run(how, neuron, x)
    assert_same(s, torch.floor(torch.relu(x) + 0.5))
    assert ((s - torch.relu(x)).abs() <= 0.5).all()
    (gx,) = torch.autograd.grad(s.sum(), x)
    assert_same(gx, (x > 0).to(F64))
    errors = []
    for q in (1.0, 0.5, 0.25):  # q*MSF(x/q) tends to ReLU
        s, _, _ = run(how, MSF(D=64, decay=0.0, v_threshold=0.5), x.detach() / q)
        errors.append((q * s - torch.relu(x)).abs().max().item())
        assert errors[-1] <= q / 2
    assert errors[0] > errors[1] > errors[2]


@all_runs
@both_dtypes
@pytest.mark.parametrize("v1", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("decay", [0.25, 0.9])
def test_same_fire_mask_and_nesting_for_every_count(v1, decay, p, how):
    x = randn(24, 50, dtype=DTYPES[p]) * 3
    largest, _, m_lif = run(how, MSF(D=8, v_threshold=v1, decay=decay), x)
    assert largest.max() == 8
    for count in range(1, 8):
        s, _, m = run(how, MSF(D=count, v_threshold=v1, decay=decay), x)
        assert_same(s, largest.clamp(max=count))
        assert_same(m, m_lif)
        assert_same((s > 0), (largest > 0))


@all_runs
@pytest.mark.parametrize("h", [1.0, 0.5])
@pytest.mark.parametrize("name", SURROGATES)
def test_additive_slope(name, h, how):
    """One step: the slope of D thresholds is the sum of D shifted slopes of one."""
    x = (randn(1, 200) * 3).requires_grad_()
    surrogate = Surrogate(name)
    s, _, _ = run(how, MSF(D=5, surrogate=surrogate, threshold_step=h), x)
    (gx,) = torch.autograd.grad(s.sum(), x)
    one = MSF(D=1, surrogate=surrogate)
    total = torch.zeros_like(x)
    for d in range(5):
        shifted = (x - d * h).detach().requires_grad_()
        total += torch.autograd.grad(run(how, one, shifted)[0].sum(), shifted)[0]
    assert_close(gx, total, "adjoint")


@all_runs
@pytest.mark.parametrize("name", ["rectangular", "atan"])
def test_causality_of_outputs_and_gradients(name, how):
    x = (randn(12, 6) * 1.5).requires_grad_()
    neuron = MSF(surrogate=name)
    s, _, _ = run(how, neuron, x)
    changed = x.detach().clone()
    changed[7:] = 5 * randn(5, 6, seed=1)
    assert_same(run(how, neuron, changed)[0][:7], s[:7])
    for t in range(12):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        # a spike before t cuts the way back: steps up to the last spike before t get nothing
        fired = s[:t].detach() > 0
        after = torch.flip(torch.cumsum(torch.flip(fired.int(), [0]), 0), [0]) > 0
        assert not gx[:t][after].any()
        if name == "atan":  # and where nothing fired in between everything arrives
            assert gx[:t][~after].all()


@all_runs
@both_dtypes
def test_equivariance_and_independence_of_lanes(p, how):
    x = (randn(10, 4, 5, 3, dtype=DTYPES[p]) * 2).requires_grad_()
    neuron = MSF(
        surrogate="triangle"
    )  # its slope is the same to the bit in every SIMD lane; an exponential's is not
    s, (v,), m = run(how, neuron, x)
    (gx,) = torch.autograd.grad(s.sum(), x)
    y = x.detach().permute(0, 3, 1, 2)[:, :, torch.tensor([2, 0, 3, 1])].requires_grad_()
    sp, (vp,), mp = run(how, neuron, y)
    (gy,) = torch.autograd.grad(sp.sum(), y)
    pick = torch.tensor([2, 0, 3, 1])
    for a, b in ((sp, s), (mp, m), (gy, gx)):
        assert_same(a, b.detach().permute(0, 3, 1, 2)[:, :, pick])
    assert_same(vp, v.detach().permute(2, 0, 1)[:, pick])
    alone, _, _ = run(how, neuron, x[:, 1:2])
    assert_same(alone, s[:, 1:2])


@examples(60)
@given(
    data=st.data(),
    steps=st.integers(1, 24),
    reset=st.sampled_from(["hard", "soft", "none"]),
    wide=st.booleans(),
)
def test_chunks_equal_the_whole_to_the_bit(data, steps, reset, wide):
    x = (
        randn(steps, 3, 2, seed=data.draw(st.integers(0, 99)), dtype=F64 if wide else F32) * 2
    ).requires_grad_()
    neuron = MSF(reset_mode=reset, decay=0.3, surrogate="atan")
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=4)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, steps])]
    up = randn(steps, 3, 2, seed=7, dtype=x.dtype)
    grads = []
    whole, pieces = sequence(neuron, x), chunks(neuron, x, sizes=sizes)
    for s, (v,), m in (whole, pieces):
        (gx,) = torch.autograd.grad((s * up).sum() + (m * up).sum() + v.sum(), x)
        grads.append(gx)
    assert_same(pieces[0], whole[0])
    assert_same(pieces[1][0], whole[1][0])
    assert_same(pieces[2], whole[2])
    assert_same(*grads)


@all_runs
def test_statelessness(how):
    neuron, x = MSF(), randn(9, 20, dtype=F32) * 2
    first, (v,), _ = run(how, neuron, x)
    run(how, neuron, -x)
    again, (w,), _ = run(how, neuron, x)
    assert_same(first, again)
    assert_same(v, w)
    assert list(neuron.state_dict()) == []
    assert list(neuron.buffers()) == []


def test_detached_state_truncates_the_gradient():
    x = torch.tensor([[0.5], [0.75]], dtype=F64, requires_grad=True)
    neuron = MSF(surrogate="atan")
    _, (v,), _ = neuron.sequence(x[:1], membrane=True)
    s, _, _ = neuron.sequence(x[1:], (v.detach(),))
    (gx,) = torch.autograd.grad(s.sum(), x)
    assert gx[0] == 0
    assert gx[1] != 0


@all_runs
@examples(40)
@given(
    x=lattice((8, 6)),
    count=st.integers(1, 9),
    v1=st.sampled_from([0.5, 1.0]),
    h=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_lattice_is_exact_in_float32(how, x, count, v1, h):
    counts, membranes = by_the_book(x, count, v1, h)
    s, _, m = run(how, MSF(D=count, v_threshold=v1, threshold_step=h), torch.from_numpy(x).float())
    assert_same(s.double(), torch.from_numpy(counts))
    assert_same(m.double(), torch.from_numpy(membranes))


@all_runs
@examples(20)
@given(x=lattice((16, 6), bound=4.0))
def test_lattice_is_exact_in_float32_with_decay_one_half(how, x):
    counts, membranes = by_the_book(x, decay=0.5)
    s, _, m = run(how, MSF(decay=0.5), torch.from_numpy(x).float())
    assert_same(s.double(), torch.from_numpy(counts))
    assert_same(m.double(), torch.from_numpy(membranes))


@all_runs
def test_thresholds_are_rounded_once_to_the_dtype_of_the_state(how):
    """0.3 + d*0.1 in double, then float32: a membrane equal to that float32 number fires."""
    neuron = MSF(D=8, v_threshold=0.3, threshold_step=0.1, decay=0.0)
    for dtype in (F32, F64):
        theta = torch.tensor([0.3 + d * 0.1 for d in range(8)], dtype=F64).to(dtype)
        below = torch.nextafter(theta, torch.zeros_like(theta))
        s, _, _ = run(how, neuron, torch.stack([theta, below]))
        assert s.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]]


# ---------------------------------------------------------------- ties and edges, section 5


@all_runs
@both_dtypes
def test_tie_table(p, how):
    x = torch.tensor([[0.5, 1.0, 1.5, 2.0, 2.5, 4.5, 5.0]], dtype=DTYPES[p], requires_grad=True)
    s, _, _ = run(how, MSF(D=4), x)
    assert s.tolist() == [[0, 1, 1, 2, 2, 4, 4]]
    s.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0, 1, 0, 0, 0]]


@all_runs
def test_nan_stays_in_its_lane_until_the_end(how):
    x = (randn(8, 3, dtype=F32) * 2).requires_grad_()
    clean, (v_clean,), _ = run(how, MSF(), x)
    dirty = x.detach().clone()
    dirty[3, 1] = math.nan
    dirty.requires_grad_()
    s, (v,), m = run(how, MSF(), dirty)
    assert not s[3:, 1].any()  # comparisons with NaN are false: no spike, no reset
    assert m[3:, 1].isnan().all()
    assert v[1].isnan()
    lanes = torch.tensor([0, 2])
    assert_same(s[:, lanes], clean[:, lanes])
    assert_same(s[:3], clean[:3])
    assert_same(v[lanes], v_clean[lanes])
    (g,), (g_clean,) = torch.autograd.grad(s.sum(), dirty), torch.autograd.grad(clean.sum(), x)
    assert_same(g[:, lanes], g_clean[:, lanes])
    assert not g.isnan().any()  # the rectangle is a comparison too


@all_runs
def test_plus_infinity_saturates_and_resets(how):
    x = torch.tensor([[math.inf], [0.25], [1.5]], requires_grad=True)
    s, _, m = run(how, MSF(D=4), x)
    assert s.flatten().tolist() == [4, 0, 1]
    assert m.flatten().tolist() == [math.inf, 0.25, 0.25 * 0.25 + 1.5]  # a select, not inf*0
    s.sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.25, 1.0]


@all_runs
@pytest.mark.parametrize("name", SURROGATES)
def test_minus_infinity_is_silent_for_ever(name, how):
    x = torch.tensor([[-math.inf, 0.0], [2.0, 2.0], [9.0, 9.0]], requires_grad=True)
    s, (v,), m = run(how, MSF(surrogate=name), x)
    assert s.tolist() == [[0, 0], [0, 2], [0, 4]]
    assert m[:, 0].tolist() == [-math.inf] * 3
    assert v.tolist() == [-math.inf, 0.0]
    s.sum().backward()
    assert x.grad[:, 0].tolist() == [0.0] * 3


@all_runs
def test_negative_membrane_is_kept(how):
    x = torch.tensor([[-8.0], [0.0], [0.0], [1.0]])
    s, _, m = run(how, MSF(), x)
    assert m.flatten().tolist() == [-8.0, -2.0, -0.5, 0.875]
    assert not s.any()


@all_runs
@both_dtypes
def test_empty_sequence_leaves_the_state(p, how):
    x = torch.empty(0, 2, 3, dtype=DTYPES[p], requires_grad=True)
    v0 = randn(2, 3, dtype=DTYPES[p]).requires_grad_()
    neuron = MSF()
    s, (v,), m = run("loop" if how == "loop" else how.replace("chunks", "sequence"), neuron, x, (v0,))
    assert s.shape == m.shape == x.shape
    assert s.dtype == m.dtype == x.dtype
    assert_same(v, v0)
    (gv,) = torch.autograd.grad(v.sum(), v0)
    assert_same(gv, torch.ones_like(v0))
    s, (v,), _ = sequence(neuron, x)
    assert_same(v, torch.zeros(2, 3, dtype=DTYPES[p]))


@all_runs
def test_empty_batch(how):
    x = torch.empty(5, 0, 3, requires_grad=True)
    s, (v,), m = run(how, MSF(), x)
    assert s.shape == m.shape == (5, 0, 3)
    assert v.shape == (0, 3)
    s.sum().backward()
    assert x.grad.shape == (5, 0, 3)


@all_runs
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_input_keeps_a_float32_state(half, how):
    """Multiples of 1/32 are exact in both halves here; a half-precision membrane would lose bits and flip counts."""
    integers = torch.randint(-96, 97, (8, 400), generator=torch.Generator().manual_seed(0))
    x = (integers / 32).to(half).requires_grad_()
    full = x.detach().float().requires_grad_()
    s, (v,), m = run(how, MSF(surrogate="atan"), x)
    s32, (v32,), m32 = run(how, MSF(surrogate="atan"), full)
    assert (s.dtype, v.dtype, m.dtype) == (half, F32, F32)
    assert_same(s.float(), s32)
    assert_same(v, v32)
    assert_same(m, m32)
    assert not torch.equal(m.to(half).float(), m)  # half would not have held it
    (g,), (g32,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s32.sum(), full)
    assert g.dtype == half
    assert_same(g, g32.to(half))


@all_runs
@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view, how):
    base = randn(6, 4, 5, dtype=F32) * 2
    x = {
        "transposed": base.permute(0, 2, 1),
        "expanded": base[:, :1].expand(6, 7, 5),
        "strided": base[::2, :, ::2],
    }[view]
    leaf = x.detach().requires_grad_()
    copy = x.contiguous().requires_grad_()
    up = randn(*x.shape, seed=3, dtype=F32)
    out, ref = run(how, MSF(), leaf), run(how, MSF(), copy)
    for a, b in ((out[0], ref[0]), (out[1][0], ref[1][0]), (out[2], ref[2])):
        assert_same(a, b)
    assert_same(*(torch.autograd.grad(o[0], i, up)[0] for o, i in ((out, leaf), (ref, copy))))


# ---------------------------------------------------------------- charges


@pytest.mark.parametrize("name", CHARGES)
def test_charge_is_its_formula(name):
    x, v = randn(50), randn(50, seed=1)
    k, r, b = 0.3 if CHARGES[name].rate in ("decay", "w") else 1.7, -0.25, 0.5
    names = {"x": x, "v": v, "r": r, "b": b, "decay": k, "tau": k, "w": k, "sigmoid": lambda q: q}
    expected = eval(CHARGES[name].formula, {"__builtins__": {}}, names)
    assert_close(CHARGES[name].forward(x, v, k, r, b), expected, "membrane")


@both_dtypes
@pytest.mark.parametrize("name", CHARGES)
def test_charge_adjoint(name, p):
    charge, dtype = CHARGES[name], DTYPES[p]
    x, v, g = (randn(40, seed=i, dtype=dtype) for i in range(3))
    k = torch.tensor(0.3 if charge.rate in ("decay", "w") else 1.7, dtype=dtype)
    for r, b in ((0.0, 1.0), (-0.25, 0.5)):
        leaves = [t.clone().requires_grad_() for t in (x, v, k)]
        m = charge.forward(*leaves, r, b)
        gx, gv, gk = torch.autograd.grad(m, leaves, g, allow_unused=True)
        for ours, theirs in zip(charge.backward(g, k, b), (gx, gv), strict=True):
            assert_close(ours, theirs, "adjoint")
        if charge.rate_grad is not None:
            assert_close(charge.rate_grad(g, x, v, r).sum(), gk, "adjoint")


def build(name, **kwargs):
    kind = CHARGES[name].rate
    extra = {"decay": {"decay": 0.3, "input_scale": 0.75}, "tau": {"tau": 1.7}, "w": {"w": -0.4}, "none": {}}[
        kind
    ]
    return MSF(charge=name, **(extra | kwargs))


def assert_equals_loop(neuron, x, v0, how="sequence-torch"):
    """Spikes and membranes to the bit; gradients of output, membrane and final state, to input, state and rate."""
    ups = [randn(*x.shape, seed=11, dtype=x.dtype), randn(*x.shape, seed=12, dtype=x.dtype)]
    up_v = randn(*v0.shape, seed=13, dtype=x.dtype)
    leaves = [x, v0, *neuron.parameters()]
    outs, grads = [], []
    for way in ("loop", how):
        s, (v,), m = run(way, neuron, x, (v0,))
        outs.append((s, v, m))
        grads.append(torch.autograd.grad((s, m, v), leaves, (*ups, up_v)))
    for a, b in zip(*outs, strict=True):
        assert_same(b, a)
    for a, b in zip(*grads, strict=True):
        assert_close(b, a, "adjoint")


@pytest.mark.parametrize("how", RUNS[1:])
@both_dtypes
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("name", CHARGES)
def test_sequence_is_the_loop_for_every_charge(name, reset, detach, p, how):
    x = (randn(7, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    for surrogate, v_reset in (("atan", 0.0), ("rectangular", -0.25)):
        neuron = build(name, D=3, reset_mode=reset, detach_reset=detach, surrogate=surrogate, v_reset=v_reset)
        assert_equals_loop(neuron, x, v0, how)
        assert sequence(neuron, x, (v0,))[0].sum() > 0


@both_dtypes
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_sequence_is_the_loop_for_every_surrogate(surrogate, detach, p):
    x = (randn(9, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    assert_equals_loop(MSF(D=4, surrogate=surrogate, detach_reset=detach, threshold_step=0.75), x, v0)


@both_dtypes
@pytest.mark.parametrize(
    "name", [name for name, charge in CHARGES.items() if charge.rate_grad and charge.rate == "w"]
)
def test_learned_rate_per_channel(name, p):
    x = (randn(7, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    neuron = build(name, w=randn(8, seed=6)).to(DTYPES[p])
    assert neuron.w.shape == (8,)
    assert_equals_loop(neuron, x, v0)


@both_dtypes
def test_learned_decay_through_the_function(p):
    """Specification, section 3: g_lam = sum_{t>=1} delta_t m_{t-1} (1 - f_{t-1})."""
    x = randn(9, 20, dtype=DTYPES[p]) * 2
    lam = torch.tensor(0.4, dtype=DTYPES[p], requires_grad=True)
    surrogate = Surrogate("atan")
    x.requires_grad_()
    s, m, _ = msf(x, torch.zeros_like(x[0]), lam, [1.0, 2.0], surrogate)
    g, gx = torch.autograd.grad(s.sum(), (lam, x))
    kept = torch.where(s > 0, 0, m)[:-1]
    assert_close(g, (gx[1:] * kept).sum(), "adjoint")


def test_training_and_evaluation_may_charge_differently():
    neuron = MSF(charge=("lif", "lif_product"), tau=1.7)
    x, v = randn(1, 200, dtype=F32), randn(200, seed=1, dtype=F32)
    _, _, m_train = sequence(neuron, x, (v,))
    _, _, m_eval = sequence(neuron.eval(), x, (v,))
    assert_same(m_train[0], CHARGES["lif"].forward(x[0], v, 1.7, 0.0, 1.0))
    assert_same(m_eval[0], CHARGES["lif_product"].forward(x[0], v, 1.7, 0.0, 1.0))
    assert not torch.equal(m_train, m_eval)  # the last bit


# ---------------------------------------------------------------- surrogates that are functions


def test_callable_surrogate_runs_on_the_loop():
    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u >= 0).to(u)

        @staticmethod
        def backward(ctx, g):
            return g * Surrogate("gaussian").derivative(ctx.saved_tensors[0])

    x = (randn(6, 30) * 2).requires_grad_()
    (s, _, m), (s_named, _, m_named) = (
        sequence(MSF(surrogate=f, reset_mode="soft", detach_reset=False), x)
        for f in (Slope.apply, "gaussian")
    )
    assert_same(s, s_named)
    assert_same(m, m_named)
    assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in (s, s_named)), "adjoint")


def test_callable_surrogate_refuses_a_named_kernel(monkeypatch):
    monkeypatch.setitem(BACKENDS, "other", "msf_pmsn_plugins.backends.torch_backend")
    neuron = MSF(surrogate=lambda u: (u >= 0).to(u), backend="other")
    with pytest.raises(ValueError, match="backend 'other' has no kernel"):
        neuron(torch.zeros(2, 3))


# ---------------------------------------------------------------- settings and bad input


def test_settings_changed_after_construction_take_effect():
    x = torch.full((1, 1), 3.0)
    neuron = MSF(D=4)
    assert neuron(x)[0].item() == 3
    neuron.v_threshold = 2.0
    assert neuron(x)[0].item() == 2
    neuron.D = 1
    assert neuron(x)[0].item() == 1
    neuron.D, neuron.threshold_step = 4, 0.25
    assert neuron.thresholds == [2.0, 2.25, 2.5, 2.75]
    assert neuron(x)[0].item() == 4
    neuron.decay = 1.0
    assert neuron(torch.tensor([[1.0], [0.5]]))[1][0].item() == 1.5


def test_default_rectangle_is_half_the_spacing():
    assert MSF().surrogate == Surrogate("rectangular", 0.5)
    assert MSF(threshold_step=0.5).surrogate == Surrogate("rectangular", 0.25)
    assert MSF(threshold_step=0.5, surrogate="rectangular").surrogate == Surrogate("rectangular", 0.5)


def test_default_rectangle_follows_a_changed_spacing():
    """Specification, section 4: for a spacing h the default half-width is h/2, or slopes overlap or leave gaps."""
    neuron = MSF()
    neuron.threshold_step = 0.5
    assert neuron.surrogate == Surrogate("rectangular", 0.25)


def test_own_surrogate_survives_a_changed_spacing():
    neuron = MSF(surrogate=Surrogate("rectangular", 0.5))
    neuron.threshold_step = 0.5
    assert neuron.surrogate == Surrogate("rectangular", 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"D": 0}, "D, the number of thresholds"),
        ({"D": 2.0}, "D, the number of thresholds"),
        ({"D": True}, "D, the number of thresholds"),
        ({"decay": -0.1}, "decay must lie"),
        ({"decay": 1.1}, "decay must lie"),
        ({"decay": math.nan}, "decay must be a finite number"),
        ({"v_threshold": math.nan}, "v_threshold must be a finite number"),
        ({"input_scale": math.inf}, "input_scale must be a finite number"),
        ({"v_reset": math.nan}, "v_reset must be a finite number"),
        ({"threshold_step": 0.0}, "threshold_step must be positive"),
        ({"threshold_step": -1.0, "surrogate": "atan"}, "threshold_step must be positive"),
        ({"reset_mode": "zero"}, "unknown reset_mode 'zero'.*'hard', 'soft', 'none'"),
        ({"charge": "leaky"}, "unknown charge 'leaky'.*lif_product"),
        ({"charge": "lif"}, "needs a finite tau > 1"),
        ({"charge": "lif", "tau": 1.0}, "needs a finite tau > 1"),
        ({"charge": "plif"}, "needs w"),
        ({"surrogate": "rect"}, "unknown surrogate 'rect'"),
        ({"backend": "cuda"}, "unknown backend 'cuda'.*'auto', 'torch'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSF(**kwargs)


def test_bad_setting_after_construction_raises_at_the_call():
    neuron = MSF()
    for name, value in (("D", 0), ("decay", 2.0), ("reset_mode", "zero"), ("threshold_step", -1.0)):
        before = getattr(neuron, name)
        with pytest.raises(ValueError, match=name):
            setattr(neuron, name, value)
            neuron(torch.zeros(2, 3))
        setattr(neuron, name, before)


def test_unknown_backend_after_construction():
    neuron = MSF()
    with pytest.raises(ValueError, match="unknown backend 'cpu'; known: 'auto'"):
        neuron.backend = "cpu"
    assert neuron.backend == "auto"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_input_must_be_floating_point(dtype):
    x = torch.zeros(3, 2, dtype=dtype)
    for call in (lambda: MSF()(x), lambda: MSF().step(x[0], (torch.zeros(2),))):
        with pytest.raises(TypeError, match=r"floating-point input.*float\(\)"):
            call()


def test_input_must_be_a_tensor_with_a_time_axis():
    with pytest.raises(TypeError, match="takes a torch.Tensor, got list"):
        MSF()([[1.0]])
    with pytest.raises(TypeError, match="takes a torch.Tensor, got ndarray"):
        MSF().step(np.zeros((2, 3)), (torch.zeros(2, 3),))
    with pytest.raises(ValueError, match=r"time first.*\(5,\).*step\(x, state\)"):
        MSF()(torch.zeros(5))


def test_state_of_another_batch():
    neuron = MSF()
    _, state = neuron(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*left by another batch"):
        neuron(torch.zeros(2, 5, 3), state)
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.step(torch.zeros(5, 3), state)
    with pytest.raises(ValueError, match="tuple of 1 tensors.*got 2"):
        neuron(torch.zeros(2, 4, 3), (*state, *state))


def test_state_follows_the_dtype_of_the_input():
    neuron = MSF()
    _, (v,) = neuron(torch.full((1, 2), 0.3, dtype=F64))
    s, (v,) = neuron(torch.zeros(1, 2, dtype=torch.float16), (v,))
    assert (s.dtype, v.dtype) == (torch.float16, F32)
