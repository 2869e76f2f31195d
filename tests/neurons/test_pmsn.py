"""PMSN: golden vectors, the identities of its specification, and ``sequence`` against a loop of ``step``."""

import copy
import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from helpers import DTYPES, ON_CPU, PATHS, chunks, examples, golden, loop, poisoned_empty, sequence, tensor
from msf_pmsn_plugins.backends import BACKENDS
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn import PARAMETERS, PER_CHANNEL, discretise, membranes, pmsn, pmsn_step
from msf_pmsn_plugins.surrogate import Custom, Surrogate
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

TRIANGLE = Surrogate("triangle", 1.0)
RUNS = ["loop", *(f"{path}-{backend}" for path in ("sequence", "chunks") for backend in ON_CPU)]
all_runs = pytest.mark.parametrize("how", RUNS)
all_backends = pytest.mark.parametrize("backend", ON_CPU)
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


def build(channels=3, compartments=5, seed=0, dtype=F32, **kwargs):
    """Unpaired modes, fast enough that spikes, gradients of every parameter and several time scales appear."""
    neuron = PMSN(channels, compartments, **kwargs)
    modes = compartments - 1
    with torch.no_grad():
        neuron.log_dt.copy_(torch.linspace(-3.5, -0.7, channels))
        neuron.log_A_real.copy_(-0.7 + 0.5 * randn(channels, modes, seed=seed + 1))
        neuron.A_imag.copy_(4 * randn(channels, modes, seed=seed + 2))
        for i, name in enumerate(("VinvB_real", "VinvB_imag", "CV_real", "CV_imag")):
            getattr(neuron, name).copy_(1.5 * randn(channels, modes, seed=seed + 3 + i))
        neuron.D.copy_(0.5 + 0.3 * randn(channels, seed=seed + 7))
    return neuron.to(dtype)


def from_golden(g, prefix="", dtype=F32, **kwargs):
    values = {name: tensor(g[prefix + name]) for name in PARAMETERS}
    channels, modes = values["A_imag"].shape
    neuron = PMSN(channels, modes + 1, **kwargs)
    neuron.load_state_dict(values)
    return neuron.to(dtype)


def drive(neuron, x_seq, backend="auto"):
    """Spikes and the drive y of a [T, B, H, ...] input, from the op."""
    steps, batch, channels, *_ = x_seq.shape
    flat = x_seq.reshape(steps, batch, channels, -1)
    r = torch.zeros_like(flat[0])
    z = r.new_zeros((*r.shape, neuron.modes), dtype=r.dtype.to_complex())
    weights = neuron.weights(x_seq.dtype)
    s, y, _, _ = pmsn(flat, r, z, *weights, float(neuron.v_threshold), neuron.surrogate, backend=backend)
    return s.reshape(x_seq.shape), y.reshape(x_seq.shape)


def drive_by_loop(neuron, x_seq):
    """The drive y of a [T, B, H, ...] input, from the recurrence in the order of ``pmsn_step``."""
    tail = (1,) * (x_seq.dim() - 3)
    a, w, d = neuron.weights(x_seq.dtype)
    a, w = (t.reshape(neuron.channels, *tail, neuron.modes) for t in (a, w))
    z, rows = torch.zeros((*x_seq.shape[1:], neuron.modes), dtype=a.dtype), []
    for x in x_seq:
        z = a * z + x.unsqueeze(-1)
        rows.append((w * z).sum(-1).real + d.reshape(-1, *tail) * x)
    return torch.stack(rows)


# ---------------------------------------------------------------- golden vectors


def check_linear_adjoint(neuron, u, gs, s, m):
    """Gradients where a membrane moved by a volt: the float64 adjoint of the drive, fed this run's own slopes."""
    wide, x = copy.deepcopy(neuron).double(), u.detach().double().requires_grad_()
    y = drive(wide, x)[1]
    gy = gs * (1 - (m.double() - 1).abs()).clamp(min=0) * (y > 0)
    expected = torch.autograd.grad(y, [x, *wide.parameters()], gy)
    for ours, theirs in zip(torch.autograd.grad(s, [u, *neuron.parameters()], gs), expected, strict=True):
        assert_close(ours, theirs, "pmsn_gradient_long")


def check_golden(g, prefix, gradients, neuron, u, gs, spikes, y, delta, gu, how):
    """One golden case, time first: spikes, drive, membrane, gradients to the input and all eight parameters."""
    dtype = u.dtype
    u.requires_grad_()
    s, _, m = run(how, neuron, u)
    backend = how.partition("-")[2]
    own = drive(neuron, u, backend)[1] if backend else drive_by_loop(neuron, u)
    assert_close(own, y, "drive")
    if dtype == F64:
        assert_same(s, spikes.to(F64))
        assert_close(m, delta, "drive")
    else:
        assert_flips_proved(s, own, spikes, y)
        agree = (s.double() == spikes).all(0)  # a flipped lane is a threshold off from there on
        # errors of the drives add up, and so do the roundings of r + y and of the cut chunks' drives
        accumulated = torch.cumsum((own.double() - y).abs() + 2.0**-22 * (delta.abs() + y.abs()), 0)
        # A residual may wrap without a flipped spike (1.99998 V, 2.00003 V): the next membrane is a volt off.
        before = torch.cumsum(torch.relu(y), 0).roll(1, 0)
        near = (before - before.round()).abs() <= accumulated
        error = (m - delta).abs()
        wrapped = near & ((error - 1).abs() <= accumulated)
        assert ((error <= accumulated) | wrapped | ~agree).all()
        assert agree.float().mean() > 0.9
        assert wrapped.sum() <= 2
        if wrapped.any() or not agree.all():
            check_linear_adjoint(neuron, u, gs, s, m.detach())
            return
    grads = torch.autograd.grad(s, [u, *(getattr(neuron, name) for name in PARAMETERS)], gs)
    tolerance = "pmsn_gradient" if len(u) <= 128 else "pmsn_gradient_long"
    assert_close(grads[0], gu, tolerance)
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"{prefix}g_{name}_{gradients}"]), tolerance)


SMNIST = [
    (part, modes, steps)
    for part, modes, steps in itertools.product(("init", "pert"), (2, 4, 5, 8), (1, 7, 32, 128, 784))
    if part == "init" or (modes in (4, 5) and steps <= 128)
]


@both_dtypes
@pytest.mark.parametrize(
    ("part", "modes", "steps", "how"),
    [(*case, how) for case in SMNIST for how in RUNS if how != "loop" or case[2] <= 128],  # the loop is slow
)
def test_golden_smnist(part, modes, steps, how, p):
    g, case = golden("pmsn_smnist"), f"{part}_N{modes}_L{steps}_"
    first = lambda name, dtype=None: tensor(g[name], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    check_golden(
        g,
        case,
        "f64",
        from_golden(g, f"{part}_N{modes}_", DTYPES[p]),
        first(f"u_L{steps}", DTYPES[p]),
        first(f"gs_L{steps}", DTYPES[p]),
        first(f"{case}spk_f64"),
        first(f"{case}y_f64"),
        first(f"{case}delta_f64"),
        first(f"{case}gu_f64"),
        how,
    )
    assert_flips_proved(
        first(f"{case}spk_f32"), first(f"{case}y_f32"), first(f"{case}spk_f64"), first(f"{case}y_f64")
    )


@all_runs
@both_dtypes
def test_golden_serial(p, how):
    g = golden("pmsn_serial")
    first = lambda name, dtype=None: tensor(g[name], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    for mode in ("parallel", "serial"):
        check_golden(
            g,
            f"{mode}_",
            "f64",
            from_golden(g, dtype=DTYPES[p]),
            first("u", DTYPES[p]),
            first("gs", DTYPES[p]),
            first(f"{mode}_spk_f64"),
            first("parallel_y_f64"),
            first("parallel_delta_f64"),
            first(f"{mode}_gu_f64"),
            how,
        )


@all_runs
@both_dtypes
@pytest.mark.parametrize(("name", "form"), [("pmsn_shd", "2d"), ("pmsn_shd", "3d"), ("pmsn_imagenet", "5d")])
def test_golden_time_major(name, form, p, how):
    g = golden(name)
    lead = (int(g["T"]), int(g["B"]))
    u = tensor(g[f"u_{form}"], DTYPES[p])
    shape = (*lead, *u.shape[2:]) if form == "5d" else (*lead, *u.shape[1:])
    # y and delta are stored as (B, C, X*Y, T)
    last = lambda key: tensor(g[key]).permute(3, 0, 1, 2).reshape(shape)  # noqa: E731
    as_is = lambda key, dtype=None: tensor(g[key], dtype).reshape(shape)  # noqa: E731
    check_golden(
        g,
        f"{form}_reset_",
        "f64",
        from_golden(g, dtype=DTYPES[p]),
        as_is(f"u_{form}", DTYPES[p]),
        as_is(f"gs_{form}", DTYPES[p]),
        as_is(f"{form}_reset_spk_f64"),
        last(f"{form}_reset_y_f64"),
        last(f"{form}_reset_delta_f64"),
        as_is(f"{form}_reset_gu_f64"),
        how,
    )


def soma(y, theta, backend="auto", r=None):
    """The reset stage alone: no hidden drive and a direct gain of 1, so that the drive is the input."""
    x = y.reshape(*y.shape[:1], 1, 1, -1)
    none = torch.zeros(1, 1, dtype=y.dtype.to_complex())
    z = torch.zeros(1, 1, x.shape[-1], 1, dtype=none.dtype)
    r = torch.zeros_like(x[0]) if r is None else r.reshape(x[0].shape)
    s, drive, r, _ = pmsn(x, r, z, none, none, torch.ones(1, dtype=y.dtype), theta, TRIANGLE, backend=backend)
    return s.reshape(y.shape), drive.reshape(y.shape), r.reshape(y.shape[1:])


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
    s, drive, _ = soma(y, volts, backend)
    m = membranes(drive.detach(), torch.zeros_like(y[0]), volts)
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


def expected_frequencies(modes, coupling):
    k = np.arange(1, modes)
    return np.sort(np.linalg.eigvals(np.diag(coupling * k, 1) - np.diag(coupling * k, -1)).imag)


@pytest.mark.parametrize("modes", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("variant", ["smnist", "shd", "imagenet"])
def test_golden_init(variant, modes):
    g = golden("pmsn_init")
    neuron = PMSN(2, modes + 1, init={"smnist": "sequence"}.get(variant, variant))
    assert_close(neuron.log_A_real, torch.full((2, modes), math.log(0.5), dtype=F64), "initial_values")
    coupling = 0.25 if variant == "imagenet" else 5.0
    assert_close(
        neuron.A_imag, torch.from_numpy(expected_frequencies(modes, coupling)).expand(2, -1), "initial_values"
    )
    b = torch.complex(neuron.VinvB_real, neuron.VinvB_imag)
    c = torch.complex(neuron.CV_real, neuron.CV_imag)
    # B and C in the basis of the compartments: sum of C B is c . 1
    assert (c * b).sum(1).tolist() == pytest.approx([modes if variant == "shd" else 1.0] * 2, abs=1e-4)
    if variant == "imagenet" and modes != 4:
        return
    key = f"{variant}_N{modes}_"
    assert_close(neuron.A_imag, tensor(g[key + "A_imag"])[:2], "initial_values")
    assert_close(c * b, tensor(g[key + "CB"])[:2], "initial_values")


def test_published_frequencies_and_products():
    neuron = PMSN(1)
    assert neuron.A_imag[0].tolist() == pytest.approx([-18.2514, -4.1093, 4.1093, 18.2514], abs=1e-4)
    cb = torch.complex(neuron.CV_real, neuron.CV_imag) * torch.complex(neuron.VinvB_real, neuron.VinvB_imag)
    assert cb.real[0].tolist() == pytest.approx([0.0919, 0.4081, 0.4081, 0.0919], abs=1e-4)
    assert cb.imag[0].tolist() == pytest.approx([-0.3354, -0.3354, 0.3354, 0.3354], abs=1e-4)
    shd = PMSN(1, init="shd")
    cb = torch.complex(shd.CV_real, shd.CV_imag) * torch.complex(shd.VinvB_real, shd.VinvB_imag)
    assert sorted(cb.real[0].tolist()) == pytest.approx([0.3675, 0.3675, 1.6325, 1.6325], abs=1e-4)
    assert cb.imag[0].tolist() == pytest.approx([0.0] * 4, abs=1e-4)
    assert PMSN(1, 17).A_imag.max().item() == pytest.approx(120.106, abs=1e-3)


@pytest.mark.parametrize("compartments", range(2, 18))
def test_initial_modes_are_conjugate_pairs_to_the_bit(compartments):
    neuron = PMSN(1, compartments)
    for name, sign in (
        ("A_imag", -1),
        ("VinvB_real", 1),
        ("VinvB_imag", -1),
        ("CV_real", 1),
        ("CV_imag", -1),
    ):
        value = getattr(neuron, name).detach()
        assert_same(value.flip(1), sign * value)


@pytest.mark.parametrize(
    ("init", "low", "high"), [("sequence", 1e-3, 1e-1), ("shd", 1e-3, 1e-1), ("imagenet", 0.2, 1)]
)
def test_random_initial_values(init, low, high):
    torch.manual_seed(0)
    neuron = PMSN(4096, init=init)
    dt = neuron.log_dt.exp()
    assert dt.min() >= low * (1 - 1e-6)
    assert dt.max() <= high * (1 + 1e-6)
    # uniform in the logarithm: quartiles where they belong
    share = (neuron.log_dt - math.log(low)) / (math.log(high) - math.log(low))
    assert share.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.03
    )
    if init == "imagenet":
        assert neuron.D.min() >= 0
        assert neuron.D.max() < 1
        assert neuron.D.quantile(torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.25, 0.75], abs=0.03)
    else:
        assert neuron.D.mean().item() == pytest.approx(0, abs=0.06)
        assert neuron.D.std().item() == pytest.approx(1, abs=0.05)
    torch.manual_seed(0)
    assert_same(PMSN(4096, init=init).D, neuron.D)


def test_golden_random_initial_values_lie_in_the_range():
    g = golden("pmsn_init")
    assert np.exp(g["smnist_log_dt_256"]).min() >= 1e-3 * (1 - 1e-6)
    assert np.exp(g["smnist_log_dt_256"]).max() <= 1e-1 * (1 + 1e-6)
    assert 0.3 < (g["smnist_D_256"] < 0).mean() < 0.7


def test_parameter_count():
    for compartments in (2, 5, 17):
        count = sum(p.numel() for p in PMSN(7, compartments).parameters())
        assert count == 7 * (2 + 6 * (compartments - 1))
    assert dict(PMSN(7).named_parameters()).keys() == set(PARAMETERS)
    assert not list(PMSN(7).buffers())


# ---------------------------------------------------------------- by hand


@all_backends
@both_dtypes
def test_by_hand(p, backend):
    dtype = DTYPES[p]
    x = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0, -8.0], dtype=dtype).reshape(6, 1, 1, 1).requires_grad_()
    a = torch.full((1, 1), 0.5, dtype=dtype.to_complex(), requires_grad=True)
    w = torch.ones(1, 1, dtype=dtype.to_complex(), requires_grad=True)
    d = torch.zeros(1, dtype=dtype, requires_grad=True)
    r0, z0 = torch.zeros(1, 1, 1, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype.to_complex())
    s, y, r, z = pmsn(x, r0, z0, a, w, d, 1.0, TRIANGLE, backend=backend)
    assert y.flatten().tolist() == [1.0, 1.0, 0.5, 2.25, 1.125, -7.4375]
    assert membranes(y, r0, 1.0).flatten().tolist() == [1.0, 1.0, 0.5, 2.75, 1.875, 0.875]
    # ties fire; 2.75 gives one spike and loses two thresholds; a negative drive leaves the residual
    assert s.flatten().tolist() == [1, 1, 0, 1, 1, 0]
    assert r.item() == 0.875
    assert z.item() == -7.4375
    s.sum().backward()
    # slopes max(0, 1 - |v - 1|) where y > 0: 1, 1, 1/2, 0, 1/8, 0; each reaches back with powers of 1/2
    assert x.grad.flatten().tolist() == [1.6328125, 1.265625, 0.53125, 0.0625, 0.125, 0.0]
    assert d.grad.item() == 1 * 1 + 1 * 0.5
    assert w.grad.item() == 1 * 1 + 1 * 1 + 0.5 * 0.5 + 0.125 * 1.125
    # z_t = sum a^k x_{t-k}, dz/da: 0, 1, 1.5, 1.25, 2.875 at t = 0..4
    assert a.grad.item() == 1 * 1 + 0.5 * 1.5 + 0.125 * 2.875


def test_step_by_hand():
    state = torch.zeros(1), torch.zeros(1, 1, dtype=torch.complex64)
    a, w = torch.tensor([[0.5j]]), torch.tensor([[2.0 + 0j]])
    seen = []
    for x in (1.0, 0.0, 0.0):  # z: 1, i/2, -1/4; y = 2 Re z + x
        s, r, z, v = pmsn_step(torch.tensor([x]), *state, a, w, torch.ones(1), 0.5, TRIANGLE)
        state = r, z
        seen.append((s.item(), r.item(), z.item(), v.item()))
    # theta = 0.5 V: y = 3 V are six thresholds, one spike; then y = 0 and -0.5 change nothing
    assert seen == [(1.0, 0.0, 1 + 0j, 3.0), (0.0, 0.0, 0.5j, 0.0), (0.0, 0.0, -0.25 + 0j, 0.0)]


# ---------------------------------------------------------------- step and sequence


@pytest.mark.parametrize("how", RUNS[1:])
@both_dtypes
@pytest.mark.parametrize("compartments", [2, 3, 5, 17])
@pytest.mark.parametrize("steps", [1, 31, 32, 33, 70])
def test_sequence_is_the_loop(steps, compartments, p, how):
    """Random upstream gradients for spikes, membranes and both states; to input, hidden state and parameters."""
    dtype = DTYPES[p]
    neuron = build(3, compartments, dtype=dtype)
    x = randn(steps, 2, 3, 2, dtype=dtype).requires_grad_()
    r0 = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
    z0 = torch.complex(randn(2, 3, 2, neuron.modes, seed=2), randn(2, 3, 2, neuron.modes, seed=3))
    z0 = z0.to(dtype.to_complex()).requires_grad_()
    ups = [randn(*x.shape, seed=11, dtype=dtype), randn(*x.shape, seed=12, dtype=dtype)]
    up_z = torch.complex(randn(*z0.shape, seed=13), randn(*z0.shape, seed=14)).to(z0.dtype)
    results = []
    oracle = copy.deepcopy(neuron).double()
    for way, n, leaves in (
        ("loop", oracle, (x.double(), r0.double(), z0.to(torch.complex128))),
        (how, neuron, (x, r0, z0)),
    ):
        xs, r, z = (leaf.detach().requires_grad_(i != 1) for i, leaf in enumerate(leaves))
        s, (r1, z1), m = run(way, n, xs, (r, z))
        grads = torch.autograd.grad(
            (s, m, z1),
            [xs, z, *n.parameters()],
            [u.to(o.dtype) for u, o in zip((*ups, up_z), (s, m, z1), strict=True)],
        )
        assert not r1.requires_grad
        results.append((s, r1, z1, m, grads))
    (s, r, z, m, grads), (s_, r_, z_, m_, grads_) = results
    assert s.sum() > 0
    assert_same(s_.double(), s)  # no membrane of this input lies that close to a multiple of the threshold
    assert_close(m_, m, "drive")
    assert_close(z_, z, "drive")
    assert_close(r_, r, "residual")
    for ours, theirs in zip(grads_, grads, strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")


@examples(25)
@given(steps=st.integers(0, 80), seed=st.integers(0, 99), data=st.data())
def test_chunks_equal_the_whole(steps, seed, data):
    """In float64 to rounding, spikes included unless a membrane ties to 1e-9 (which random inputs do not)."""
    neuron = build(2, dtype=F64)
    x = randn(steps, 2, 2, seed=seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=5)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, steps])]
    (s, (r, z), m), (s_, (r_, z_), m_) = sequence(neuron, x), chunks(neuron, x, sizes=sizes)
    assert_same(s_, s)
    for ours, theirs in ((m_, m), (r_, r), (z_, z)):
        assert_close(ours, theirs, "drive")


def test_chunks_in_float32_flip_only_with_a_proof():
    neuron, x = build(3), randn(700, 4, 3, dtype=F32)
    s64, y64 = drive(copy.deepcopy(neuron).double(), x.double())
    _, y = drive(neuron, x)
    for sizes in ([700], [350, 350], [1] * 100 + [600], [33] * 21 + [7]):
        s, _, _ = chunks(neuron, x, sizes=sizes)
        assert_flips_proved(s, y + 1e-5, s64, y64)  # 1e-5: twice the drive's own error, for the other cuts


def test_gradient_flows_through_the_hidden_state_across_chunks():
    neuron = build(2, dtype=F64)
    x = randn(50, 3, 2).requires_grad_()
    whole = torch.autograd.grad(sequence(neuron, x)[0].sum(), [x, *neuron.parameters()])
    cut = torch.autograd.grad(chunks(neuron, x)[0].sum(), [x, *neuron.parameters()])
    for a, b in zip(cut, whole, strict=True):
        assert_close(a, b, "pmsn_adjoint")


# ---------------------------------------------------------------- identities of the specification, section 8


@all_backends
@both_dtypes
def test_convolution_recurrence_and_op_give_the_same_drive(p, backend):
    neuron = build(3, dtype=DTYPES[p])
    x = randn(150, 2, 3, dtype=DTYPES[p])
    _, y = drive(neuron, x, backend)
    a, w, d = (t.detach() for t in copy.deepcopy(neuron).double().weights(F64))
    kernel = (w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(150)).sum(1).real  # [C, T]
    wide = x.double().permute(1, 2, 0)
    fft = torch.fft.irfft(torch.fft.rfft(kernel, 300) * torch.fft.rfft(wide, 300), 300)[..., :150]
    expected = (fft + d.unsqueeze(-1) * wide).permute(2, 0, 1)
    assert_close(y, expected, "drive")
    assert_close(drive_by_loop(neuron, x), expected, "drive")


@all_backends
def test_impulse_gives_the_kernel(backend):
    neuron = build(3, dtype=F64)
    x = torch.zeros(100, 1, 3, dtype=F64)
    x[0] = 1
    _, y = drive(neuron, x, backend)
    a, w, d = neuron.weights(F64)
    kernel = (w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(100)).sum(1).real.T
    kernel[0] += d
    assert_close(y[:, 0], kernel, "drive")


@all_backends
@both_dtypes
@examples(30)
@given(
    quarters=st.lists(st.integers(-12, 16), min_size=1, max_size=120),
    theta=st.sampled_from([0.5, 1.0, 4.0]),
    start=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_lattice_reset_is_exact(p, backend, quarters, theta, start):
    """Multiples of 0.25 and thresholds that are powers of two: bit-equal to integers, ties included."""
    y = torch.tensor(quarters, dtype=DTYPES[p]).unsqueeze(1) * 0.25
    s, _, r = soma(y, theta, backend, torch.tensor([start], dtype=y.dtype))
    unit, total, removed, spikes = int(16 * theta), int(16 * start * theta), 0, []
    for q in quarters:  # in sixteenths of a volt
        total += 4 * max(q, 0)
        spikes.append(float(total // unit > removed))
        removed = total // unit
    assert s.flatten().tolist() == spikes
    assert r.item() == total % unit / unit  # c mod theta, in units of it
    assert sum(spikes) <= removed  # at most one spike a step


@all_backends
def test_spikes_equal_removed_thresholds_when_no_step_removes_two(backend):
    y = torch.rand(300, 50, generator=torch.Generator().manual_seed(0), dtype=F64) * 0.9
    s, _, _ = soma(y, 1.0, backend)
    assert_same(torch.cumsum(s, 0), torch.floor(torch.cumsum(y, 0)))


@all_backends
@both_dtypes
@pytest.mark.parametrize("k", [0.25, 2.0, 8.0])
def test_scaling_drive_and_threshold_by_a_power_of_two(k, p, backend):
    y = randn(200, 30, dtype=DTYPES[p])
    s, _, r = soma(y, 0.7, backend)
    s_, _, r_ = soma(k * y, k * 0.7, backend)
    assert_same(s_, s)
    assert_same(r_, r)


@all_backends
@examples(25)
@given(data=st.data())
def test_lattice_recurrence_is_exact(backend, data):
    """a from 0, +-1/2, +-i/2 and 8 steps, or a of modulus 1 over several blocks: every sum fits a float32."""
    long = data.draw(st.booleans())
    values, steps = ([1, -1, 1j, -1j, 0], 70) if long else ([0, 0.5, -0.5, 0.5j, -0.5j], 8)
    a = torch.tensor([data.draw(st.lists(st.sampled_from(values), min_size=3, max_size=3)) for _ in range(2)])
    a = a.to(torch.complex64)

    def quarter(*shape):
        count = math.prod(shape)
        values = data.draw(st.lists(st.integers(-8, 8), min_size=count, max_size=count))
        return torch.tensor(values).reshape(shape) / 4

    w = torch.complex(quarter(2, 3), quarter(2, 3))
    d, x = quarter(2), quarter(steps, 1, 2, 2)
    r = torch.zeros(1, 2, 2)
    z = torch.zeros(1, 2, 2, 3, dtype=torch.complex64)
    s, y, r1, z1 = pmsn(x, r, z, a, w, d, 1.0, TRIANGLE, backend=backend)
    wide = (
        x.double(),
        r.double(),
        z.to(torch.complex128),
        a[:, None].to(torch.complex128),
        w[:, None].to(torch.complex128),
    )
    rows, r64, z64 = [], wide[1], wide[2]
    for step in wide[0]:
        spike, r64, z64, v = pmsn_step(step, r64, z64, *wide[3:], d.double().unsqueeze(-1), 1.0, TRIANGLE)
        rows.append((spike, v))
    assert_same(s.double(), torch.stack([row[0] for row in rows]))
    assert_same(membranes(y, r, 1.0).double(), torch.stack([row[1] for row in rows]))
    assert_same(r1.double(), r64)
    assert_same(z1.to(torch.complex128), z64)


def total_gradients(neuron, x, gs):
    s, _, m = sequence(neuron, x)
    names = ["x", *PARAMETERS]
    grads = torch.autograd.grad(s, [x, *(getattr(neuron, n) for n in PARAMETERS)], gs)
    return s, m, dict(zip(names, grads, strict=True))


def test_phase_invariance():
    """B -> p B, C -> C/p changes neither drive, spikes nor the gradient to the input."""
    neuron, x, gs = build(3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, m, g = total_gradients(neuron, x, gs)
    turned = copy.deepcopy(neuron)
    p = torch.polar(torch.ones(3, 4, dtype=F64) * 1.5, randn(3, 4, seed=4))
    with torch.no_grad():
        for name, factor in (("VinvB", p), ("CV", 1 / p)):
            value = torch.complex(getattr(turned, f"{name}_real"), getattr(turned, f"{name}_imag")) * factor
            getattr(turned, f"{name}_real").copy_(value.real)
            getattr(turned, f"{name}_imag").copy_(value.imag)
    s_, m_, g_ = total_gradients(turned, x, gs)
    assert_same(s_, s)
    assert_close(m_, m, "drive")
    for name in ("x", "log_dt", "log_A_real", "A_imag", "D"):
        assert_close(g_[name], g[name], "pmsn_adjoint")


def test_mode_permutation():
    neuron, x, gs = build(3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, m, g = total_gradients(neuron, x, gs)
    order = torch.tensor([2, 0, 3, 1])
    permuted = copy.deepcopy(neuron)
    with torch.no_grad():
        for name in PARAMETERS:
            if name not in PER_CHANNEL:
                getattr(permuted, name).copy_(getattr(neuron, name)[:, order])
    s_, m_, g_ = total_gradients(permuted, x, gs)
    assert_same(s_, s)
    assert_close(m_, m, "drive")
    for name in g:
        expected = g[name] if name == "x" or name in PER_CHANNEL else g[name][:, order]
        assert_close(g_[name], expected, "pmsn_adjoint")


def test_silent_modes_change_nothing_but_their_own_output_gradient():
    neuron, x, gs = build(3, 3, dtype=F64), randn(60, 2, 3).requires_grad_(), randn(60, 2, 3, seed=9)
    s, _, g = total_gradients(neuron, x, gs)
    wider = build(3, 5, dtype=F64, seed=20)
    with torch.no_grad():
        for name in PARAMETERS:
            if name in PER_CHANNEL:
                getattr(wider, name).copy_(getattr(neuron, name))
            else:
                getattr(wider, name)[:, :2] = getattr(neuron, name)
        wider.CV_real[:, 2:] = wider.CV_imag[:, 2:] = 0
    s_, _, g_ = total_gradients(wider, x, gs)
    assert_same(s_, s)
    for name in g:
        assert_close(
            g_[name] if name == "x" or name in PER_CHANNEL else g_[name][:, :2], g[name], "pmsn_adjoint"
        )
    for name in ("log_A_real", "A_imag", "VinvB_real", "VinvB_imag"):
        assert not g_[name][:, 2:].any()
    assert g_["CV_real"][:, 2:].all()


def test_conjugate_pairs_have_conjugate_gradients():
    neuron, x, gs = PMSN(3).double(), (5 * randn(60, 2, 3)).requires_grad_(), randn(60, 2, 3, seed=9)
    s, _, g = total_gradients(neuron, x, gs)
    assert s.sum() > 0
    for name, sign in (
        ("log_A_real", 1),
        ("A_imag", -1),
        ("VinvB_real", 1),
        ("VinvB_imag", -1),
        ("CV_real", 1),
        ("CV_imag", -1),
    ):
        assert_close(g[name].flip(1), sign * g[name], "pmsn_adjoint")
    a, w, d = (t.detach() for t in neuron.weights(F64))
    half = torch.stack([x.detach()[t] for t in range(60)])
    zeros = (torch.zeros(2, 3, 1, dtype=F64), torch.zeros(2, 3, 1, 2, dtype=a.dtype))
    _, y, _, _ = pmsn(half.unsqueeze(-1), *zeros, a[:, :2], 2 * w[:, :2], d, 1.0, TRIANGLE)
    assert_close(y.squeeze(-1), drive(neuron, x)[1], "drive")  # twice the real part of one half


@all_runs
def test_causality_of_outputs_and_gradients(how):
    neuron, x = build(3, dtype=F64), randn(70, 2, 3).requires_grad_()
    s, _, m = run(how, neuron, x)
    for t in (0, 31, 32, 40, 69):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        changed = x.detach().clone()
        changed[t + 1 :] += 3 * randn(69 - t, 2, 3, seed=5)
        s_, _, m_ = run(how, neuron, changed)
        assert_same(s_[: t + 1], s[: t + 1])
        assert_close(m_[: t + 1], m[: t + 1], "drive")


@all_backends
def test_drive_is_linear_in_the_input(backend):
    neuron, x, u = build(3, dtype=F64), randn(70, 2, 3), randn(70, 2, 3, seed=1)
    y = [drive(neuron, v, backend)[1] for v in (x, u, 2 * x - 3 * u)]
    assert_close(y[2], 2 * y[0] - 3 * y[1], "drive")


@all_backends
def test_reset_sees_the_positive_part_only(backend):
    y = randn(100, 20)
    s, _, r = soma(y, 1.0, backend)
    s_, _, r_ = soma(torch.where(y < 0, y - 7, y), 1.0, backend)
    assert_same(s_, s)
    assert_same(r_, r)


@all_runs
def test_one_hot_gradient(how):
    """gs at t alone: h(v[t]) [y[t] > 0] (K[t-i] + D [i = t])."""
    neuron, x = build(2, dtype=F64), randn(70, 1, 2).requires_grad_()
    s, _, m = run(how, neuron, x)
    a, w, d = (v.detach() for v in neuron.weights(F64))
    kernel = (w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(70)).sum(1).real.T  # [T, C]
    y = drive(neuron, x)[1].detach()
    used = 0
    for t in (*range(0, 70, 5), 31, 32, 33, 69):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        gy = (1 - (m.detach()[t, 0] - 1).abs()).clamp(min=0) * (y[t, 0] > 0)
        expected = torch.zeros(70, 2, dtype=F64)
        expected[: t + 1] = gy * kernel[: t + 1].flip(0)
        expected[t] += gy * d
        assert_close(gx[:, 0], expected, "pmsn_adjoint")
        used += bool(gy.any())
    assert used > 8


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize("steps", [5, 35])
def test_finite_differences_of_the_linear_part(steps, modes):
    """Drive and last state against every input and every published parameter, surrogate left out."""
    neuron = build(2, modes + 1, dtype=F64)
    names = [n for n, _ in neuron.named_parameters()]
    x, z = randn(steps, 1, 2, 1), torch.complex(randn(1, 2, 1, modes, seed=1), randn(1, 2, 1, modes, seed=2))
    r = torch.zeros(1, 2, 1, dtype=F64)

    def linear(x, z, *values):
        byname = dict(zip(names, values, strict=True))
        a, w = discretise(*(byname[n] for n in PARAMETERS if n != "D"))
        _, y, _, z = pmsn(x, r, z, a, w, byname["D"], 1.0, TRIANGLE)
        return y, z

    leaves = [t.detach().clone().requires_grad_() for t in (x, z, *neuron.parameters())]
    assert torch.autograd.gradcheck(linear, leaves, fast_mode=steps > 10)


def test_one_real_mode_is_a_leaky_integrator():
    neuron = PMSN(1, 2).double()
    assert neuron.A_imag.tolist() == [[0.0]]
    with torch.no_grad():
        neuron.log_dt.fill_(math.log(0.5))
        neuron.D.fill_(0.25)
    x = randn(60, 3, 1)
    s, _, m = sequence(neuron, x)
    rate = math.exp(neuron.log_A_real.item())
    decay = math.exp(-rate * 0.5)
    gain = (1 - decay) / rate * (neuron.VinvB_real * neuron.CV_real).item()
    v = r = hidden = torch.zeros(3, 1, dtype=F64)
    for t in range(60):
        hidden = decay * hidden + gain * x[t]
        v = r + (hidden + 0.25 * x[t]).clamp(min=0)
        assert_close(m[t], v, "drive")
        assert_same(s[t], (v >= 1).to(F64))
        r = v % 1


@all_runs
@both_dtypes
@pytest.mark.parametrize("theta", [0.5, 0.3, 2.0])
def test_units_are_volts_whatever_the_threshold(theta, p, how):
    """Against the loop of sections 2.4 and 4.1 in volts: the half-width stays 1 V, no factor 1/theta appears."""
    neuron = build(3, dtype=F64, v_threshold=theta)
    x = randn(50, 2, 3).requires_grad_()
    gs = randn(50, 2, 3, seed=4)
    parameters = [getattr(neuron, n) for n in PARAMETERS]
    # reference: convolution for the drive, a loop in volts for the soma
    a, w, d = neuron.weights(F64)
    kernel = (w.unsqueeze(-1) * a.unsqueeze(-1) ** torch.arange(50)).sum(1).real
    y = torch.stack(
        [(kernel[:, : t + 1].flip(1) * x[: t + 1].permute(1, 2, 0)).sum(-1) + d * x[t] for t in range(50)]
    )
    r, spikes, volts = torch.zeros(2, 3, dtype=F64), [], []
    for drive_t in y.detach():
        v = r + drive_t.clamp(min=0)
        spikes.append((v >= theta).double())
        volts.append(v)
        r = v - theta * torch.floor(v / theta)
    v = torch.stack(volts)
    gy = gs * (1 - (v - theta).abs()).clamp(min=0) * (y > 0)
    expected = torch.autograd.grad(y, [x, *parameters], gy)
    narrow = copy.deepcopy(neuron).to(DTYPES[p])
    xs = x.detach().to(DTYPES[p]).requires_grad_()
    s, _, m = run(how, narrow, xs)
    assert_same(s.double(), torch.stack(spikes))
    assert_close(m, v, "drive")
    actual = torch.autograd.grad(s, [xs, *(getattr(narrow, n) for n in PARAMETERS)], gs.to(DTYPES[p]))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")


@all_backends
def test_slope_at_the_edges(backend):
    """h(1) = 1, h(0) = h(2) = 0; y = 0 and y < 0 pass nothing even where h does not vanish."""
    y = torch.tensor([[1.0, 2.0, 0.25, 0.0, -1.0]], dtype=F64, requires_grad=True)
    r = torch.tensor([0.0, 0.0, 0.0, 0.75, 0.75], dtype=F64)
    s, _, _ = soma(y, 1.0, backend, r)
    s.sum().backward()
    assert s.tolist() == [[1, 1, 0, 0, 0]]
    assert y.grad.tolist() == [[1.0, 0.0, 0.25, 0.0, 0.0]]


@pytest.mark.parametrize(
    "surrogate", ["rectangular", "atan", "sigmoid", "gaussian", Surrogate("triangle", 0.25)]
)
def test_other_surrogates(surrogate):
    neuron, x = build(3, dtype=F64, surrogate=surrogate, v_threshold=0.5), randn(40, 2, 3).requires_grad_()
    leaves = [x, *neuron.parameters()]
    pairs = [torch.autograd.grad(path(neuron, x)[0].sum(), leaves) for path in (loop, sequence)]
    for ours, theirs in zip(*pairs, strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")


def test_callable_surrogate_runs_on_the_loop(monkeypatch):
    named = build(3, dtype=F64)
    free = build(3, dtype=F64, surrogate=lambda u: TRIANGLE(u))
    x = randn(20, 2, 3).requires_grad_()
    grads = [torch.autograd.grad(sequence(n, x)[0].sum(), [x, *n.parameters()]) for n in (named, free)]
    assert_same(sequence(named, x)[0], sequence(free, x)[0])
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, "pmsn_adjoint")
    monkeypatch.setitem(BACKENDS, "other", "msf_pmsn_plugins.backends.torch_backend")
    free.backend = "other"
    with pytest.raises(ValueError, match="backend 'other' has no kernel"):
        free(x)


# ---------------------------------------------------------------- discretisation


def exact(log_dt, log_a, a_imag, b, c):
    """a, w and their derivatives by (log_dt, log_A_real, A_imag), 60 digits."""
    mp = mpmath.mp
    with mpmath.workdps(60):
        dt = mp.exp(mp.mpf(log_dt))
        real = mp.exp(mp.mpf(log_a)) if log_a > -math.inf else mp.mpf(0)
        lam = mp.mpc(-real, mp.mpf(a_imag))
        cb = mp.mpc(b) * mp.mpc(c)
        e = mp.exp(lam * dt)
        if lam == 0:
            phi, dphi = dt, dt**2 / 2
        else:
            phi, dphi = mp.expm1(lam * dt) / lam, (dt * e * lam - mp.expm1(lam * dt)) / lam**2
        value = {"a": e, "w": cb * phi}
        by = {
            ("a", 0): lam * dt * e,
            ("w", 0): cb * dt * e,
            ("a", 1): dt * e * -real,
            ("w", 1): cb * dphi * -real,
            ("a", 2): dt * e * mp.mpc(0, 1),
            ("w", 2): cb * dphi * mp.mpc(0, 1),
        }
    return {k: complex(v) for k, v in value.items()}, {k: complex(v) for k, v in by.items()}


def check_discretise(log_dt, log_a, a_imag, dtype):
    b, c = 0.75 - 0.5j, -0.25 + 1.5j
    leaves = [
        torch.tensor([log_dt], dtype=dtype),
        torch.tensor([[log_a]], dtype=dtype),
        torch.tensor([[a_imag]], dtype=dtype),
    ]
    for leaf in leaves:
        leaf.requires_grad_()
    fixed = [torch.full((1, 1), v, dtype=dtype) for v in (b.real, b.imag, c.real, c.imag)]
    out = dict(zip("aw", discretise(*leaves, *fixed), strict=True))
    value, by = exact(*(leaf.item() for leaf in leaves), b, c)
    for name in "aw":
        assert_close(out[name], torch.tensor([[value[name]]], dtype=torch.complex128), "discretise")
        parts = [
            torch.autograd.grad(getattr(out[name], part).sum(), leaves, retain_graph=True)
            for part in ("real", "imag")
        ]
        for i in range(3):
            ours = torch.complex(*(grads[i].double().reshape(()) for grads in parts))
            assert_close(
                ours, torch.tensor(by[name, i], dtype=torch.complex128), "discretise_gradient", dtype
            )


@both_dtypes
@pytest.mark.parametrize("dt", [1e-8, 1e-6, 1e-4, 1e-2, 0.3, 1.0, 3.0])
@pytest.mark.parametrize(
    ("log_a", "a_imag"), [(-0.7, 0.0), (-0.7, 4.1), (-12.0, 1e-3), (-math.inf, 0.0), (-math.inf, 2.0)]
)
def test_discretise_loses_no_digits(log_a, a_imag, dt, p):
    """At tiny steps (exp - 1)/Lam cancels, and at Lam = 0 it is 0/0; value and gradients must not."""
    check_discretise(math.log(dt), log_a, a_imag, DTYPES[p])


@examples(60)
@given(log_dt=st.floats(-18, 0), log_a=st.floats(-15, 0), a_imag=st.floats(-1, 1))
def test_discretise_anywhere(log_dt, log_a, a_imag):
    check_discretise(log_dt, log_a, a_imag, F64)


def test_the_weights_can_be_differentiated_twice_and_forward():
    parameters = [randn(2), randn(2, 3) - 1, randn(2, 3), *(randn(2, 3) for _ in range(4))]
    parameters = [part.requires_grad_() for part in parameters]

    def real(*parts):
        return torch.view_as_real(torch.cat(discretise(*parts)))

    assert torch.autograd.gradcheck(real, parameters)
    assert torch.autograd.gradgradcheck(real, parameters)
    assert torch.autograd.gradcheck(real, parameters, check_forward_ad=True, check_backward_ad=False)


@pytest.mark.parametrize("size", [0.98, 0.9999, 1.0, 1.0001, 1.02])
@pytest.mark.parametrize("angle", [0.5, 0.6, 0.75, 1.0])
def test_discretise_where_its_two_formulas_meet(angle, size):
    """|Lam dt| about 1, at angles between the imaginary axis (times pi) and the negative real one."""
    real, imag = -size * math.cos(math.pi * angle), size * math.sin(math.pi * angle)
    check_discretise(0.0, math.log(real) if real > 1e-9 else -math.inf, imag, F64)


@both_dtypes
def test_every_parameter_is_stable(p):
    neuron = PMSN(64, 17, init="sequence").to(DTYPES[p])
    a, _, _ = neuron.weights(DTYPES[p])
    assert (a.abs() < 1).all()


@pytest.mark.parametrize("dt", [1e-6, 1e-3])
def test_parameter_gradients_at_small_steps(dt):
    """float32 gradients of log_A_real and A_imag against float64: the published arithmetic is off by 1e-3 here."""
    neuron = build(3)
    with torch.no_grad():
        neuron.log_dt.fill_(math.log(dt))
        neuron.VinvB_real.mul_(0.05 / dt)
        neuron.VinvB_imag.mul_(0.05 / dt)
        neuron.D.zero_()
    x, gs = randn(64, 2, 3, dtype=F32), randn(64, 2, 3, seed=2, dtype=F32)
    _, y = drive(neuron, x)
    grads = torch.autograd.grad(y, [getattr(neuron, n) for n in PARAMETERS], gs)
    wide = copy.deepcopy(neuron).double()
    exact_grads = torch.autograd.grad(
        drive(wide, x.double())[1], [getattr(wide, n) for n in PARAMETERS], gs.double()
    )
    for ours, theirs in zip(grads, exact_grads, strict=True):
        assert_close(ours, theirs, "pmsn_gradient")


# ---------------------------------------------------------------- not finite, empty, half, views


@all_runs
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_input_silences_its_own_lane_from_then_on(bad, how):
    neuron = build(3)
    x = (randn(70, 2, 3, dtype=F32) * 2).requires_grad_()
    clean, (r_clean, z_clean), m_clean = run(how, neuron, x)
    dirty = x.detach().clone()
    dirty[33, 1, 2] = bad
    dirty.requires_grad_()
    s, (r, z), m = run(how, neuron, dirty)
    assert clean[33:, 1, 2].any()
    assert not s[33:, 1, 2].any()
    assert m[33:, 1, 2].isnan().all()
    assert r[1, 2].isnan()
    assert torch.view_as_real(z[1, 2]).isnan().any(-1).all()
    ok = torch.ones(70, 2, 3, dtype=torch.bool)
    ok[33:, 1, 2] = False
    assert_same(s[ok], clean[ok])
    assert_same(m[ok], m_clean[ok])
    assert_same(r[0], r_clean[0])
    assert_same(z[0], z_clean[0])
    (g,), (g_clean,) = (
        torch.autograd.grad(s.sum(), dirty, retain_graph=True),
        torch.autograd.grad(clean.sum(), x),
    )
    lanes = torch.ones(2, 3, dtype=torch.bool)
    lanes[1, 2] = False
    assert_close(g[:, lanes], g_clean[:, lanes], "pmsn_adjoint")


@pytest.mark.parametrize("how", RUNS[1:])
def test_a_bad_input_spares_the_parameters_of_the_sequence(how):
    """The loop gives NaN gradients to the lane's channel (0 times NaN); the op leaves the lane out from there on."""
    neuron, x = build(3), randn(40, 2, 3, dtype=F32) * 2
    x[33, 1, 2] = math.nan
    s, _, _ = run(how, neuron, x)
    grads = torch.autograd.grad(s.sum(), list(neuron.parameters()))
    assert all(g.isfinite().all() for g in grads)
    s, _, _ = run("loop", neuron, x)
    for ours, theirs in zip(grads, torch.autograd.grad(s.sum(), list(neuron.parameters())), strict=True):
        assert_close(ours[:2], theirs[:2], "pmsn_adjoint")  # the other channels agree


@all_runs
@both_dtypes
def test_empty_sequence_leaves_the_state(p, how):
    neuron = build(3, dtype=DTYPES[p])
    x = torch.empty(0, 2, 3, dtype=DTYPES[p], requires_grad=True)
    r0 = torch.full((2, 3), 0.5, dtype=DTYPES[p])
    z0 = torch.complex(randn(2, 3, 4), randn(2, 3, 4, seed=1)).to(DTYPES[p].to_complex()).requires_grad_()
    s, (r, z), m = run("loop" if how == "loop" else how.replace("chunks", "sequence"), neuron, x, (r0, z0))
    assert s.shape == m.shape == x.shape
    assert s.dtype == m.dtype == x.dtype
    assert_same(r, r0)
    assert_same(z, z0)
    (g,) = torch.autograd.grad(torch.view_as_real(z).sum(), z0)
    assert_same(g, torch.complex(torch.ones_like(z0.real), torch.ones_like(z0.real)))


@all_runs
def test_empty_batch(how):
    neuron = build(3)
    x = torch.empty(40, 0, 3, 2, requires_grad=True)
    s, (r, z), m = run(how, neuron, x)
    assert s.shape == m.shape == x.shape
    assert r.shape == (0, 3, 2)
    assert z.shape == (0, 3, 2, 4)
    grads = torch.autograd.grad(s.sum(), [x, *neuron.parameters()], allow_unused=how == "loop")
    assert not any(g is not None and g.any() for g in grads)


@all_runs
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_input_keeps_a_float32_state(half, how):
    neuron = build(3)
    x = (
        (torch.randint(-96, 97, (60, 4, 3), generator=torch.Generator().manual_seed(0)) / 32)
        .to(half)
        .requires_grad_()
    )
    full = x.detach().float().requires_grad_()
    s, (r, z), m = run(how, neuron, x)
    s32, (r32, z32), m32 = run(how, neuron, full)
    assert (s.dtype, r.dtype, z.dtype, m.dtype) == (half, F32, torch.complex64, F32)
    assert_same(s.float(), s32)
    for a, b in ((r, r32), (z, z32), (m, m32)):
        assert_same(a, b)
    (g,), (g32,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s32.sum(), full)
    assert g.dtype == half
    assert_same(g, g32.to(half))


def test_half_parameters_compute_in_float32():
    neuron = build(3).to(torch.bfloat16)
    s, (r, z), _ = sequence(neuron, randn(40, 2, 3).to(torch.bfloat16))
    assert (s.dtype, r.dtype, z.dtype) == (torch.bfloat16, F32, torch.complex64)
    wide = copy.deepcopy(neuron).float()
    assert_same(s.float(), sequence(wide, randn(40, 2, 3).to(torch.bfloat16).float())[0])


@all_runs
@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view, how):
    base = randn(40, 4, 3, 6, dtype=F32)
    x = {
        "transposed": base.transpose(1, 3)
        .transpose(1, 2)
        .transpose(1, 2)
        .permute(0, 3, 2, 1)
        .transpose(1, 3),
        "expanded": base[:, :1, :, :1].expand(40, 5, 3, 2),
        "strided": base[::2, ::2, :, ::3],
    }[view]
    assert x.shape[2] == 3
    assert not x.is_contiguous()
    neuron = build(3)
    leaf, copied = x.detach().requires_grad_(), x.contiguous().requires_grad_()
    up = randn(*x.shape, seed=3, dtype=F32)
    out, ref = run(how, neuron, leaf), run(how, neuron, copied)
    assert_same(out[0], ref[0])
    assert_close(out[2], ref[2], "drive")
    gradients = [
        torch.autograd.grad(o[0], [i, *neuron.parameters()], up) for o, i in ((out, leaf), (ref, copied))
    ]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "pmsn_adjoint")


# ---------------------------------------------------------------- the channel axis


@all_runs
@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [(1, (2, 6, 4)), (2, (2, 5, 6)), (-1, (2, 5, 6)), (-2, (2, 5, 6, 3)), (1, (2, 6))],
)
def test_channel_axis_anywhere(channel_dim, shape, how):
    neuron = build(6, channel_dim=channel_dim, dtype=F64)
    axis = channel_dim % len(shape)
    x = randn(40, *shape).requires_grad_()
    s, (r, z), m = run(how, neuron, x)
    plain = build(6, dtype=F64)
    moved = x.detach().movedim(axis + 1, -1).reshape(40, -1, 6).requires_grad_()
    s_, (r_, z_), m_ = sequence(plain, moved)
    assert s.shape == m.shape == x.shape
    assert r.shape == shape
    assert z.shape == (*shape, 4)
    back = lambda t, extra=0: t.detach().movedim(axis + extra, -1).reshape(*t.shape[:extra], -1, 6)  # noqa: E731
    assert_same(back(s, 1), s_)
    assert_close(back(m, 1), m_, "drive")
    assert_close(back(r), r_, "drive")
    assert_close(z.detach().movedim(axis, -2).reshape(-1, 6, 4), z_, "drive")
    g, g_ = torch.autograd.grad(s.sum(), x)[0], torch.autograd.grad(s_.sum(), moved)[0]
    assert_close(back(g, 1), g_, "pmsn_adjoint")


@all_runs
@pytest.mark.parametrize(
    ("channel_dim", "shape"), [((1, 2), (3, 2, 3, 5)), ((-2, -1), (3, 5, 2, 3)), ([1, 2], (3, 2, 3))]
)
def test_two_axes_count_as_one(channel_dim, shape, how):
    neuron = build(6, channel_dim=channel_dim, dtype=F64)
    axis = channel_dim[0] % len(shape)
    x = randn(40, *shape)
    s, (r, z), _ = run(how, neuron, x)
    s_, (r_, _), _ = sequence(build(6, channel_dim=axis, dtype=F64), x.flatten(axis + 1, axis + 2))
    assert_same(s, s_.reshape(s.shape))
    assert_close(r, r_.reshape(shape), "drive")
    assert z.shape == (*shape, 4)


@pytest.mark.parametrize(
    ("channel_dim", "shape", "message"),
    [
        (1, (4, 2, 5), "this PMSN has 6 channels, but axis 1 .* has 5: pass channels=5, or the channel_dim"),
        (-1, (4, 2, 6, 5), "this PMSN has 6 channels"),
        ((1, 2), (4, 2, 2, 6), "this PMSN has 6 channels"),
        (2, (4, 2, 6), "channel_dim=2 counts in the per-step tensor"),
        (-3, (4, 2, 6), "channel_dim=-3 counts in the per-step tensor"),
        (1, (4, 6), "channel_dim=1 counts in the per-step tensor"),  # the time axis is missing
        ((2, 1), (4, 2, 2, 3), "adjacent axes in ascending order"),
        ((1, 3), (4, 2, 2, 1, 3), "adjacent axes in ascending order"),
        ((1, 1), (4, 2, 6), "adjacent axes in ascending order"),
        (0, (4, 6, 2), "axis 0 is the batch"),
        (-2, (4, 6, 2), "axis 0 is the batch"),
    ],
)
def test_wrong_channel_axis(channel_dim, shape, message):
    neuron = build(6, channel_dim=channel_dim)
    with pytest.raises(ValueError, match=message):
        neuron(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):  # an empty sequence is checked too
        neuron(torch.zeros(0, *shape[1:]))


# ---------------------------------------------------------------- channels taken from the input


@pytest.mark.parametrize("steps", [0, 3])
def test_first_input_gives_the_channels(steps):
    neuron = PMSN(channel_dim=-1)
    assert neuron.channels is None
    neuron(torch.zeros(steps, 2, 4, 7))
    assert neuron.channels == 7
    assert neuron.A_imag.shape == (7, 4)
    with pytest.raises(ValueError, match="7 channels"):
        neuron(torch.zeros(2, 2, 4, 8))


def test_first_step_gives_the_channels():
    neuron, x = PMSN(), torch.zeros(2, 7)
    neuron.check_input(x)
    neuron.step(x, neuron.initial_state(x))
    assert neuron.channels == 7


def test_no_channels_in_the_input():
    with pytest.raises(ValueError, match="cannot take the channel count"):
        PMSN()(torch.zeros(2, 3, 0))


def test_lazy_and_given_channels_draw_the_same_numbers():
    torch.manual_seed(3)
    given = PMSN(5)
    torch.manual_seed(3)
    lazy = PMSN()
    lazy(torch.zeros(1, 1, 5))
    for name in PARAMETERS:
        assert_same(getattr(lazy, name), getattr(given, name))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_may_hold_the_parameters_before_they_have_a_size(kind):
    neuron = PMSN()
    optimizer = kind(neuron.parameters(), lr=0.05)
    x = 3 * randn(20, 4, 5, dtype=F32)
    neuron(x)
    before = {n: p.detach().clone() for n, p in neuron.named_parameters()}
    (neuron(x)[0].mean() - 1).square().backward()
    optimizer.step()
    changed = {n for n, p in neuron.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(PARAMETERS)


def test_deepcopy_before_the_channels_are_known():
    neuron = PMSN(channel_dim=-1, v_threshold=0.5)
    twin = copy.deepcopy(neuron)
    twin(torch.zeros(1, 1, 3))
    neuron(torch.zeros(1, 1, 5))
    assert (neuron.channels, twin.channels, twin.v_threshold) == (5, 3, 0.5)


def test_state_dict_before_the_channels_are_known():
    for module in (PMSN(), torch.nn.Sequential(torch.nn.Linear(2, 2), PMSN())):
        with pytest.raises(RuntimeError, match=r"pass channels=\.\.\., or run one forward pass"):
            module.state_dict()


@pytest.mark.parametrize("strict", [True, False])
def test_load_state_dict_gives_the_channels(strict):
    given, lazy = torch.nn.Sequential(build(5)), torch.nn.Sequential(PMSN())
    lazy.load_state_dict(given.state_dict(), strict=strict)
    assert lazy[0].channels == 5
    for name in PARAMETERS:
        assert_same(getattr(lazy[0], name), getattr(given[0], name))
    x = randn(10, 2, 5, dtype=F32)
    assert_same(lazy[0](x)[0], given[0](x)[0])


def test_load_state_dict_of_another_size_raises():
    with pytest.raises(RuntimeError, match="size mismatch"):
        PMSN(4).load_state_dict(build(5).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        PMSN(compartments=4).load_state_dict(build(5).state_dict())


def test_load_state_dict_without_our_keys_leaves_the_channels_open():
    neuron = PMSN()
    with pytest.raises(RuntimeError, match="Missing key"):
        neuron.load_state_dict({})
    assert neuron.channels is None


def test_weights_before_the_channels_are_known():
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        PMSN().weights()


def test_distributed_data_parallel_asks_for_a_forward_first():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module = torch.nn.Sequential(PMSN())
        with pytest.raises(RuntimeError, match=r"uninitialized parameters.*dummy forward"):
            DistributedDataParallel(module)
    finally:
        dist.destroy_process_group()


def test_dtype_and_device_moves_before_the_channels_are_known():
    neuron = PMSN().double()
    neuron(torch.zeros(1, 1, 3, dtype=F64))
    assert {p.dtype for p in neuron.parameters()} == {F64}


# ---------------------------------------------------------------- settings and bad input


def test_settings_changed_after_construction_take_effect():
    neuron, x = build(3), 2 * randn(60, 2, 3, dtype=F32)
    low = neuron(x)[0].sum()
    neuron.v_threshold = 4.0
    high = neuron(x)[0].sum()
    assert high < low
    assert_same(neuron(x)[0], build(3, v_threshold=4.0)(x)[0])
    neuron.surrogate = "atan"
    assert neuron.surrogate == Surrogate("atan", 2.0)
    neuron.surrogate = None
    assert neuron.surrogate == TRIANGLE


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"compartments": 1}, "compartments must be an integer from 2 to 17"),
        ({"compartments": 18}, "compartments must be an integer from 2 to 17"),
        ({"compartments": 5.0}, "compartments must be an integer from 2 to 17"),
        ({"channels": 0}, "channels must be a positive integer or None"),
        ({"channels": -3}, "channels must be a positive integer or None"),
        ({"channels": 2.0}, "channels must be a positive integer or None"),
        ({"v_threshold": 0.0}, "v_threshold must be (positive|a finite number)"),
        ({"v_threshold": -1.0}, "v_threshold must be (positive|a finite number)"),
        ({"v_threshold": math.nan}, "v_threshold must be (positive|a finite number)"),
        ({"init": "smnist"}, "unknown init 'smnist'; known: sequence, shd, imagenet"),
        ({"surrogate": "tri"}, "unknown surrogate 'tri'"),
        ({"backend": "fft"}, "unknown backend 'fft'.*'auto', 'torch'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PMSN(**kwargs)


def test_unknown_backend_after_construction():
    neuron = build(3)
    with pytest.raises(ValueError, match="unknown backend 'numba_'"):
        neuron.backend = "numba_"
    assert neuron.backend == "auto"


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_input_must_be_floating_point(dtype):
    x = torch.zeros(3, 2, 3, dtype=dtype)
    for call in (lambda: build(3)(x), lambda: build(3).step(x[0], build(3).initial_state(torch.zeros(2, 3)))):
        with pytest.raises(TypeError, match=r"floating-point input.*float\(\)"):
            call()
    lazy = PMSN()
    with pytest.raises(TypeError):
        lazy(x)
    assert lazy.channels is None  # a refused input leaves no trace


def test_input_must_be_a_tensor_with_a_time_axis():
    with pytest.raises(TypeError, match="takes a torch.Tensor, got list"):
        build(3)([[1.0]])
    with pytest.raises(ValueError, match="time first"):
        build(3)(torch.zeros(5))


def test_state_of_another_batch():
    neuron = build(3)
    _, state = neuron(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*left by another batch"):
        neuron(torch.zeros(2, 5, 3), state)
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.step(torch.zeros(5, 3), state)
    with pytest.raises(ValueError, match="tuple of 2 tensors.*got 1"):
        neuron(torch.zeros(2, 4, 3), state[:1])
    with pytest.raises(ValueError, match="left by another batch"):  # another number of modes
        build(3, 4)(torch.zeros(2, 4, 3), state)


def test_state_follows_the_dtype_of_the_input():
    neuron = build(3)
    _, state = neuron(torch.full((1, 2, 3), 0.3, dtype=F64))
    assert [t.dtype for t in state] == [F64, torch.complex128]
    s, state = neuron(torch.zeros(1, 2, 3, dtype=torch.float16), state)
    assert [s.dtype, *(t.dtype for t in state)] == [torch.float16, F32, torch.complex64]


# ---------------------------------------------------------------- rounding and NaN between chunks


def test_a_residual_just_below_the_threshold_does_not_round_up_to_it():
    """Stored as 1.0 it would count as reset, and the spike it owes would be lost."""
    x = torch.tensor([1 - 2.0**-24, 2.0**-25, 0.5, 0.0]).reshape(4, 1, 1, 1)
    a = w = torch.zeros(1, 1, dtype=torch.complex64)
    d, r, z = torch.ones(1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.complex64)
    whole = pmsn(x, r, z, a, w, d, 1.0, Surrogate("triangle"))[0]
    first, _, r, z = pmsn(x[:2], r, z, a, w, d, 1.0, Surrogate("triangle"))
    assert r.item() < 1
    second = pmsn(x[2:], r, z, a, w, d, 1.0, Surrogate("triangle"))[0]
    assert torch.cat([first, second]).sum() == whole.sum() == 1


def test_nan_in_a_carried_state_leaves_the_other_lanes_their_gradients():
    neuron = PMSN(3)
    x = torch.randn(6, 2, 3)
    _, (r, z), _ = neuron.sequence(x)
    z = z.detach().clone()
    z[1, 2] = torch.nan
    s, _, _ = neuron.sequence(x, (r, z))
    assert not s[:, 1, 2].any()
    s.sum().backward()
    assert all(p.grad.isfinite().all() for p in neuron.parameters())


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="the setting came with torch 2.9"
)
def test_a_lowered_matmul_precision_is_left_as_it_is():
    neuron, x = PMSN(4), torch.randn(40, 2, 4)
    expected = neuron(x)[0]
    settings = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul
    before = [s.fp32_precision for s in settings]
    try:
        settings[0].fp32_precision, settings[1].fp32_precision = "bf16", "tf32"
        s_seq = neuron(x)[0]
        s_seq.sum().backward()
        assert (settings[0].fp32_precision, settings[1].fp32_precision) == ("bf16", "tf32")
        assert_same(s_seq, expected)
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


# ---------------------------------------------------------------- a state at rest


@all_backends
@pytest.mark.parametrize("value", [0.0, 0.5 - 0.25j])
@pytest.mark.parametrize("compartments", [2, 5])
def test_one_number_may_stand_for_a_whole_state(backend, value, compartments):
    neuron = build(3, compartments, backend=backend)
    x = 2 * randn(9, 2, 3, 4)
    r = torch.zeros(2, 3, 4)
    z = torch.full((), value, dtype=torch.complex64).expand(2, 3, 4, compartments - 1)
    results = []
    for state in ((r, z), (r, z.contiguous()), *([None] if value == 0 else [])):
        u = x.clone().requires_grad_()
        s, after, m = neuron.sequence(u, state, membrane=True)
        grads = torch.autograd.grad((s + m).sum() + after[1].abs().sum(), [u, *neuron.parameters()])
        results.append([s, m, *after, *grads])
    assert results[0][0].any()
    assert not results[0][0].all()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_same(a, b)


def test_a_subclass_may_start_elsewhere():
    class Charged(PMSN):
        def initial_state(self, x):
            r, z = super().initial_state(x)
            return r + 0.5, z + 1

    neuron, x = Charged(3), torch.zeros(2, 1, 3)
    for a, b in zip(neuron(x)[1], neuron(x, neuron.initial_state(x[0]))[1], strict=True):
        assert_same(a, b)
    assert neuron(x)[1][1].any()


def test_a_global_neuron_leaves_a_state_of_its_own():
    _s, state = PMSN(3, context="global")(torch.randn(5, 2, 3))
    for part in state:
        part += 1


def test_a_sequence_of_no_steps_gives_a_state_of_its_own():
    """Not the one number that stood for it: it may be written to."""
    for surrogate in (None, Custom(lambda u: (u >= 0).float())):
        _s, (r, z) = PMSN(3, surrogate=surrogate)(torch.zeros(0, 2, 3))
        r += 1
        z[0] += 1
        assert not z[1].any()


@pytest.mark.skipif("numba" not in ON_CPU, reason="Numba is not installed")
def test_short_sequences_keep_no_state_for_the_backward():
    x = torch.randn(4, 8, 16, 8, 8).requires_grad_()
    kept = {}

    def pack(part):
        kept[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        return part

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda part: part):
        PMSN(16, backend="numba")(x)
    assert sum(kept.values()) < 1.5 * x.nbytes  # the input, the residual, parameters
