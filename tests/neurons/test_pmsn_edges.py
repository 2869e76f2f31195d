"""PMSN: numbers that are none, empty inputs, half precision, views, states at rest."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from helpers import (
    DTYPES,
    LOOP,
    ON_CPU,
    all_backends,
    all_ways,
    both_dtypes,
    fast_ways,
    loop,
    randn,
    sequence,
)
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn import pmsn
from msf_pmsn_plugins.tensors import PMSNWeights
from subjects import CUSTOM, Learned, at_rest, build_pmsn
from tolerances import F32, assert_close, assert_same

# ---------------------------------------------------------------- not finite, empty, half, views


@all_ways
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_input_silences_its_own_lane_from_then_on(bad, way):
    neuron = build_pmsn(3)
    x = (randn(70, 2, 3, dtype=F32) * 2).requires_grad_()
    clean, (r_clean, z_clean), m_clean = way(neuron, x)
    dirty = x.detach().clone()
    dirty[33, 1, 2] = bad
    dirty.requires_grad_()
    s, (r, z), m = way(neuron, dirty)
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


@fast_ways
def test_a_bad_input_spares_the_parameters_of_the_sequence(way):
    """The loop gives NaN gradients to the lane's channel (0 times NaN); the op leaves the lane out from there on."""
    neuron, x = build_pmsn(3), randn(40, 2, 3, dtype=F32) * 2
    x[33, 1, 2] = math.nan
    s, _, _ = way(neuron, x)
    grads = torch.autograd.grad(s.sum(), list(neuron.parameters()))
    assert all(g.isfinite().all() for g in grads)
    s, _, _ = loop(neuron, x)
    for ours, theirs in zip(grads, torch.autograd.grad(s.sum(), list(neuron.parameters())), strict=True):
        assert_close(ours[:2], theirs[:2], "pmsn_adjoint")  # the other channels agree


@all_ways
@both_dtypes
def test_empty_sequence_leaves_the_state(p, way):
    neuron = build_pmsn(3, dtype=DTYPES[p])
    x = torch.empty(0, 2, 3, dtype=DTYPES[p], requires_grad=True)
    r0 = torch.full((2, 3), 0.5, dtype=DTYPES[p])
    z0 = torch.complex(randn(2, 3, 4), randn(2, 3, 4, seed=1)).to(DTYPES[p].to_complex()).requires_grad_()
    s, (r, z), m = replace(way, path="loop" if way == LOOP else "sequence")(neuron, x, (r0, z0))
    assert s.shape == m.shape == x.shape
    assert s.dtype == m.dtype == x.dtype
    assert_same(r, r0)
    assert_same(z, z0)
    (g,) = torch.autograd.grad(torch.view_as_real(z).sum(), z0)
    assert_same(g, torch.complex(torch.ones_like(z0.real), torch.ones_like(z0.real)))


@all_ways
def test_empty_batch(way):
    neuron = build_pmsn(3)
    x = torch.empty(40, 0, 3, 2, requires_grad=True)
    s, (r, z), m = way(neuron, x)
    assert s.shape == m.shape == x.shape
    assert r.shape == (0, 3, 2)
    assert z.shape == (0, 3, 2, 4)
    grads = torch.autograd.grad(s.sum(), [x, *neuron.parameters()], allow_unused=way == LOOP)
    assert not any(g is not None and g.any() for g in grads)


@all_ways
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_input_keeps_a_float32_state(half, way):
    neuron = build_pmsn(3)
    x = (
        (torch.randint(-96, 97, (60, 4, 3), generator=torch.Generator().manual_seed(0)) / 32)
        .to(half)
        .requires_grad_()
    )
    full = x.detach().float().requires_grad_()
    s, (r, z), m = way(neuron, x)
    s32, (r32, z32), m32 = way(neuron, full)
    assert (s.dtype, r.dtype, z.dtype, m.dtype) == (half, F32, torch.complex64, F32)
    assert_same(s.float(), s32)
    for a, b in ((r, r32), (z, z32), (m, m32)):
        assert_same(a, b)
    (g,), (g32,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s32.sum(), full)
    assert g.dtype == half
    assert_same(g, g32.to(half))


def test_half_parameters_compute_in_float32():
    neuron = build_pmsn(3).to(torch.bfloat16)
    s, (r, z), _ = sequence(neuron, randn(40, 2, 3).to(torch.bfloat16))
    assert (s.dtype, r.dtype, z.dtype) == (torch.bfloat16, F32, torch.complex64)
    wide = copy.deepcopy(neuron).float()
    assert_same(s.float(), sequence(wide, randn(40, 2, 3).to(torch.bfloat16).float())[0])


@all_ways
@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view, way):
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
    neuron = build_pmsn(3)
    leaf, copied = x.detach().requires_grad_(), x.contiguous().requires_grad_()
    up = randn(*x.shape, seed=3, dtype=F32)
    out, ref = way(neuron, leaf), way(neuron, copied)
    assert_same(out[0], ref[0])
    assert_close(out[2], ref[2], "drive")
    gradients = [
        torch.autograd.grad(o[0], [i, *neuron.parameters()], up) for o, i in ((out, leaf), (ref, copied))
    ]
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, "pmsn_adjoint")


# ---------------------------------------------------------------- rounding and NaN between chunks


def test_a_residual_just_below_the_threshold_does_not_round_up_to_it():
    """Stored as 1.0 it would count as reset, and the spike it owes would be lost."""
    x = torch.tensor([1 - 2.0**-24, 2.0**-25, 0.5, 0.0]).reshape(4, 1, 1, 1)
    none = torch.zeros(1, 1, dtype=torch.complex64)
    weights = PMSNWeights(none - 1, none, torch.ones(1))
    whole = pmsn(x, at_rest(x[0], 1), weights)[0]
    first, _, _, state = pmsn(x[:2], at_rest(x[0], 1), weights)
    assert state.r.item() < 1
    second = pmsn(x[2:], state, weights)[0]
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
    neuron = build_pmsn(3, compartments, backend=backend)
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
    for surrogate in (None, CUSTOM, Learned()):
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
