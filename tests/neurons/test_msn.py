"""MSN: by hand, against the continuous chain, and its special cases LIF, TC-LIF and PMSN."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import DTYPES, Way, both_dtypes, examples, loop, randn, sequence
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN
from msf_pmsn_plugins.neurons.msn import Weights, msn_step
from subjects import MSN_SETTINGS, TRIANGLE, build_msn, kernel_of, one_channel
from tolerances import F32, F64, assert_close, assert_same

PLAIN = [Way(path) for path in ("loop", "sequence", "chunks")]


def label(settings):
    return "-".join(map(str, settings.values()))


BY_HAND = {
    # x = 2, 0, 0; spike, membrane, soma after its reset, hidden compartments before the next input
    ("residual", "subtract"): [
        (1, 3.0, 2.0, [1.625, -2.75]),
        (0, -4.5, -4.5, [-1.0, 2.3125]),
        (1, 2.375, 1.375, [0.296875, 0.03125]),
    ],
    ("membrane", "subtract"): [
        (1, 3.0, 2.0, [1.875, -3.75]),
        (0, -6.5, -6.5, [-1.625, 3.6875]),
        (1, 4.125, 3.125, [1.015625, -1.71875]),
    ],
    ("residual", "floor"): [
        (1, 3.0, 0.0, [0.875, -1.25]),
        (0, -2.5, -2.5, [-0.5, 1.4375]),
        (1, 1.625, 0.625, [0.140625, 0.09375]),
    ],
}


# ---------------------------------------------------------------- by hand


@both_dtypes
@pytest.mark.parametrize(("feedback", "mode"), BY_HAND)
def test_by_hand(feedback, mode, p):
    """Numbers from paper and pencil; all of them are dyadic, so both dtypes are exact."""
    weights = one_channel([[0.5, 0.25], [-0.5, 0.5]], [1.0, 0.5], [0.25, -1.0], 2.0, 0.5, 0.5, DTYPES[p])
    v, h = torch.zeros(1, 1, dtype=DTYPES[p]), torch.zeros(1, 1, 2, dtype=DTYPES[p])
    seen = []
    for x in (2.0, 0.0, 0.0):
        s, v, h, m = msn_step(
            torch.full_like(v, x), v, h, weights, 1.0, TRIANGLE, mode, feedback, reset_feedback=0.5
        )
        seen.append((s.item(), m.item(), v.item(), h.flatten().tolist()))
    assert seen == BY_HAND[feedback, mode]


@pytest.mark.parametrize("mode", ["subtract", "floor"])
def test_ties_fire(mode):
    neuron = MSN.lif(1, decay=1.0, reset_mode=mode)
    s, (v, _), m = sequence(neuron, torch.tensor([1.0, 0.5, 0.5, -3.0, 2.5]).reshape(5, 1, 1))
    assert m.flatten().tolist() == [1.0, 0.5, 1.0, -3.0, -0.5]
    assert s.flatten().tolist() == [1, 0, 1, 0, 0]
    assert v.item() == -0.5


@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.5, 0.3, 0.7])
def test_floor_reset_is_exact(theta, p):
    """The residual is the exact remainder of the membrane, in [0, theta); k counts what was taken."""
    m = torch.cat([randn(500, dtype=DTYPES[p]) * 4, torch.arange(-9, 10, dtype=DTYPES[p]) * theta])
    weights = one_channel([[0.0]], [0.0], [0.0], 0.0, 1.0, 0.0, DTYPES[p])
    h = torch.zeros(1, len(m), 1, dtype=DTYPES[p])
    weights = Weights(*(w.reshape(1, 1, *w.shape[1:]) for w in weights))
    s, v, _, _ = msn_step(m[None], m[None], h, weights, theta, TRIANGLE, "floor")
    unit = Fraction(torch.tensor(theta, dtype=DTYPES[p]).item())
    for volts, spike, left in zip(m.tolist(), s[0].tolist(), v[0].tolist(), strict=True):
        exact = Fraction(volts)
        assert Fraction(left) == (exact % unit if exact >= unit else exact)
        assert spike == (exact >= unit)


def test_a_spike_takes_reset_feedback_for_each_threshold():
    weights = one_channel([[1.0]], [0.0], [0.0], 0.0, 1.0, 0.0)
    for mode, taken in (("subtract", 0.25), ("floor", 0.75)):
        _, _, h, _ = msn_step(
            torch.full((1, 1), 3.5, dtype=F64),
            torch.zeros(1, 1, dtype=F64),
            torch.zeros(1, 1, 1, dtype=F64),
            weights,
            1.0,
            TRIANGLE,
            mode,
            reset_feedback=0.25,
        )
        assert h.item() == -taken


# ---------------------------------------------------------------- the continuous chain, step by step


def integrate(v, dt, rate):
    """The potentials after ``dt`` of ``dv/dt = rate(v)``, by 200 Runge-Kutta steps."""
    step = dt / 200
    for _ in range(200):
        k_1 = rate(v)
        k_2 = rate([a + step / 2 * b for a, b in zip(v, k_1, strict=True)])
        k_3 = rate([a + step / 2 * b for a, b in zip(v, k_2, strict=True)])
        k_4 = rate([a + step * b for a, b in zip(v, k_3, strict=True)])
        slopes = zip(k_1, k_2, k_3, k_4, strict=True)
        v = [a + step / 6 * (p + 2 * q + 2 * r + s) for a, (p, q, r, s) in zip(v, slopes, strict=True)]
    return v


def chain(neuron, inputs):
    """One channel in plain numbers: the compartments one by one, integrated, not exponentiated."""
    values = {name: q.flatten().tolist() for name, q in neuron.named_parameters()}
    dt, tau_soma = math.exp(values["log_dt"][0]), math.exp(values["log_tau_soma"][0])
    up, down, gamma = values["beta_up"], values["beta_down"], values["gamma"]
    hidden = range(neuron.hidden)

    def rate(v, drives):
        leaks = [-v[i] / math.exp(values["log_tau"][i]) for i in hidden]
        below = [up[i - 1] * v[i - 1] if i else 0.0 for i in hidden]
        above = [down[i] * v[i + 1] if i + 1 < len(v) else 0.0 for i in hidden]
        return [sum(terms) for terms in zip(leaks, below, above, drives, strict=True)]

    h, soma, rows = [0.0] * neuron.hidden, 0.0, []
    for x in inputs:
        entered = integrate([0.0] * neuron.hidden, dt, lambda v: rate(v, [g * x for g in gamma[:-1]]))  # noqa: B023
        h = [a + b for a, b in zip(h, entered, strict=True)]
        m = math.exp(-dt / tau_soma) * soma + up[-1] * h[-1] + gamma[-1] * x
        k = int(m >= 1) if neuron.reset_mode == "subtract" else max(math.floor(m), 0)
        soma = m - k
        h[-1] -= neuron.reset_feedback * k
        seen = soma if neuron.feedback == "residual" else m
        drives = [0.0] * (neuron.hidden - 1) + [down[-1] * seen]
        h = integrate(h, dt, lambda v: rate(v, drives))  # noqa: B023
        rows.append((float(k > 0), m))
    return rows, soma, h


@pytest.mark.parametrize("settings", MSN_SETTINGS[::2], ids=label)
@pytest.mark.parametrize("compartments", [2, 3, 5])
def test_the_chain_is_what_its_equations_say(compartments, settings):
    """Against plain numbers: every leak, coupling, gain and the feedback, in every place of the chain."""
    neuron = build_msn(1, compartments, seed=3, dtype=F64, **settings)
    with torch.no_grad():
        neuron.log_dt.fill_(-0.5)
    x = randn(12, 1, 1) * 1.5
    s, (v, h), m = sequence(neuron, x)
    rows, soma, hidden = chain(neuron, x.flatten().tolist())
    assert 0 < s.sum() < 12
    assert s.flatten().tolist() == [spike for spike, _ in rows]
    assert m.flatten().tolist() == pytest.approx([volts for _, volts in rows], abs=1e-8)
    assert v.item() == pytest.approx(soma, abs=1e-8)
    assert h.flatten().tolist() == pytest.approx(hidden, abs=1e-8)


# ---------------------------------------------------------------- one compartment: LIF


@both_dtypes
@pytest.mark.parametrize("way", PLAIN, ids=str)
@pytest.mark.parametrize("decay", [0.25, 0.5, 0.9, 1.0])
def test_one_compartment_is_lif(decay, way, p):
    """Bit for bit MSF with one threshold and a soft reset: spikes, membranes, state, gradient to input and state."""
    dtype = DTYPES[p]
    neuron = MSN.lif(3, decay).to(dtype)
    leak = neuron.weights(dtype).leak
    assert leak.tolist() == pytest.approx([decay] * 3, rel=1e-6)
    reference = MSF(D=1, decay=leak[0].item(), reset_mode="soft", surrogate=TRIANGLE)
    x, v0 = randn(40, 2, 3, dtype=dtype).mul(1.5), randn(2, 3, seed=1, dtype=dtype)
    results = []
    for node, path in ((neuron, way), (reference, loop)):
        xs, v = x.clone().requires_grad_(), v0.clone().requires_grad_()
        state = (v, v.new_zeros(2, 3, 0)) if node is neuron else (v,)
        s, (v1, *_), m = path(node, xs, state)
        results.append((s, v1, m, *torch.autograd.grad((s, m), [xs, v], [torch.ones_like(s), m.detach()])))
    assert results[0][0].sum() > 0
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)
    assert not [q for q in neuron.parameters() if q.requires_grad]


def test_lif_decay_survives_float32():
    """Through log tau and back the factor is a rounding off at most."""
    for decay in (1e-3, 0.1, 0.25, 0.5, 0.875, 0.99, 0.999, 1.0):
        leak = MSN.lif(1, decay).double().weights(F64).leak.item()
        assert abs(leak - decay) <= 3e-7 * decay
    assert MSN.lif(1, 1.0).weights().leak.item() == 1.0


# ---------------------------------------------------------------- two compartments: TC-LIF


def tc_lif(x_seq, beta_1, beta_2, gamma, theta, feedback, detach):
    """Equations 10 to 12 of the paper, or the published code, whose U_S[t-1] in (10) is the one after the reset."""
    dendrite = soma = spike = torch.zeros_like(x_seq[0])
    rows = []
    for x in x_seq:
        given = spike.detach() if detach else spike
        seen = soma if feedback == "membrane" else soma - theta * given
        dendrite = dendrite + beta_1 * seen + x - gamma * given
        soma = soma + beta_2 * dendrite - theta * given
        spike = TRIANGLE(soma - theta)
        rows.append((spike, soma, dendrite))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def dendrites(neuron, x_seq):
    """The dendrite of each step: the state before it, plus its input."""
    state, rows = neuron.initial_state(x_seq[0]), []
    for x in x_seq:
        rows.append(state[1][..., 0] + x)
        _, state, _ = neuron.step(x, state)
    return torch.stack(rows)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("feedback", ["membrane", "residual"])
@pytest.mark.parametrize(("gamma", "theta"), [(0.5, 1.0), (0.7, 1.5), (0.5, 1.8)])
def test_two_compartments_are_tc_lif(gamma, theta, feedback, detach):
    """Spikes, both compartments, gradients to the input and, by the chain rule, to the published c_1 and c_2."""
    kwargs = {"feedback": feedback, "detach_reset": detach, "v_threshold": theta}
    neuron = MSN.tc_lif(3, gamma=gamma, **kwargs).double()
    c_1, c_2 = (randn(3, seed=seed).requires_grad_() for seed in (1, 2))
    beta_1, beta_2 = -torch.sigmoid(c_1), torch.sigmoid(c_2)
    with torch.no_grad():
        neuron.beta_down.copy_(beta_1[:, None])
        neuron.beta_up.copy_(beta_2[:, None])
    x = randn(60, 4, 3).requires_grad_()
    up = randn(60, 4, 3, seed=3)
    s, _, m = sequence(neuron, x)
    spikes, soma, dendrite = tc_lif(x, beta_1, beta_2, gamma, theta, feedback, detach)
    assert 0.05 < spikes.mean() < 0.6
    assert_same(s, spikes)
    assert_close(m, soma, "drive")
    assert_close(dendrites(neuron, x), dendrite, "drive")
    gx, g_down, g_up = torch.autograd.grad(s, [x, neuron.beta_down, neuron.beta_up], up)
    expected = torch.autograd.grad(spikes, [x, c_1, c_2], up)
    ours = gx, g_down[:, 0] * beta_1 * (1 + beta_1), g_up[:, 0] * beta_2 * (1 - beta_2)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, theirs, "pmsn_adjoint")


def test_the_two_forms_of_tc_lif_differ_by_a_constant():
    """beta_1 (U_S - theta S) - gamma S = beta_1 U_S - (gamma + beta_1 theta) S."""
    x = randn(80, 4, 3)
    code = MSN.tc_lif(3, -0.25, 0.5, gamma=0.5, feedback="residual", v_threshold=1.5).double()
    same = MSN.tc_lif(3, -0.25, 0.5, gamma=0.125, feedback="membrane", v_threshold=1.5).double()
    other = MSN.tc_lif(3, -0.25, 0.5, gamma=0.5, feedback="membrane", v_threshold=1.5).double()
    assert_same(sequence(code, x)[0], sequence(same, x)[0])
    assert_close(sequence(code, x)[2], sequence(same, x)[2], "drive")
    assert (sequence(code, x)[0] != sequence(other, x)[0]).any()


@both_dtypes
@examples(20)
@given(eighths=st.lists(st.integers(-12, 24), min_size=1, max_size=8))
def test_tc_lif_is_exact_on_a_lattice(p, eighths):
    """beta and gamma 1/2, inputs in eighths, 8 steps: bit-equal to rational arithmetic, ties included."""
    x = torch.tensor(eighths, dtype=DTYPES[p]).reshape(-1, 1, 1) / 8
    s, _, m = sequence(MSN.tc_lif(1).to(DTYPES[p]), x)
    half, dendrite, soma, spike = Fraction(1, 2), Fraction(0), Fraction(0), 0
    for t, eighth in enumerate(eighths):
        dendrite = dendrite - half * soma + Fraction(eighth, 8) - half * spike
        soma = soma + half * dendrite - spike
        spike = int(soma >= 1)
        assert (s[t].item(), m[t].item()) == (spike, float(soma))


def test_tc_lif_learns_its_couplings_only():
    for neuron in (MSN.tc_lif(3), MSN.tc_lif()):
        assert {name for name, q in neuron.named_parameters() if q.requires_grad} == {"beta_up", "beta_down"}
    neuron(torch.randn(2, 2, 5))
    assert {name for name, q in neuron.named_parameters() if q.requires_grad} == {"beta_up", "beta_down"}
    assert neuron.detach_reset is False


# ---------------------------------------------------------------- no leak, no feedback: PMSN without its clamp


def as_pmsn(neuron, **kwargs):
    """PMSN in the eigenbasis of the hidden compartments, in double."""
    values, vectors = torch.linalg.eig(neuron.matrix(F64).detach())
    assert (values.real < 0).all()
    b = torch.linalg.solve(vectors, neuron.gamma[:, :-1].to(vectors.dtype))
    c = neuron.beta_up[:, -1:] * vectors[:, -1]
    other = PMSN(neuron.channels, neuron.compartments, v_threshold=neuron.v_threshold, **kwargs).double()
    with torch.no_grad():
        other.log_dt.copy_(neuron.log_dt)
        other.log_A_real.copy_(torch.log(-values.real))
        other.A_imag.copy_(values.imag)
        for name, value in (("VinvB", b), ("CV", c)):
            getattr(other, f"{name}_real").copy_(value.real)
            getattr(other, f"{name}_imag").copy_(value.imag)
        other.D.copy_(neuron.gamma[:, -1])
    return other


@pytest.mark.parametrize("theta", [1.0, 0.7])
@pytest.mark.parametrize("compartments", [2, 3, 5])
def test_without_leak_and_feedback_it_is_pmsn(compartments, theta):
    """Spikes, membranes and, with the floor's straight-through estimate, gradients of PMSN's serial reset."""
    kwargs = {"reset_mode": "floor", "detach_reset": False, "v_threshold": theta}
    neuron = build_msn(3, compartments, dtype=F64, **kwargs)
    with torch.no_grad():
        neuron.log_tau_soma.fill_(math.inf)
        neuron.beta_down[:, -1] = 0
    x = randn(80, 2, 3).requires_grad_()
    other = as_pmsn(neuron, reset_mode="serial")
    (s, (v, _), m), (s_, (r, _), m_) = sequence(neuron, x), sequence(other, x)
    assert 0.05 < s.mean() < 0.9
    assert (m < 0).any()
    assert_same(s, s_)
    assert_close(m, m_, "drive")
    assert_close(v, r * theta, "residual")
    up = randn(*x.shape, seed=9)
    ours = torch.autograd.grad(s, [x, neuron.gamma, neuron.log_dt], up)
    theirs = torch.autograd.grad(s_, [x, other.D, other.log_dt], up)
    assert_close(ours[0], theirs[0], "pmsn_adjoint")
    assert_close(ours[1][:, -1], theirs[1], "pmsn_adjoint")
    assert_close(ours[2], theirs[2], "pmsn_adjoint")


def test_without_leak_and_feedback_it_is_a_plain_loop():
    """The same from the words: drives by PMSN's recurrence, v = r + y, k = max(floor(v/theta), 0)."""
    neuron = build_msn(2, 4, dtype=F64, reset_mode="floor")
    with torch.no_grad():
        neuron.log_tau_soma.fill_(math.inf)
        neuron.beta_down[:, -1] = 0
    x = randn(60, 3, 2)
    e, w, d = as_pmsn(neuron).weights(F64)
    z, r = torch.zeros(3, 2, 3, dtype=torch.complex128), torch.zeros(3, 2, dtype=F64)
    s, _, m = sequence(neuron, x)
    for t in range(60):
        z = z + (e * z + x[t].unsqueeze(-1))
        v = r + (w * z).sum(-1).real + d * x[t]
        r = v - torch.floor(v).clamp(min=0)
        assert_close(m[t], v, "drive")
        assert_same(s[t], (v >= 1).to(F64))


@pytest.mark.parametrize("init", ["sequence", "imagenet"])
@pytest.mark.parametrize("compartments", [2, 4, 5])
def test_the_start_is_that_of_pmsn(compartments, init):
    """The same seed gives the same physical system as PMSN's published start, leak of the soma and feedback absent."""
    neurons = []
    for make in (MSN, PMSN):
        torch.manual_seed(0)
        neurons.append(make(64, compartments, init=init).double())
    neuron, other = neurons
    assert_same(neuron.log_dt, other.log_dt)
    assert_same(neuron.gamma[:, -1], other.D)
    assert_close(
        neuron.matrix(F64).diagonal(dim1=1, dim2=2), torch.full_like(neuron.log_tau, -0.5), "initial_values"
    )
    assert_same(neuron.weights(F64).leak, torch.ones(64, dtype=F64))
    assert_same(neuron.weights(F64).back, torch.zeros(64, compartments - 1, dtype=F64))
    impulse = torch.zeros(40, 1, 64, dtype=F64)
    impulse[0] = 1
    neuron.v_threshold = 1e6  # no spike: the membrane is the running sum of the drives
    weights = other.weights(F64)
    kernel = kernel_of(weights, 40)
    kernel[:, 0] += weights.d
    # PMSN's frequencies were float32 numbers
    assert_close(sequence(neuron, impulse)[2][:, 0].T.float(), torch.cumsum(kernel, 1), "drive")


def test_feedback_is_learned_from_nothing_and_an_absent_leak_is_not_learned():
    neuron = MSN(3)
    assert {name for name, q in neuron.named_parameters() if not q.requires_grad} == {"log_tau_soma"}
    neuron = MSN(3, start={"log_tau_soma": 1.0})
    assert all(q.requires_grad for q in neuron.parameters())
    neuron(5 * randn(30, 4, 3, dtype=F32))[0].sum().backward()
    for name, parameter in neuron.named_parameters():
        assert parameter.grad.any(), name
    assert neuron.beta_down.grad[:, -1].any()
