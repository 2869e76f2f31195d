"""The parallel reset of PMSN: every mode, bursts, fixed point; alone and in the neuron."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import (
    DTYPES,
    Precision,
    all_backends,
    assert_matches_step,
    both_dtypes,
    examples,
    fast_ways,
    golden,
    randn,
    tensor,
)
from msf_pmsn_plugins.neurons import parallel_reset
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import Soft, Surrogate
from subjects import (
    all_somas,
    build_pmsn,
    soma,
    with_soma,
)
from tolerances import F64, assert_close, assert_flips_proved, assert_same

RESET_CASES = [
    (part, steps, theta)
    for part, steps, theta in itertools.product(
        ("lattice", "random"), (1, 7, 128, 1024), ("th1p0", "th0p5", "th4p0")
    )
]


@all_backends
@both_dtypes
@pytest.mark.parametrize(("part", "steps", "theta"), RESET_CASES)
def test_golden_reset(part, steps, theta, p, backend):
    g, volts = golden("pmsn_reset"), {"th1p0": 1.0, "th0p5": 0.5, "th4p0": 4.0}[theta]
    q = p if f"spk_{part}_L{steps}_{theta}_single_{p}" in g else "f32"  # the lattice is stored once
    y = tensor(g[f"y_{part}_L{steps}"], DTYPES[p]).T.contiguous().requires_grad_()
    gs = tensor(g[f"gs_{part}_L{steps}"], DTYPES[p]).T
    spikes, delta, gy = (
        tensor(g[f"{k}_{part}_L{steps}_{theta}_single_{q}"]).T for k in ("spk", "delta", "gy")
    )
    s, drive, m, _ = soma(y, volts, backend)
    m = m.detach()
    (g_y,) = torch.autograd.grad(s, y, gs)
    assert_same(drive, y)
    if part == "lattice":
        for ours, theirs in ((s, spikes), (m, delta), (g_y, gy)):
            assert_same(ours.double(), theirs.double())
        return
    # the same y in both, so only the rounding of the sums is left (of the published one too: ulp(c))
    wide = {k: tensor(g[f"{k}_{part}_L{steps}_{theta}_single_f64"]).T for k in ("spk", "delta")}
    assert_flips_proved(s, y, wide["spk"], y, volts, share=0.001)
    if p == "f64":
        assert_same(s, spikes.double())
        assert_close(m, delta, "drive")
        assert_close(g_y, gy, "pmsn_gradient")
    else:
        agree = s.double() == wide["spk"]
        close = (m - wide["delta"]).abs() <= 2.0**-23 * steps**0.5 * volts * 4
        assert close[agree].float().mean() > 0.999


# ---------------------------------------------------------------- PMSN: resets against the loop and golden numbers


@all_somas
@fast_ways
@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.7])
def test_every_soma_equals_the_loop(theta, p, way, soma):
    """Spikes, states and all gradients, those of the final state included, against autograd of the oracle."""
    reset_mode, burst, _residual = soma
    neuron = with_soma(soma, channels=3, dtype=DTYPES[p], v_threshold=theta)
    x = randn(70, 2, 3, dtype=DTYPES[p]) * 1.5
    r, z = neuron.initial_state(x[0])
    r = (r + 0.5).requires_grad_(reset_mode == "cumulative")
    z = randn(2, 3, 4, seed=3, dtype=z.dtype).requires_grad_()
    long = Precision("none", "residual", "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")
    s, _, _ = assert_matches_step(neuron, x, (r, z), long, way)
    assert s.unique().numel() > (2 if burst else 1)


RESETS = list(itertools.product(("lattice", "random"), (1, 7, 128, 1024), ("th1p0", "th0p5", "th4p0")))


@all_backends
@both_dtypes
@pytest.mark.parametrize(("part", "steps", "theta"), RESETS)
def test_golden_burst_reset(part, steps, theta, p, backend):
    """The reset stage alone, counts: exact on the lattice; elsewhere a sum in another order may move a spike."""
    g, volts, dtype = golden("pmsn_reset"), {"th1p0": 1.0, "th0p5": 0.5, "th4p0": 4.0}[theta], DTYPES[p]
    q = p if f"spk_{part}_L{steps}_{theta}_burst_{p}" in g else "f32"
    y = tensor(g[f"y_{part}_L{steps}"], dtype).T.contiguous().requires_grad_()
    gs = tensor(g[f"gs_{part}_L{steps}"], dtype).T
    spikes, delta, gy = (
        tensor(g[f"{k}_{part}_L{steps}_{theta}_burst_{q}"]).T for k in ("spk", "delta", "gy")
    )
    s, _, m = parallel_reset(
        y, settings=PMSNSettings(volts, burst="sawtooth"), membrane=True, backend=backend
    )
    (g_y,) = torch.autograd.grad(s, y, gs)
    if part == "lattice":
        for ours, theirs in ((s, spikes), (m, delta), (g_y, gy)):
            assert_same(ours.double(), theirs.double())
        return
    # stored as float32 runs: the published running sum c is rounded, up to 2 counts of 4096 differ
    differ = s.double() != spikes.double()
    assert (s.double() - spikes.double()).abs().max() <= 1
    assert differ.sum() <= 2
    c = torch.cumsum(torch.relu(y.detach().double()), 0)
    rounding = 2.0**-23 * c + 1e-6
    near = ((c - torch.round(c / volts) * volts).abs() <= rounding) & (c > 0)
    near |= torch.cat([torch.zeros_like(near[:1]), near[:-1]])
    decided = ~near | (y <= 0)  # elsewhere a rounding moves a count by a step, and the sawtooth jumps
    assert decided.float().mean() > 0.99
    assert not (differ & decided).any()
    assert ((m.detach().double() - delta).abs() <= rounding)[~near].all()
    error = (g_y.double() - gy).abs()
    assert (error <= gs.double().abs() * rounding * 1.01 + 1e-7)[decided].all()


@all_backends
@both_dtypes
def test_sum_of_bursts_is_the_floor_of_the_sum(p, backend):
    y = torch.randint(-8, 24, (200, 30), generator=torch.Generator().manual_seed(0)).to(DTYPES[p]) / 4
    for theta in (1.0, 0.5, 4.0):
        s, r, _ = parallel_reset(y, settings=PMSNSettings(theta, burst="nearest"), backend=backend)
        c = torch.cumsum(torch.relu(y), 0)
        assert_same(torch.cumsum(s, 0), torch.floor(c / theta))
        assert_same(r, c[-1] / theta % 1)


@all_backends
def test_burst_slope_is_continuous_by_default(backend):
    """Distance to the nearest threshold: 0 at 0, 1 at every threshold, 1/2 between them."""
    y = torch.linspace(0.0, 4.0, 401, dtype=F64).unsqueeze(0).requires_grad_()
    s, _, _ = parallel_reset(y, settings=PMSNSettings(burst="nearest"), backend=backend)
    (slope,) = torch.autograd.grad(s.sum(), y)
    assert s[0, ::100].tolist() == [0, 1, 2, 3, 4]
    assert slope[0, 100::100].tolist() == pytest.approx([1, 1, 1, 1])
    assert slope[0, 150::100].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert slope.diff(dim=1).abs()[:, 1:].max() < 0.0101
    s, _, _ = parallel_reset(y, settings=PMSNSettings(burst="sawtooth"), backend=backend)
    (slope,) = torch.autograd.grad(s.sum(), y)
    assert slope.diff(dim=1).abs()[:, 1:].max() > 0.9  # the published one jumps


@all_backends
def test_no_reset_fires_at_ties(backend):
    y = torch.tensor([[0.5], [0.25], [0.25], [-1.0], [1.5]])
    s, r, m = parallel_reset(y, settings=PMSNSettings(0.5, "none"), membrane=True, backend=backend)
    assert s.flatten().tolist() == [1, 0, 0, 0, 1]
    assert r.item() == 0.0
    assert_same(m, y)
    s, r, m = parallel_reset(y, settings=PMSNSettings(0.5, "cumulative"), membrane=True, backend=backend)
    assert s.flatten().tolist() == [1, 1, 1, 0, 1]
    assert m.flatten().tolist() == [0.5, 0.75, 1.0, 0.0, 1.5]
    assert r.item() == 3.0  # in units of the threshold


@all_backends
def test_serial_reset_keeps_negative_membranes(backend):
    y = torch.tensor([[-0.75], [0.5], [1.5], [2.0], [-0.5]])
    s, r, m = parallel_reset(y, settings=PMSNSettings(reset_mode="serial"), membrane=True, backend=backend)
    assert m.flatten().tolist() == [-0.75, -0.25, 1.25, 2.25, -0.25]
    assert s.flatten().tolist() == [0, 0, 1, 1, 0]
    assert r.item() == -0.25


def test_serial_with_positive_drives_is_the_published_reset():
    y = randn(300, 20).abs()
    for burst in ("", "nearest"):
        a, b = (
            parallel_reset(y, settings=PMSNSettings(reset_mode=mode, burst=burst))
            for mode in ("floor", "serial")
        )
        assert_flips_proved(b[0], y, a[0], y)


# ---------------------------------------------------------------- PMSN: fixed point


@all_backends
@both_dtypes
@examples(25)
@given(data=st.data())
def test_fixed_point_gives_every_chunking_the_same_bits(backend, p, data):
    steps = data.draw(st.integers(1, 80))
    neuron = build_pmsn(
        3, dtype=DTYPES[p], residual="fixed", v_threshold=data.draw(st.sampled_from([1.0, 0.3]))
    )
    neuron.backend = backend
    x = randn(steps, 2, 3, seed=data.draw(st.integers(0, 99)), dtype=DTYPES[p]) * 2
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=5)))
    whole, state, parts = neuron.sequence(x, membrane=True), None, []
    for size in (b - a for a, b in itertools.pairwise([0, *cuts, steps])):
        part = neuron.sequence(x[sum(len(q[0]) for q in parts) :][:size], state, membrane=True)
        state = part[1]
        parts.append(part)
    assert_same(torch.cat([q[0] for q in parts]), whole[0])
    assert_same(torch.cat([q[2] for q in parts]), whole[2])
    for a, b in zip(state, whole[1], strict=True):
        assert_same(a, b)


@all_backends
def test_fixed_point_is_the_sum_in_integers(backend):
    q = torch.rand(4000, 3, generator=torch.Generator().manual_seed(1))
    s, r, _ = parallel_reset(q, settings=PMSNSettings(fixed=True), backend=backend)
    c = torch.cumsum(torch.round(q.double() * 2**24).long(), 0)
    assert_same(torch.cumsum(s.long(), 0), c >> 24)
    assert_same(r.double() * 2**24, (c[-1] % 2**24).double())


@all_backends
def test_fixed_point_at_the_edges(backend):
    y = torch.tensor([[3e38, 0.5, math.nan, 1e12], [0.5, 0.5, 1.0, 0.5]])
    s, r, _ = parallel_reset(y, settings=PMSNSettings(fixed=True), backend=backend)
    assert s.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0]]
    assert r[:2].tolist() == [0.5, 0.0]
    assert r[2].isnan()
    assert r[3] == 0.5


@all_backends
def test_parallel_reset_alone_equals_the_op(backend):
    y = randn(60, 3, 4)
    s, r, m = parallel_reset(y, membrane=True, backend=backend)
    s_op, _, m_op, r_op = soma(y, 1.0, backend)
    for ours, theirs in ((s, s_op), (m, m_op), (r, r_op)):
        assert_same(ours, theirs)
    assert_same(s, (m >= 1).double())
    part, r1, _ = parallel_reset(y[:25], backend=backend)
    rest, r2, _ = parallel_reset(y[25:], r1, backend=backend)
    assert_same(torch.cat([part, rest]), s)
    assert_close(r2, r, "residual")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 5])
@pytest.mark.parametrize("mode", ["floor", "serial", "none", "cumulative"])
def test_parallel_reset_returns_the_same_of_kernels_and_of_soft_functions(mode, steps, dtype):
    y, lengths = randn(steps, 3, 2, 4).to(dtype), torch.tensor([steps, 0, steps // 2])
    for keep in (False, True):
        settings = PMSNSettings(0.5, mode, keep_residual=keep)
        kernel = parallel_reset(y, settings=settings, lengths=lengths, membrane=True)
        step = Soft("atan", temperature=0.0)
        soft = parallel_reset(y, settings=settings, surrogate=step, lengths=lengths, membrane=True)
        for ours, theirs in zip(kernel, soft, strict=True):
            assert ours.dtype == theirs.dtype
            assert_close(ours, theirs, "residual")


def test_parallel_reset_takes_the_name_of_a_surrogate():
    y = randn(9, 3, 4).requires_grad_()
    by_name, by_object = (
        torch.autograd.grad(parallel_reset(y, surrogate=given)[0].sum(), y)[0]
        for given in ("atan", Surrogate("atan"))
    )
    assert torch.equal(by_name, by_object)
    assert by_name.any()


@all_backends
def test_a_residual_stays_below_a_threshold(backend):
    """A sum just below one rounds up to it in float32: left so, it would be a threshold that no spike has told of."""
    below = 1 - 2.0**-24
    y = torch.tensor([[below], [2.0**-25], [2.0**-26]])
    s, _y, _m, r = soma(y, 1.0, backend)
    assert 0 <= r.item() < 1
    if backend == "torch":  # it sums in double; a loop of steps rounds up, and fires
        assert not s.any()
        assert r.item() == below
