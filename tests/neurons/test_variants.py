"""The variants: MSF's thresholds, learned decay, soft forward; PMSN's resets, burst, fixed point and the rest."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pmsn import build, from_golden, randn, run

from helpers import DTYPES, ON_CPU, examples, golden, loop, poisoned_empty, sequence, tensor
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF, parallel_reset
from msf_pmsn_plugins.neurons.pmsn import BURSTS, PARAMETERS, PER_CHANNEL, RESET_MODES, membranes
from msf_pmsn_plugins.surrogate import SURROGATES, Custom, Soft, Surrogate
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

PATHS = [f"{path}-{backend}" for path in ("sequence", "chunks") for backend in ON_CPU]
all_paths = pytest.mark.parametrize("how", PATHS)
all_backends = pytest.mark.parametrize("backend", ON_CPU)
both_dtypes = pytest.mark.parametrize("p", DTYPES)

# (reset_mode, burst, residual) that go together
SOMAS = [
    *itertools.product(("floor", "serial"), BURSTS, ("float",)),
    *(("floor", burst, "fixed") for burst in BURSTS),
    ("none", False, "float"),
    ("cumulative", False, "float"),
]
all_somas = pytest.mark.parametrize("soma", SOMAS, ids=lambda soma: "-".join(map(str, soma)))


@pytest.fixture(autouse=True, scope="module")
def _poison():
    with poisoned_empty():
        yield


def with_soma(soma, **kwargs):
    reset_mode, burst, residual = soma
    return build(reset_mode=reset_mode, burst=burst, residual=residual, **kwargs)


# ---------------------------------------------------------------- MSF: thresholds


@all_paths
@both_dtypes
def test_even_thresholds_as_a_list_are_the_spacing(p, how):
    x = (randn(9, 3, 8, dtype=DTYPES[p]) * 3).requires_grad_()
    for surrogate in (None, "atan"):
        spaced = MSF(D=3, v_threshold=0.5, threshold_step=0.75, surrogate=surrogate)
        listed = MSF(thresholds=[0.5, 1.25, 2.0], surrogate=surrogate)
        assert (listed.D, listed.v_threshold) == (3, 0.5)
        assert listed.surrogate == spaced.surrogate
        (s, v, m), (s_, v_, m_) = run(how, spaced, x), run(how, listed, x)
        for ours, theirs in ((s_, s), (v_[0], v[0]), (m_, m)):
            assert_same(ours, theirs)
        for ours, theirs in zip(
            torch.autograd.grad(s_.sum(), x), torch.autograd.grad(s.sum(), x), strict=True
        ):
            assert_same(ours, theirs)


@all_paths
def test_uneven_thresholds_by_hand(how):
    neuron = MSF(thresholds=[0.5, 1.0, 4.0], decay=0.5)
    s, (v,), m = run(how, neuron, torch.tensor([0.25, 0.375, 0.875, 4.0, -1.0]).reshape(5, 1))
    assert m.flatten().tolist() == [0.25, 0.5, 0.875, 4.0, -1.0]  # a tie fires; each spike resets
    assert s.flatten().tolist() == [0, 1, 1, 3, 0]
    assert v.item() == -1.0
    assert neuron.surrogate == Surrogate("rectangular", 0.25)  # half the smallest gap


@all_paths
@examples(30)
@given(data=st.data())
def test_any_thresholds_equal_the_loop(how, data):
    values = data.draw(st.lists(st.floats(-3, 6, width=32), min_size=1, max_size=9, unique=True))
    neuron = MSF(
        thresholds=sorted(values),
        reset_mode=data.draw(st.sampled_from(["hard", "soft", "none"])),
        detach_reset=data.draw(st.booleans()),
        decay=data.draw(st.sampled_from([0.0, 0.3, 1.0])),
        surrogate=data.draw(st.sampled_from([None, "triangle", "atan"])),
    )
    if neuron.surrogate.width < 1e-3:
        neuron.surrogate = "rectangular"
    x = (randn(6, 2, 3, seed=data.draw(st.integers(0, 99)), dtype=F32) * 2).requires_grad_()
    (s, (v,), m), (s_, (v_,), m_) = loop(neuron, x), run(how, neuron, x)
    for ours, theirs in ((s_, s), (v_, v), (m_, m)):
        assert_same(ours, theirs)
    up = randn(6, 2, 3, seed=5, dtype=F32)
    grads = [torch.autograd.grad((s * up).sum() + v.sum(), x)[0] for s, v in ((s, v), (s_, v_))]
    assert_close(grads[1], grads[0], "adjoint")


def test_thresholds_can_be_replaced_and_taken_back():
    neuron = MSF(D=2)
    neuron.thresholds = [0.5, 2.0, 3.0]
    assert neuron.thresholds == [0.5, 2.0, 3.0]
    assert "thresholds=[0.5, 2.0, 3.0]" in repr(neuron)
    neuron.D = 4
    with pytest.raises(ValueError, match="do not fit the explicit thresholds"):
        neuron(torch.zeros(2, 3))
    neuron.thresholds = None
    assert neuron.thresholds == [0.5, 1.5, 2.5, 3.5]
    assert neuron(torch.full((1, 1), 2.5))[0].item() == 3


@pytest.mark.parametrize("bad", [[], [1.0, 1.0], [2.0, 1.0], [1.0, math.nan], [1.0, math.inf]])
def test_bad_thresholds(bad):
    with pytest.raises(ValueError, match="thresholds must be"):
        MSF(thresholds=bad)


@all_backends
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("width", [0.25, 0.5, 1.3, 10.0])
@both_dtypes
def test_one_byte_kept_gives_the_gradient_of_the_membranes(p, width, reset, backend):
    """The rectangle keeps a byte an element; asking for the membranes keeps them. The bits are the same."""
    x = (randn(9, 3, 17, dtype=DTYPES[p]) * 3).requires_grad_()
    x.data[3, 0, :4] = torch.tensor([math.nan, math.inf, -math.inf, 0.5])
    neuron = MSF(D=5, surrogate=Surrogate("rectangular", width), reset_mode=reset, decay=0.3, backend=backend)
    up = randn(9, 3, 17, seed=3, dtype=DTYPES[p])
    grads, saved = [], []
    for membrane in (True, False):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.element_size() * t.numel()) or t, lambda t: t
        ):
            s, (v,), _ = neuron.sequence(x, membrane=membrane)
        grads.append(torch.autograd.grad((s * up).sum() + v.sum(), x)[0])
        saved.append(sum(sizes))
    assert_same(*grads)
    assert saved == [x.numel() * x.element_size(), x.numel()]


# ---------------------------------------------------------------- MSF: learned decay, soft forward


@all_paths
@both_dtypes
@pytest.mark.parametrize("start", [0.25, [0.2, 0.5, 0.9]], ids=["scalar", "per-channel"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_learned_decay(reset, start, p, how):
    dtype = DTYPES[p]
    x = (randn(9, 2, 3, 4, dtype=dtype) * 2).requires_grad_()
    decay = torch.tensor(start, dtype=F64)
    neuron = MSF(D=3, decay=decay, learn_decay=True, reset_mode=reset, surrogate="atan").to(dtype)
    assert_close(neuron.decay, decay.to(dtype), "slope")
    up = randn(9, 2, 3, 4, seed=1, dtype=dtype)
    leaves = [x, neuron.decay_logit]
    (s, (v,), m), (s_, (v_,), m_) = loop(neuron, x), run(how, neuron, x)
    for ours, theirs in ((s_, s), (v_, v), (m_, m)):
        assert_same(ours, theirs)
    grads = [torch.autograd.grad((s * up).sum() + v.sum(), leaves) for s, v in ((s, v), (s_, v_))]
    assert grads[0][1].abs().min() > 0
    for ours, theirs in zip(grads[1], grads[0], strict=True):
        assert_close(ours, theirs, "adjoint")
    # the same numbers as constants, one channel at a time
    for c in range(3 if decay.dim() else 0):
        constant = MSF(D=3, decay=neuron.decay[c].item(), reset_mode=reset, surrogate="atan")
        if p == "f64":
            assert_same(constant(x[:, :, c])[0], s_[:, :, c])


def test_learned_decay_stays_between_0_and_1_and_loads():
    neuron = MSF(decay=0.9, learn_decay=True, surrogate="atan")
    optimizer = torch.optim.SGD(neuron.parameters(), 10.0)
    for _ in range(20):
        optimizer.zero_grad()
        (-neuron(torch.rand(8, 4, generator=torch.Generator().manual_seed(0)))[0].sum()).backward()
        optimizer.step()
    assert 0.9 < neuron.decay.item() <= 1
    other = MSF(learn_decay=True)
    other.load_state_dict(neuron.state_dict())
    assert_same(other.decay, neuron.decay)
    other.decay = 0.5
    assert other.decay.item() == 0.5
    assert "learned" in repr(other)


def test_bad_learned_decay():
    for start in (0.0, 1.0, -0.5, math.nan, torch.zeros(2, 2), torch.tensor([])):
        with pytest.raises(ValueError, match="starts in"):
            MSF(decay=start, learn_decay=True)
    with pytest.raises(ValueError, match="belongs to charge='decay'"):
        MSF(learn_decay=True, charge="if")
    with pytest.raises(TypeError, match="decay must be a finite number"):
        MSF(decay=torch.rand(3))
    with pytest.raises(ValueError, match=r"a decay for each of 3 channels.*has 5"):
        MSF(decay=torch.full((3,), 0.5), learn_decay=True)(torch.zeros(2, 4, 5))


@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("detach", [True, False])
def test_soft_forward_is_differentiable_through_time(detach, reset):
    x = (randn(4, 2, 3) * 1.5).requires_grad_()
    neuron = MSF(D=2, decay=0.4, surrogate=Soft("sigmoid", 1.0), reset_mode=reset, detach_reset=detach)
    s, _, _ = sequence(neuron, x)
    assert not torch.equal(s, s.round())  # parts of spikes
    v, rows = torch.zeros(2, 3, dtype=F64), []
    for current in x.detach():  # the equations, with the firing function for the step
        now = 0.4 * v + current
        first = torch.sigmoid(4 * (now - 1))
        count = first + torch.sigmoid(4 * (now - 2))
        v = {"hard": now * (1 - first), "soft": now - count, "none": now}[reset]
        rows.append(count)
    assert_close(s, torch.stack(rows), "adjoint")
    if not detach or reset == "none":
        assert torch.autograd.gradcheck(lambda x: neuron(x)[0], x)


def test_soft_forward_of_pmsn():
    neuron = build(3, dtype=F64, surrogate=Soft("triangle", 1.0))
    x = randn(6, 2, 3).requires_grad_()
    s, _, m = sequence(neuron, x)
    assert_close(s, neuron.surrogate(m - 1), "adjoint")
    gs = randn(6, 2, 3, seed=1)
    hard = build(3, dtype=F64)
    for ours, theirs in zip(
        torch.autograd.grad(s, [x, *neuron.parameters()], gs),
        torch.autograd.grad(hard(x)[0], [x, *hard.parameters()], gs),
        strict=True,
    ):
        assert_close(ours, theirs, "pmsn_adjoint")  # the same derivative, another forward


def test_soft_forward_of_bursts_is_refused():
    with pytest.raises(ValueError, match="burst counts whole thresholds"):
        build(3, surrogate=Soft("sigmoid"), burst=True)(torch.zeros(2, 2, 3))


def test_soft_forward_resets_exactly_where_it_is_a_whole_spike():
    neuron = MSF(D=1, surrogate=Soft("rectangular", width=0.1), v_reset=0.3)
    _, (v,), _ = sequence(neuron, torch.tensor([[1.7, 0.0]]))
    assert v[0].item() == torch.tensor(0.3).item()


@pytest.mark.parametrize("make", [MSF, lambda **kw: build(3, **kw)], ids=["msf", "pmsn"])
def test_soft_forward_at_temperature_0_is_the_step(make):
    x = randn(20, 2, 3, dtype=F32) * 2
    hard, soft = make(), make(surrogate=Soft("sigmoid", 0.0))
    assert_same(soft(x)[0], hard(x)[0])
    soft.surrogate.temperature = 1.0
    assert not torch.equal(soft(x)[0], hard(x)[0])


# ---------------------------------------------------------------- PMSN: resets against the loop and golden numbers


@all_somas
@all_paths
@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.7])
def test_every_soma_equals_the_loop(theta, p, how, soma):
    """Spikes, states and all gradients, those of the final state included, against autograd of the oracle."""
    neuron = with_soma(soma, channels=3, dtype=DTYPES[p], v_threshold=theta)
    wide = copy.deepcopy(neuron).double()
    x = (randn(70, 2, 3, dtype=DTYPES[p]) * 1.5).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    rest = neuron.initial_state(x[0])
    state = (
        (0.5 + 0 * rest[0]).requires_grad_(soma[0] == "cumulative"),
        torch.complex(randn(2, 3, 4, seed=3), randn(2, 3, 4, seed=4)).to(rest[1].dtype).requires_grad_(),
    )
    state64 = tuple(
        t.detach().to(torch.promote_types(t.dtype, F64)).requires_grad_(t.requires_grad) for t in state
    )
    s, (r, z), m = run(how, neuron, x, state)
    s64, (r64, z64), m64 = loop(wide, x64, state64)
    agree = (s.double() == s64).all(0)
    assert agree.float().mean() > (0.99 if p == "f64" else 0.8)
    assert s.unique().numel() > (2 if soma[1] else 1)
    if not agree.all():
        return  # a flipped lane is a threshold off: its proof is in test_pmsn, its gradients are another's
    tolerance = "residual" if p == "f64" or soma[0] != "cumulative" else "pmsn_gradient_long"
    assert_close(m, m64, tolerance)
    gs, up = randn(70, 2, 3, seed=8), torch.complex(randn(2, 3, 4, seed=5), randn(2, 3, 4, seed=6))
    grads = []
    for spikes, last, leaves in (
        (s, (r, z), [x, *neuron.parameters()]),
        (s64, (r64, z64), [x64, *wide.parameters()]),
    ):
        first = state if leaves[0] is x else state64
        loss = (spikes * gs).sum() + (last[1] * up.conj()).real.sum()
        loss = loss + (last[0].double() * gs[0]).sum() if soma[0] == "cumulative" else loss
        grads.append(torch.autograd.grad(loss, leaves + [t for t in first if t.requires_grad]))
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs, "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")


COLUMNS = {"reset": "floor", "noreset": "none", "cumsum": "cumulative"}


@pytest.mark.parametrize("how", ["loop", *PATHS])
@both_dtypes
@pytest.mark.parametrize("form", ["2d", "3d"])
@pytest.mark.parametrize("variant", COLUMNS)
def test_golden_sequential_cifar_by_columns(variant, form, p, how):
    """Unpaired modes, coeff 0.2, three resets."""
    g, dtype = golden("pmsn_seqcifar32"), DTYPES[p]
    lead = (int(g["T"]), int(g["B"]))
    u = tensor(g[f"u_{form}"], dtype)
    shape = (*lead, *u.shape[1:])
    u = u.reshape(shape).requires_grad_()
    last = lambda key: tensor(g[key]).permute(3, 0, 1, 2).reshape(shape)  # noqa: E731
    neuron = from_golden(g, dtype=dtype, coeff=0.2, reset_mode=COLUMNS[variant])
    s, _, m = run(how, neuron, u)
    # no margin of these files is below the rounding of a float32 run
    assert_same(s.double(), tensor(g[f"{form}_{variant}_spk_f64"], F64).reshape(shape))
    assert_close(m, last(f"{form}_{variant}_delta_f64"), "residual")
    grads = torch.autograd.grad(
        s, [u, *(getattr(neuron, n) for n in PARAMETERS)], tensor(g[f"gs_{form}"], dtype).reshape(shape)
    )
    assert_close(grads[0], tensor(g[f"{form}_{variant}_gu_f64"]).reshape(shape), "pmsn_gradient")
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"{form}_{variant}_g_{name}_f64"]), "pmsn_gradient")


@pytest.mark.parametrize("how", ["loop", *PATHS])
@both_dtypes
@pytest.mark.parametrize("steps", [7, 32])
def test_golden_burst(steps, p, how):
    """Counts without an upper limit, with the published sawtooth as their slope."""
    g, dtype = golden("pmsn_burst"), DTYPES[p]
    first = lambda key, dtype=F64: tensor(g[f"{key}"], dtype).permute(2, 0, 1).contiguous()  # noqa: E731
    neuron = from_golden(g, dtype=dtype, burst="published")
    u = first(f"u_L{steps}", dtype).requires_grad_()
    s, _, m = run(how, neuron, u)
    assert s.max() >= 3
    assert_same(s.double(), first(f"L{steps}_spk_f64"))
    assert_close(m, first(f"L{steps}_delta_f64"), "residual")
    leaves = [u, *(getattr(neuron, n) for n in PARAMETERS)]
    grads = torch.autograd.grad(s, leaves, first(f"gs_L{steps}", dtype))
    assert_close(grads[0], first(f"L{steps}_gu_f64"), "pmsn_gradient")
    for name, grad in zip(PARAMETERS, grads[1:], strict=True):
        assert_close(grad, tensor(g[f"L{steps}_g_{name}_f64"]), "pmsn_gradient")


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
    s, _, m = parallel_reset(y, None, volts, burst="sawtooth", membrane=True, backend=backend)
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
        s, r, _ = parallel_reset(y, None, theta, burst="nearest", backend=backend)
        c = torch.cumsum(torch.relu(y), 0)
        assert_same(torch.cumsum(s, 0), torch.floor(c / theta))
        assert_same(r, c[-1] / theta % 1)


@all_backends
def test_burst_slope_is_continuous_by_default(backend):
    """Distance to the nearest threshold: 0 at 0, 1 at every threshold, 1/2 between them."""
    y = torch.linspace(0.0, 4.0, 401, dtype=F64).unsqueeze(0).requires_grad_()
    s, _, _ = parallel_reset(y, burst="nearest", backend=backend)
    (slope,) = torch.autograd.grad(s.sum(), y)
    assert s[0, ::100].tolist() == [0, 1, 2, 3, 4]
    assert slope[0, 100::100].tolist() == pytest.approx([1, 1, 1, 1])
    assert slope[0, 150::100].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert slope.diff(dim=1).abs()[:, 1:].max() < 0.0101
    s, _, _ = parallel_reset(y, burst="sawtooth", backend=backend)
    (slope,) = torch.autograd.grad(s.sum(), y)
    assert slope.diff(dim=1).abs()[:, 1:].max() > 0.9  # the published one jumps


@all_backends
def test_no_reset_fires_at_ties(backend):
    y = torch.tensor([[0.5], [0.25], [0.25], [-1.0], [1.5]])
    s, r, m = parallel_reset(y, None, 0.5, reset_mode="none", membrane=True, backend=backend)
    assert s.flatten().tolist() == [1, 0, 0, 0, 1]
    assert r.item() == 0.0
    assert_same(m, y)
    s, r, m = parallel_reset(y, None, 0.5, reset_mode="cumulative", membrane=True, backend=backend)
    assert s.flatten().tolist() == [1, 1, 1, 0, 1]
    assert m.flatten().tolist() == [0.5, 0.75, 1.0, 0.0, 1.5]
    assert r.item() == 3.0  # in units of the threshold


@all_backends
def test_serial_reset_keeps_negative_membranes(backend):
    y = torch.tensor([[-0.75], [0.5], [1.5], [2.0], [-0.5]])
    s, r, m = parallel_reset(y, reset_mode="serial", membrane=True, backend=backend)
    assert m.flatten().tolist() == [-0.75, -0.25, 1.25, 2.25, -0.25]
    assert s.flatten().tolist() == [0, 0, 1, 1, 0]
    assert r.item() == -0.25


def test_serial_with_positive_drives_is_the_published_reset():
    y = randn(300, 20).abs()
    for burst in ("", "nearest"):
        a, b = (parallel_reset(y, reset_mode=mode, burst=burst) for mode in ("floor", "serial"))
        assert_flips_proved(b[0], y, a[0], y)


# ---------------------------------------------------------------- PMSN: fixed point


@all_backends
@both_dtypes
@examples(25)
@given(data=st.data())
def test_fixed_point_gives_every_chunking_the_same_bits(backend, p, data):
    steps = data.draw(st.integers(1, 80))
    neuron = build(3, dtype=DTYPES[p], residual="fixed", v_threshold=data.draw(st.sampled_from([1.0, 0.3])))
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
    s, r, _ = parallel_reset(q, fixed=True, backend=backend)
    c = torch.cumsum(torch.round(q.double() * 2**24).long(), 0)
    assert_same(torch.cumsum(s.long(), 0), c >> 24)
    assert_same(r.double() * 2**24, (c[-1] % 2**24).double())


@all_backends
def test_fixed_point_at_the_edges(backend):
    y = torch.tensor([[3e38, 0.5, math.nan, 1e12], [0.5, 0.5, 1.0, 0.5]])
    s, r, _ = parallel_reset(y, fixed=True, backend=backend)
    assert s.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0]]
    assert r[:2].tolist() == [0.5, 0.0]
    assert r[2].isnan()
    assert r[3] == 0.5


# ---------------------------------------------------------------- PMSN: scale, rate, pairs, context


@both_dtypes
def test_coeff_scales_the_drive_and_is_a_higher_threshold(p):
    """coeff c with threshold 1 spikes as threshold 1/c; for powers of two to the bit."""
    x = randn(90, 2, 3, dtype=DTYPES[p])
    scaled, raised = build(3, dtype=DTYPES[p], coeff=0.25), build(3, dtype=DTYPES[p], v_threshold=4.0)
    (s, (r, z), m), (s_, (r_, z_), m_) = sequence(scaled, x), sequence(raised, x)
    assert_same(s, s_)
    assert_same(r, r_)
    assert_same(z, z_)
    assert_same(4 * m, m_)


def test_dt_scale_keeps_the_time_constants():
    """Every sample held for k steps of 1/k: the hidden states at the ends agree, whatever k."""
    neuron = build(3, dtype=F64)
    x = randn(30, 2, 3)
    _, (_, z), _ = sequence(neuron, x)
    a, w, _ = neuron.weights(F64)
    coarse = (w * z).sum(-1).real
    for k in (2, 5):
        fine = copy.deepcopy(neuron)
        fine.dt_scale = 1 / k
        a_k, w_k, _ = fine.weights(F64)
        assert_close(a_k**k, a, "drive")
        _, (_, z_k), _ = sequence(fine, x.repeat_interleave(k, 0))
        assert_close((w_k * z_k).sum(-1).real, coarse, "drive")


def test_dt_scale_changed_after_construction_takes_effect():
    neuron, x = build(3), randn(40, 2, 3, dtype=F32)
    before = neuron(x)[0]
    neuron.dt_scale = 0.1
    assert not torch.equal(neuron(x)[0], before)
    neuron.coeff = 0.01
    assert neuron(x)[0].sum() < before.sum()


@all_paths
@both_dtypes
@pytest.mark.parametrize("compartments", [3, 5, 9])
def test_tied_modes_are_the_pairs(compartments, p, how):
    neuron = PMSN(3, compartments).to(DTYPES[p])
    with torch.no_grad():
        neuron.log_dt.copy_(torch.tensor([-3.0, -2.0, -1.0]))
    tied = neuron.tie()
    assert tied.modes * 2 == neuron.modes
    assert sum(q.numel() for q in tied.parameters()) == 3 * (2 + 6 * tied.modes)
    x = (2 * randn(80, 2, 3, dtype=DTYPES[p])).requires_grad_()
    gs = randn(80, 2, 3, seed=1, dtype=DTYPES[p])
    (s, _, m), (s_, _, m_) = run(how, neuron, x), run(how, tied, x)
    assert_same(s_, s)
    assert_close(m_, m, "residual")
    whole = torch.autograd.grad(s, [x, *(getattr(neuron, n) for n in PARAMETERS)], gs)
    half = torch.autograd.grad(s_, [x, *(getattr(tied, n) for n in PARAMETERS)], gs)
    order = neuron.A_imag.argsort(1)
    for name, ours, theirs in zip(["x", *PARAMETERS], half, whole, strict=True):
        if name != "x" and name not in PER_CHANNEL:
            theirs = 2 * theirs.gather(1, order)[:, tied.modes :]  # both of a pair move as one
        assert_close(ours, theirs, "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")


def test_tied_neurons_start_as_published_and_refuse_what_does_not_pair():
    torch.manual_seed(0)
    tied = PMSN(4, tied=True)
    torch.manual_seed(0)
    assert_same(tied.A_imag, PMSN(4).tie().A_imag)
    with pytest.raises(ValueError, match="odd number of compartments"):
        PMSN(4, compartments=4, tied=True)
    with pytest.raises(ValueError, match="tied already"):
        tied.tie()
    loose = build(3)
    with pytest.raises(ValueError, match="not conjugate pairs"):
        loose.tie()
    neuron = PMSN(3)
    with torch.no_grad():
        neuron.CV_imag[0, 0] *= 1 + 1e-4
    with pytest.raises(ValueError, match="CV_imag is off"):
        neuron.tie()
    assert neuron.tie(1e-3).tied


@all_backends
@both_dtypes
@pytest.mark.parametrize(
    "surrogate", [None, Custom(lambda u: (1 - u.abs()).clamp(min=0))], ids=["op", "loop"]
)
def test_global_context(surrogate, p, backend):
    """The mean over time drives the hidden compartments, the present input the soma (our reading)."""
    neuron = build(3, dtype=DTYPES[p], context="global", surrogate=surrogate)
    if surrogate is None:
        neuron.backend = backend
    x = randn(40, 2, 3, 2, dtype=DTYPES[p]).requires_grad_()
    s, state, m = sequence(neuron, x)
    assert not any(part.any() for part in state)
    a, w, d = neuron.weights(DTYPES[p])
    a, w = a.unsqueeze(1), w.unsqueeze(1)
    z, rows = 0, []
    for current in x:
        z = a * z + x.mean(0).unsqueeze(-1)
        y = (w * z).sum(-1).real + d.unsqueeze(-1) * current
        rows.append(y)
    y = torch.stack(rows)
    gs = randn(40, 2, 3, 2, seed=2, dtype=DTYPES[p])
    s_, _, m_ = parallel_reset(y, membrane=True)
    assert_flips_proved(s, y, s_, y)
    if torch.equal(s, s_):
        assert_close(m, m_, "residual")
        leaves = [x, *neuron.parameters()]
        for ours, theirs in zip(
            torch.autograd.grad(s, leaves, gs, retain_graph=True),
            torch.autograd.grad(s_, leaves, gs),
            strict=True,
        ):
            assert_close(ours, theirs, "pmsn_gradient_long" if p == "f32" else "pmsn_adjoint")
    changed = x.detach().clone()
    changed[-1] += 5
    assert not torch.equal(sequence(neuron, changed)[2][0], m[0])  # not causal


def test_global_context_refuses_steps_and_carried_states():
    neuron, x = build(3, context="global"), randn(5, 2, 3, dtype=F32)
    with pytest.raises(ValueError, match="no single step"):
        neuron.step(x[0], neuron.initial_state(x[0]))
    neuron(x, neuron(x)[1])
    with pytest.raises(ValueError, match="cannot be carried"):
        neuron(x, build(3)(x)[1])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reset_mode": "hard"}, "unknown reset_mode 'hard'; known: 'floor', 'serial', 'none', 'cumulative'"),
        ({"burst": "sawtooth"}, "unknown burst"),
        ({"burst": True, "reset_mode": "none"}, "removes none"),
        ({"residual": "fixed", "reset_mode": "serial"}, "belongs to reset_mode='floor'"),
        ({"residual": "double"}, "unknown residual"),
        ({"context": "all"}, "unknown context"),
        ({"coeff": 0.0}, "coeff must be positive"),
        ({"dt_scale": -1.0}, "dt_scale must be positive"),
        ({"dt_scale": math.nan}, "dt_scale must be a finite number"),
    ],
)
def test_bad_variants(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PMSN(3, **kwargs)
    neuron = PMSN(3)
    for name, value in kwargs.items():
        setattr(neuron, name, value)
    with pytest.raises(ValueError, match=message):
        neuron(torch.zeros(2, 2, 3))


def test_functions_refuse_unknown_words():
    y = torch.zeros(2, 3)
    for kwargs in ({"reset_mode": "hard"}, {"burst": "true"}):
        with pytest.raises(ValueError, match="unknown reset_mode or burst"):
            parallel_reset(y, **kwargs)


def test_reset_modes_have_a_line_each():
    assert all(RESET_MODES.values())
    assert set(RESET_MODES) == {soma[0] for soma in SOMAS}


def test_repr_names_what_is_not_usual():
    assert repr(PMSN(3)) == (
        "PMSN(channels=3, compartments=5, channel_dim=1, v_threshold=1.0, init='sequence', backend='auto')"
    )
    assert "burst=True, coeff=0.2, " in repr(PMSN(3, burst=True, coeff=0.2))


# ---------------------------------------------------------------- the parallel reset and the parallel IF neuron


@all_backends
@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_parallel_if_is_the_serial_integrate_and_fire(theta, p, backend):
    """A loop that integrates, fires, and takes whole thresholds away; slopes elementwise."""
    x = (randn(300, 4, 5, dtype=DTYPES[p])).requires_grad_()
    neuron = ParallelIF(theta, backend=backend)
    s, _, m = sequence(neuron, x)
    v, rows = torch.zeros(4, 5, dtype=F64), []
    for current in x.detach().double():
        v = v + current.clamp(min=0)
        rows.append(v)
        v = v - theta * torch.floor(v / theta)
    v = torch.stack(rows)
    assert_flips_proved(s, x.detach(), (v >= theta).double(), x.detach(), theta)
    agree = (s.double() == (v >= theta)).all(0)
    assert_close(torch.where(agree, m.double(), 0.0), torch.where(agree, v, 0.0), "residual", DTYPES[p])
    gs = randn(300, 4, 5, seed=1, dtype=DTYPES[p])
    (gx,) = torch.autograd.grad(s, x, gs)
    expected = gs * (1 - (m.detach() - theta).abs()).clamp(min=0) * (x > 0)
    assert_close(gx, expected, "adjoint")


@pytest.mark.parametrize(
    "surrogate", [*SURROGATES, Custom(lambda u: (1 - u.abs()).clamp(min=0))], ids=[*SURROGATES, "custom"]
)
@pytest.mark.parametrize("burst", BURSTS)
def test_parallel_if_equals_its_steps(burst, surrogate):
    x = (randn(50, 4, 5) * 2).requires_grad_()
    neuron = ParallelIF(0.5, surrogate, burst)
    (s, (r,), m), (s_, (r_,), m_) = loop(neuron, x), sequence(neuron, x)
    assert_same(s_, s)
    assert_close(r_, r, "residual")
    assert_close(m_, m, "residual")
    for ours, theirs in zip(torch.autograd.grad(s_.sum(), x), torch.autograd.grad(s.sum(), x), strict=True):
        assert_close(ours, theirs, "pmsn_adjoint")


def test_parallel_if_errors():
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        ParallelIF(0.0)
    with pytest.raises(ValueError, match="unknown burst"):
        ParallelIF(burst="sawtooth")


def test_parallel_reset_alone_equals_membranes_of_the_op():
    y = randn(60, 3, 4)
    s, r, m = parallel_reset(y, membrane=True)
    assert_same(m, membranes(y, torch.zeros(3, 4, dtype=F64), 1.0))
    assert_same(s, (m >= 1).double())
    part, r1, _ = parallel_reset(y[:25])
    rest, r2, _ = parallel_reset(y[25:], r1)
    assert_same(torch.cat([part, rest]), s)
    assert_close(r2, r, "residual")
