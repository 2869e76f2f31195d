"""PMSN: by hand, ``sequence`` against a loop of ``step``, and the identities of its specification."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import (
    DTYPES,
    PMSN_FLOATS,
    all_backends,
    assert_matches_step,
    both_dtypes,
    chunks,
    examples,
    fast_ways,
    randn,
    sequence,
)
from msf_pmsn_plugins.neurons.pmsn import pmsn, pmsn_step
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.tensors import PMSNState, PMSNWeights
from subjects import (
    at_rest,
    build_pmsn,
    drive,
    drive_by_loop,
    kernel_of,
    soma,
)
from tolerances import F32, F64, assert_close, assert_flips_proved, assert_same

# ---------------------------------------------------------------- by hand


@all_backends
@both_dtypes
def test_by_hand(p, backend):
    dtype = DTYPES[p]
    x = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0, -8.0], dtype=dtype).reshape(6, 1, 1, 1).requires_grad_()
    e = torch.full((1, 1), -0.5, dtype=dtype.to_complex(), requires_grad=True)  # a = 1/2
    w = torch.ones(1, 1, dtype=dtype.to_complex(), requires_grad=True)
    d = torch.zeros(1, dtype=dtype, requires_grad=True)
    settings = PMSNSettings(keep_membrane=True)
    s, y, m, (r, z) = pmsn(x, at_rest(x[0], 1), PMSNWeights(e, w, d), settings, backend=backend)
    assert y.flatten().tolist() == [1.0, 1.0, 0.5, 2.25, 1.125, -7.4375]
    assert m.flatten().tolist() == [1.0, 1.0, 0.5, 2.75, 1.875, 0.875]
    # ties fire; 2.75 gives one spike and loses two thresholds; a negative drive leaves the residual
    assert s.flatten().tolist() == [1, 1, 0, 1, 1, 0]
    assert r.item() == 0.875
    assert z.item() == -7.4375
    s.sum().backward()
    # slopes max(0, 1 - |v - 1|) where y > 0: 1, 1, 1/2, 0, 1/8, 0; each reaches back with powers of 1/2
    assert x.grad.flatten().tolist() == [1.6328125, 1.265625, 0.53125, 0.0625, 0.125, 0.0]
    assert d.grad.item() == 1 * 1 + 1 * 0.5
    assert w.grad.item() == 1 * 1 + 1 * 1 + 0.5 * 0.5 + 0.125 * 1.125
    # z_t = sum a^k x_{t-k}, dz/da = dz/de: 0, 1, 1.5, 1.25, 2.875 at t = 0..4
    assert e.grad.item() == 1 * 1 + 0.5 * 1.5 + 0.125 * 2.875


def test_step_by_hand():
    state = PMSNState(torch.zeros(1), torch.zeros(1, 1, dtype=torch.complex64))
    weights = PMSNWeights(torch.tensor([[-1 + 0.5j]]), torch.tensor([[2.0 + 0j]]), torch.ones(1))  # a = i/2
    seen = []
    for x in (1.0, 0.0, 0.0):  # z: 1, i/2, -1/4; y = 2 Re z + x
        s, state, v = pmsn_step(torch.tensor([x]), state, weights, PMSNSettings(v_threshold=0.5))
        seen.append((s.item(), state.r.item(), state.z.item(), v.item()))
    # theta = 0.5 V: y = 3 V are six thresholds, one spike; then y = 0 and -0.5 change nothing
    assert seen == [(1.0, 0.0, 1 + 0j, 3.0), (0.0, 0.0, 0.5j, 0.0), (0.0, 0.0, -0.25 + 0j, 0.0)]


# ---------------------------------------------------------------- step and sequence


@fast_ways
@both_dtypes
@pytest.mark.parametrize("compartments", [2, 3, 5, 17])
@pytest.mark.parametrize("steps", [1, 31, 32, 33, 70])
def test_sequence_is_the_loop(steps, compartments, p, way):
    """Spikes too: no membrane of this input lies within rounding of a multiple of the threshold."""
    dtype = DTYPES[p]
    neuron = build_pmsn(3, compartments, dtype=dtype)
    x = randn(steps, 2, 3, 2, dtype=dtype)
    r0 = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)
    z0 = randn(2, 3, 2, neuron.modes, seed=2, dtype=dtype.to_complex()).requires_grad_()
    precision = replace(PMSN_FLOATS, parted=0.0)
    s, (r1, _), _ = assert_matches_step(neuron, x, (r0, z0), precision, way)
    assert not r1.requires_grad
    assert s.sum() > 0


@examples(25)
@given(steps=st.integers(0, 80), seed=st.integers(0, 99), data=st.data())
def test_chunks_equal_the_whole(steps, seed, data):
    """In float64 to rounding, spikes included unless a membrane ties to 1e-9 (which random inputs do not)."""
    neuron = build_pmsn(2, dtype=F64)
    x = randn(steps, 2, 2, seed=seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=5)))
    sizes = [b - a for a, b in itertools.pairwise([0, *cuts, steps])]
    (s, (r, z), m), (s_, (r_, z_), m_) = sequence(neuron, x), chunks(neuron, x, sizes=sizes)
    assert_same(s_, s)
    for ours, theirs in ((m_, m), (r_, r), (z_, z)):
        assert_close(ours, theirs, "drive")


def test_chunks_in_float32_flip_only_with_a_proof():
    neuron, x = build_pmsn(3), randn(700, 4, 3, dtype=F32)
    s64, y64 = drive(copy.deepcopy(neuron).double(), x.double())
    _, y = drive(neuron, x)
    for sizes in ([700], [350, 350], [1] * 100 + [600], [33] * 21 + [7]):
        s, _, _ = chunks(neuron, x, sizes=sizes)
        assert_flips_proved(s, y + 1e-5, s64, y64)  # 1e-5: twice the drive's own error, for the other cuts


def test_gradient_flows_through_the_hidden_state_across_chunks():
    neuron = build_pmsn(2, dtype=F64)
    x = randn(50, 3, 2).requires_grad_()
    whole = torch.autograd.grad(sequence(neuron, x)[0].sum(), [x, *neuron.parameters()])
    cut = torch.autograd.grad(chunks(neuron, x)[0].sum(), [x, *neuron.parameters()])
    for a, b in zip(cut, whole, strict=True):
        assert_close(a, b, "pmsn_adjoint")


# ---------------------------------------------------------------- identities of the specification, section 8


@all_backends
@both_dtypes
def test_convolution_recurrence_and_op_give_the_same_drive(p, backend):
    neuron = build_pmsn(3, dtype=DTYPES[p])
    x = randn(150, 2, 3, dtype=DTYPES[p])
    _, y = drive(neuron, x, backend)
    weights = copy.deepcopy(neuron).double().weights(F64)
    kernel, d = kernel_of(weights, 150).detach(), weights.d.detach()
    wide = x.double().permute(1, 2, 0)
    fft = torch.fft.irfft(torch.fft.rfft(kernel, 300) * torch.fft.rfft(wide, 300), 300)[..., :150]
    expected = (fft + d.unsqueeze(-1) * wide).permute(2, 0, 1)
    assert_close(y, expected, "drive")
    assert_close(drive_by_loop(neuron, x), expected, "drive")


@all_backends
def test_impulse_gives_the_kernel(backend):
    neuron = build_pmsn(3, dtype=F64)
    x = torch.zeros(100, 1, 3, dtype=F64)
    x[0] = 1
    _, y = drive(neuron, x, backend)
    weights = neuron.weights(F64)
    kernel = kernel_of(weights, 100).T
    kernel[0] += weights.d
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
    s, _, _, r = soma(y, theta, backend, torch.tensor([start], dtype=y.dtype))
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
    s, _, _, _ = soma(y, 1.0, backend)
    assert_same(torch.cumsum(s, 0), torch.floor(torch.cumsum(y, 0)))


@all_backends
@both_dtypes
@pytest.mark.parametrize("k", [0.25, 2.0, 8.0])
def test_scaling_drive_and_threshold_by_a_power_of_two(k, p, backend):
    y = randn(200, 30, dtype=DTYPES[p])
    s, _, _, r = soma(y, 0.7, backend)
    s_, _, _, r_ = soma(k * y, k * 0.7, backend)
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

    weights = PMSNWeights(a - 1, torch.complex(quarter(2, 3), quarter(2, 3)), quarter(2))
    x = quarter(steps, 1, 2, 2)
    settings = PMSNSettings(keep_membrane=True)
    s, _, m, (r1, z1) = pmsn(x, at_rest(x[0], 3), weights, settings, backend=backend)
    e, w, d = (part.unsqueeze(1).to(torch.promote_types(part.dtype, F64)) for part in weights)
    rows, state = [], at_rest(x[0].double(), 3)
    for step in x.double():
        spike, state, v = pmsn_step(step, state, PMSNWeights(e, w, d), settings)
        rows.append((spike, v))
    assert_same(s.double(), torch.stack([row[0] for row in rows]))
    assert_same(m.double(), torch.stack([row[1] for row in rows]))
    assert_same(r1.double(), state.r)
    assert_same(z1.to(torch.complex128), state.z)
