"""MSF: by hand, and the identities of its specification."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from helpers import DTYPES, all_ways, both_dtypes, chunks, examples, randn, sequence
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.surrogate import SURROGATES, Surrogate
from tolerances import F32, F64, assert_close, assert_same


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


# ---------------------------------------------------------------- by hand


@all_ways
@both_dtypes
def test_by_hand(p, way):
    x = torch.tensor([0.5, 1.0, 3.0, -1.0, 1.0, 6.0, 0.875], dtype=DTYPES[p]).unsqueeze(1).requires_grad_()
    s, (v,), m = way(MSF(D=4), x)
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


@all_ways
def test_by_hand_soft_reset_and_none(way):
    x = torch.tensor([2.5, 0.5, 0.5]).unsqueeze(1)
    s, (v,), m = way(MSF(D=2, decay=0.5, reset_mode="soft"), x)
    assert m.flatten().tolist() == [2.5, 0.75, 0.875]  # 2.5 - 2*1 = 0.5 is kept
    assert (s.flatten().tolist(), v.tolist()) == ([2, 0, 0], [0.875])
    s, (v,), m = way(MSF(D=2, decay=0.5, reset_mode="none"), x)
    assert m.flatten().tolist() == [2.5, 1.75, 1.375]
    assert (s.flatten().tolist(), v.tolist()) == ([2, 1, 1], [1.375])


@all_ways
def test_by_hand_hard_reset_to_a_potential(way):
    x = torch.tensor([1.75, 1.0, 0.0]).unsqueeze(1)
    s, (v,), m = way(MSF(D=2, decay=0.5, v_reset=-0.5, input_scale=0.5), x)
    # from -0.5: m = -0.5 + 0.5*(v + 0.5) + 0.5*x
    assert m.flatten().tolist() == [0.375, 0.4375, -0.5 + 0.5 * 0.9375]
    assert s.sum() == 0
    s, (v,), m = way(MSF(D=2, decay=0.5, v_reset=-0.5), x)
    assert m.flatten().tolist() == [1.25, 0.5, 0.0]  # 1.25 fires, then -0.5 + 0 + 1
    assert (s.flatten().tolist(), v.tolist()) == ([1, 0, 0], [0.0])


# ---------------------------------------------------------------- identities of the specification, section 6


@all_ways
@examples(25)
@given(x=lattice((1, 40)), v1=st.sampled_from([0.5, 1.0]), count=st.integers(1, 9))
def test_one_step_or_no_decay_is_a_quantizer(way, x, v1, count):
    expected = np.clip(np.floor(x - v1 + 1), 0, count)
    s, _, _ = way(MSF(D=count, v_threshold=v1), torch.from_numpy(x).float())
    assert_same(s, torch.from_numpy(expected).float())
    column = torch.from_numpy(x).float().reshape(-1, 1)  # as 40 steps without memory
    s, _, _ = way(MSF(D=count, v_threshold=v1, decay=0.0), column)
    assert_same(s, torch.from_numpy(expected).float().reshape(-1, 1))


@all_ways
def test_quantized_relu(way):
    x = randn(2, 300) * 3
    neuron = MSF(D=16, decay=0.0, v_threshold=0.5)
    x.requires_grad_()
    s, _, _ = way(neuron, x)
    assert_same(s, torch.floor(torch.relu(x) + 0.5))
    assert ((s - torch.relu(x)).abs() <= 0.5).all()
    (gx,) = torch.autograd.grad(s.sum(), x)
    assert_same(gx, (x > 0).to(F64))
    errors = []
    for q in (1.0, 0.5, 0.25):  # q*MSF(x/q) tends to ReLU
        s, _, _ = way(MSF(D=64, decay=0.0, v_threshold=0.5), x.detach() / q)
        errors.append((q * s - torch.relu(x)).abs().max().item())
        assert errors[-1] <= q / 2
    assert errors[0] > errors[1] > errors[2]


@all_ways
@both_dtypes
@pytest.mark.parametrize("v1", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("decay", [0.25, 0.9])
def test_same_fire_mask_and_nesting_for_every_count(v1, decay, p, way):
    x = randn(24, 50, dtype=DTYPES[p]) * 3
    largest, _, m_lif = way(MSF(D=8, v_threshold=v1, decay=decay), x)
    assert largest.max() == 8
    for count in range(1, 8):
        s, _, m = way(MSF(D=count, v_threshold=v1, decay=decay), x)
        assert_same(s, largest.clamp(max=count))
        assert_same(m, m_lif)
        assert_same((s > 0), (largest > 0))


@all_ways
@pytest.mark.parametrize("h", [1.0, 0.5])
@pytest.mark.parametrize("name", SURROGATES)
def test_additive_slope(name, h, way):
    """One step: the slope of D thresholds is the sum of D shifted slopes of one."""
    x = (randn(1, 200) * 3).requires_grad_()
    surrogate = Surrogate(name)
    s, _, _ = way(MSF(D=5, surrogate=surrogate, threshold_step=h), x)
    (gx,) = torch.autograd.grad(s.sum(), x)
    one = MSF(D=1, surrogate=surrogate)
    total = torch.zeros_like(x)
    for d in range(5):
        shifted = (x - d * h).detach().requires_grad_()
        total += torch.autograd.grad(way(one, shifted)[0].sum(), shifted)[0]
    assert_close(gx, total, "adjoint")


@all_ways
@pytest.mark.parametrize("name", ["rectangular", "atan"])
def test_causality_of_outputs_and_gradients(name, way):
    x = (randn(12, 6) * 1.5).requires_grad_()
    neuron = MSF(surrogate=name)
    s, _, _ = way(neuron, x)
    changed = x.detach().clone()
    changed[7:] = 5 * randn(5, 6, seed=1)
    assert_same(way(neuron, changed)[0][:7], s[:7])
    for t in range(12):
        (gx,) = torch.autograd.grad(s[t].sum(), x, retain_graph=True)
        assert not gx[t + 1 :].any()
        # a spike before t cuts the way back: steps up to the last spike before t get nothing
        fired = s[:t].detach() > 0
        after = torch.flip(torch.cumsum(torch.flip(fired.int(), [0]), 0), [0]) > 0
        assert not gx[:t][after].any()
        if name == "atan":  # and where nothing fired in between everything arrives
            assert gx[:t][~after].all()


@all_ways
@both_dtypes
def test_equivariance_and_independence_of_lanes(p, way):
    x = (randn(10, 4, 5, 3, dtype=DTYPES[p]) * 2).requires_grad_()
    neuron = MSF(
        surrogate="triangle"
    )  # its slope is the same to the bit in every SIMD lane; an exponential's is not
    s, (v,), m = way(neuron, x)
    (gx,) = torch.autograd.grad(s.sum(), x)
    y = x.detach().permute(0, 3, 1, 2)[:, :, torch.tensor([2, 0, 3, 1])].requires_grad_()
    sp, (vp,), mp = way(neuron, y)
    (gy,) = torch.autograd.grad(sp.sum(), y)
    pick = torch.tensor([2, 0, 3, 1])
    for a, b in ((sp, s), (mp, m), (gy, gx)):
        assert_same(a, b.detach().permute(0, 3, 1, 2)[:, :, pick])
    assert_same(vp, v.detach().permute(2, 0, 1)[:, pick])
    alone, _, _ = way(neuron, x[:, 1:2])
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


@all_ways
def test_statelessness(way):
    neuron, x = MSF(), randn(9, 20, dtype=F32) * 2
    first, (v,), _ = way(neuron, x)
    way(neuron, -x)
    again, (w,), _ = way(neuron, x)
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


@all_ways
@examples(40)
@given(
    x=lattice((8, 6)),
    count=st.integers(1, 9),
    v1=st.sampled_from([0.5, 1.0]),
    h=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_lattice_is_exact_in_float32(way, x, count, v1, h):
    counts, membranes = by_the_book(x, count, v1, h)
    s, _, m = way(MSF(D=count, v_threshold=v1, threshold_step=h), torch.from_numpy(x).float())
    assert_same(s.double(), torch.from_numpy(counts))
    assert_same(m.double(), torch.from_numpy(membranes))


@all_ways
@examples(20)
@given(x=lattice((16, 6), bound=4.0))
def test_lattice_is_exact_in_float32_with_decay_one_half(way, x):
    counts, membranes = by_the_book(x, decay=0.5)
    s, _, m = way(MSF(decay=0.5), torch.from_numpy(x).float())
    assert_same(s.double(), torch.from_numpy(counts))
    assert_same(m.double(), torch.from_numpy(membranes))


@all_ways
def test_thresholds_are_rounded_once_to_the_dtype_of_the_state(way):
    """0.3 + d*0.1 in double, then float32: a membrane equal to that float32 number fires."""
    neuron = MSF(D=8, v_threshold=0.3, threshold_step=0.1, decay=0.0)
    for dtype in (F32, F64):
        theta = torch.tensor([0.3 + d * 0.1 for d in range(8)], dtype=F64).to(dtype)
        below = torch.nextafter(theta, torch.zeros_like(theta))
        s, _, _ = way(neuron, torch.stack([theta, below]))
        assert s.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7]]
