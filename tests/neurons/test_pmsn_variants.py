"""PMSN: factors on drive and step size, tied modes, the global context."""

import copy

import pytest
import torch

from helpers import (
    DTYPES,
    all_backends,
    both_dtypes,
    fast_ways,
    randn,
    sequence,
)
from msf_pmsn_plugins.neurons import PMSN, parallel_reset
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS, PER_CHANNEL
from msf_pmsn_plugins.surrogate import Custom
from subjects import (
    build_pmsn,
)
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

# ---------------------------------------------------------------- PMSN: scale, rate, pairs, context


@both_dtypes
def test_coeff_scales_the_drive_and_is_a_higher_threshold(p):
    """coeff c with threshold 1 spikes as threshold 1/c; for powers of two to the bit."""
    x = randn(90, 2, 3, dtype=DTYPES[p])
    scaled, raised = (
        build_pmsn(3, dtype=DTYPES[p], coeff=0.25),
        build_pmsn(3, dtype=DTYPES[p], v_threshold=4.0),
    )
    (s, (r, z), m), (s_, (r_, z_), m_) = sequence(scaled, x), sequence(raised, x)
    assert_same(s, s_)
    assert_same(r, r_)
    assert_same(z, z_)
    assert_same(4 * m, m_)


def test_dt_scale_keeps_the_time_constants():
    """Every sample held for k steps of 1/k: the hidden states at the ends agree, whatever k."""
    neuron = build_pmsn(3, dtype=F64)
    x = randn(30, 2, 3)
    _, (_, z), _ = sequence(neuron, x)
    e, w, _ = neuron.weights(F64)
    coarse = (w * z).sum(-1).real
    for k in (2, 5):
        fine = copy.deepcopy(neuron)
        fine.dt_scale = 1 / k
        e_k, w_k, _ = fine.weights(F64)
        assert_close((1 + e_k) ** k, 1 + e, "drive")
        _, (_, z_k), _ = sequence(fine, x.repeat_interleave(k, 0))
        assert_close((w_k * z_k).sum(-1).real, coarse, "drive")


def test_dt_scale_changed_after_construction_takes_effect():
    neuron, x = build_pmsn(3), randn(40, 2, 3, dtype=F32)
    before = neuron(x)[0]
    neuron.dt_scale = 0.1
    assert not torch.equal(neuron(x)[0], before)
    neuron.coeff = 0.01
    assert neuron(x)[0].sum() < before.sum()


@fast_ways
@both_dtypes
@pytest.mark.parametrize("compartments", [3, 5, 9])
def test_tied_modes_are_the_pairs(compartments, p, way):
    neuron = PMSN(3, compartments).to(DTYPES[p])
    with torch.no_grad():
        neuron.log_dt.copy_(torch.tensor([-3.0, -2.0, -1.0]))
    tied = neuron.tie()
    assert tied.modes * 2 == neuron.modes
    assert sum(q.numel() for q in tied.parameters()) == 3 * (2 + 6 * tied.modes)
    x = (2 * randn(80, 2, 3, dtype=DTYPES[p])).requires_grad_()
    gs = randn(80, 2, 3, seed=1, dtype=DTYPES[p])
    (s, _, m), (s_, _, m_) = way(neuron, x), way(tied, x)
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
    loose = build_pmsn(3)
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
    neuron = build_pmsn(3, dtype=DTYPES[p], context="global", surrogate=surrogate)
    if surrogate is None:
        neuron.backend = backend
    x = randn(40, 2, 3, 2, dtype=DTYPES[p]).requires_grad_()
    s, state, m = sequence(neuron, x)
    assert not any(part.any() for part in state)
    e, w, d = neuron.weights(DTYPES[p])
    e, w = e.unsqueeze(1), w.unsqueeze(1)
    z, rows = 0, []
    for current in x:
        z = z + (e * z + x.mean(0).unsqueeze(-1))
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
    neuron, x = build_pmsn(3, context="global"), randn(5, 2, 3, dtype=F32)
    with pytest.raises(ValueError, match="no single step"):
        neuron.step(x[0], neuron.initial_state(x[0]))
    neuron(x, neuron(x)[1])
    with pytest.raises(ValueError, match="cannot be carried"):
        neuron(x, build_pmsn(3)(x)[1])
