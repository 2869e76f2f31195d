"""MSF: ties, numbers that are none, empty inputs, half precision, views."""

import math
from dataclasses import replace

import pytest
import torch

from helpers import DTYPES, LOOP, all_ways, both_dtypes, fast_ways, randn, sequence
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.resets import RESETS
from msf_pmsn_plugins.surrogate import SURROGATES, Custom
from tolerances import F32, assert_close, assert_same

# ---------------------------------------------------------------- ties and edges, section 5


@all_ways
@both_dtypes
def test_tie_table(p, way):
    x = torch.tensor([[0.5, 1.0, 1.5, 2.0, 2.5, 4.5, 5.0]], dtype=DTYPES[p], requires_grad=True)
    s, _, _ = way(MSF(D=4), x)
    assert s.tolist() == [[0, 1, 1, 2, 2, 4, 4]]
    s.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0, 1, 0, 0, 0]]


@all_ways
def test_nan_stays_in_its_lane_until_the_end(way):
    x = (randn(8, 3, dtype=F32) * 2).requires_grad_()
    clean, (v_clean,), _ = way(MSF(), x)
    dirty = x.detach().clone()
    dirty[3, 1] = math.nan
    dirty.requires_grad_()
    s, (v,), m = way(MSF(), dirty)
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


@fast_ways
@both_dtypes
@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize(
    "reset", [{}, {"detach_reset": False}, {"reset_delay": True}], ids=lambda kw: "".join(kw)
)
@pytest.mark.parametrize("mode", RESETS)
@pytest.mark.parametrize("name", [*SURROGATES, "callable"])
def test_gradients_beside_nan_are_those_of_the_loop(name, mode, reset, D, p, way):
    """That of a lane lost to NaN goes back to its last hard reset, and no further."""
    surrogate = Custom(lambda u: 1 / (1 + u * u)) if name == "callable" else name
    neuron = MSF(D=D, reset_mode=mode, surrogate=surrogate, **reset)
    x = (2 * randn(9, 40, dtype=DTYPES[p])).requires_grad_()
    with torch.no_grad():
        x[3, 1] = x[8, 2] = x[0, 3] = x[8, 5:] = math.nan
    made, meant = (torch.autograd.grad(run(neuron, x)[0].sum(), x)[0] for run in (way, LOOP))
    assert torch.equal(made.isnan(), meant.isnan())
    assert_close(made.nan_to_num(), meant.nan_to_num(), "adjoint")
    assert meant[:, 0].isfinite().all()
    if mode == "hard" and not reset and name in ("atan", "callable"):
        assert meant[8].isnan().any()
        assert meant[:8].isfinite().all(0)[5:].any()


@all_ways
def test_plus_infinity_saturates_and_resets(way):
    x = torch.tensor([[math.inf], [0.25], [1.5]], requires_grad=True)
    s, _, m = way(MSF(D=4), x)
    assert s.flatten().tolist() == [4, 0, 1]
    assert m.flatten().tolist() == [math.inf, 0.25, 0.25 * 0.25 + 1.5]  # a select, not inf*0
    s.sum().backward()
    assert x.grad.flatten().tolist() == [0.0, 0.25, 1.0]


@all_ways
@pytest.mark.parametrize("name", SURROGATES)
def test_minus_infinity_is_silent_for_ever(name, way):
    x = torch.tensor([[-math.inf, 0.0], [2.0, 2.0], [9.0, 9.0]], requires_grad=True)
    s, (v,), m = way(MSF(surrogate=name), x)
    assert s.tolist() == [[0, 0], [0, 2], [0, 4]]
    assert m[:, 0].tolist() == [-math.inf] * 3
    assert v.tolist() == [-math.inf, 0.0]
    s.sum().backward()
    assert x.grad[:, 0].tolist() == [0.0] * 3


@all_ways
def test_negative_membrane_is_kept(way):
    x = torch.tensor([[-8.0], [0.0], [0.0], [1.0]])
    s, _, m = way(MSF(), x)
    assert m.flatten().tolist() == [-8.0, -2.0, -0.5, 0.875]
    assert not s.any()


@all_ways
@both_dtypes
def test_empty_sequence_leaves_the_state(p, way):
    x = torch.empty(0, 2, 3, dtype=DTYPES[p], requires_grad=True)
    v0 = randn(2, 3, dtype=DTYPES[p]).requires_grad_()
    neuron = MSF()
    s, (v,), m = replace(way, path="loop" if way == LOOP else "sequence")(neuron, x, (v0,))
    assert s.shape == m.shape == x.shape
    assert s.dtype == m.dtype == x.dtype
    assert_same(v, v0)
    (gv,) = torch.autograd.grad(v.sum(), v0)
    assert_same(gv, torch.ones_like(v0))
    s, (v,), _ = sequence(neuron, x)
    assert_same(v, torch.zeros(2, 3, dtype=DTYPES[p]))


@all_ways
def test_empty_batch(way):
    x = torch.empty(5, 0, 3, requires_grad=True)
    s, (v,), m = way(MSF(), x)
    assert s.shape == m.shape == (5, 0, 3)
    assert v.shape == (0, 3)
    s.sum().backward()
    assert x.grad.shape == (5, 0, 3)


@all_ways
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_input_keeps_a_float32_state(half, way):
    """Multiples of 1/32 are exact in both halves here; a half-precision membrane would lose bits and flip counts."""
    integers = torch.randint(-96, 97, (8, 400), generator=torch.Generator().manual_seed(0))
    x = (integers / 32).to(half).requires_grad_()
    full = x.detach().float().requires_grad_()
    s, (v,), m = way(MSF(surrogate="atan"), x)
    s32, (v32,), m32 = way(MSF(surrogate="atan"), full)
    assert (s.dtype, v.dtype, m.dtype) == (half, F32, F32)
    assert_same(s.float(), s32)
    assert_same(v, v32)
    assert_same(m, m32)
    assert not torch.equal(m.to(half).float(), m)  # half would not have held it
    (g,), (g32,) = torch.autograd.grad(s.sum(), x), torch.autograd.grad(s32.sum(), full)
    assert g.dtype == half
    assert_same(g, g32.to(half))


@all_ways
@pytest.mark.parametrize("view", ["transposed", "expanded", "strided"])
def test_views_equal_their_contiguous_copy(view, way):
    base = randn(6, 4, 5, dtype=F32) * 2
    x = {
        "transposed": base.permute(0, 2, 1),
        "expanded": base[:, :1].expand(6, 7, 5),
        "strided": base[::2, :, ::2],
    }[view]
    leaf = x.detach().requires_grad_()
    copy = x.contiguous().requires_grad_()
    up = randn(*x.shape, seed=3, dtype=F32)
    out, ref = way(MSF(), leaf), way(MSF(), copy)
    for a, b in ((out[0], ref[0]), (out[1][0], ref[1][0]), (out[2], ref[2])):
        assert_same(a, b)
    assert_same(*(torch.autograd.grad(o[0], i, up)[0] for o, i in ((out, leaf), (ref, copy))))
