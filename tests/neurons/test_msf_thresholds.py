"""MSF: thresholds as a list, the byte that is kept for the backward, the learned decay."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import DTYPES, all_backends, assert_matches_step, both_dtypes, examples, fast_ways, randn
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import F32, F64, assert_close, assert_same

# ---------------------------------------------------------------- MSF: thresholds


@fast_ways
@both_dtypes
def test_even_thresholds_as_a_list_are_the_spacing(p, way):
    x = (randn(9, 3, 8, dtype=DTYPES[p]) * 3).requires_grad_()
    for surrogate in (None, "atan"):
        spaced = MSF(D=3, v_threshold=0.5, threshold_step=0.75, surrogate=surrogate)
        listed = MSF(thresholds=[0.5, 1.25, 2.0], surrogate=surrogate)
        assert (listed.D, listed.v_threshold) == (3, 0.5)
        assert listed.surrogate == spaced.surrogate
        (s, v, m), (s_, v_, m_) = way(spaced, x), way(listed, x)
        for ours, theirs in ((s_, s), (v_[0], v[0]), (m_, m)):
            assert_same(ours, theirs)
        for ours, theirs in zip(
            torch.autograd.grad(s_.sum(), x), torch.autograd.grad(s.sum(), x), strict=True
        ):
            assert_same(ours, theirs)


@fast_ways
def test_uneven_thresholds_by_hand(way):
    neuron = MSF(thresholds=[0.5, 1.0, 4.0], decay=0.5)
    s, (v,), m = way(neuron, torch.tensor([0.25, 0.375, 0.875, 4.0, -1.0]).reshape(5, 1))
    assert m.flatten().tolist() == [0.25, 0.5, 0.875, 4.0, -1.0]  # a tie fires; each spike resets
    assert s.flatten().tolist() == [0, 1, 1, 3, 0]
    assert v.item() == -1.0
    assert neuron.surrogate == Surrogate("rectangular", 0.25)  # half the smallest gap


@fast_ways
@examples(30)
@given(data=st.data())
def test_any_thresholds_equal_the_loop(way, data):
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
    assert_matches_step(neuron, x, way=way)


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


@fast_ways
@both_dtypes
@pytest.mark.parametrize("start", [0.25, [0.2, 0.5, 0.9]], ids=["scalar", "per-channel"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_learned_decay(reset, start, p, way):
    dtype = DTYPES[p]
    x = (randn(9, 2, 3, 4, dtype=dtype) * 2).requires_grad_()
    decay = torch.tensor(start, dtype=F64)
    neuron = MSF(D=3, decay=decay, learn_decay=True, reset_mode=reset, surrogate="atan").to(dtype)
    assert_close(neuron.decay, decay.to(dtype), "slope")
    s_, _, _ = assert_matches_step(neuron, x, way=way)
    (g,) = torch.autograd.grad(neuron(x)[0].sum(), neuron.decay_logit)
    assert g.abs().min() > 0
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
        MSF(decay=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\]"):
        MSF(decay=torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"a decay for each of 3 channels.*has 5"):
        MSF(decay=torch.full((3,), 0.5), learn_decay=True)(torch.zeros(2, 4, 5))
