"""Samples of different length: padded steps do nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import DTYPES, all_backends, both_dtypes, examples, loop, randn
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN, ParallelIF
from msf_pmsn_plugins.surrogate import gives_slopes
from subjects import STREAMS, Learned, build_msf
from tolerances import F32, assert_close, assert_same

all_neurons = pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)


def named(neuron, backend):
    """With the backend, where the neuron has a kernel."""
    if gives_slopes(neuron.surrogate):
        neuron.backend = backend
    return neuron


def grad_of(outputs, leaves, seed=5):
    """Gradients of a fixed random functional of all real and complex outputs that have one."""
    total = 0
    for i, out in enumerate(outputs):
        if out is not None and out.requires_grad:
            real = torch.view_as_real(out) if out.is_complex() else out
            total = total + (real * randn(*real.shape, seed=seed + i, dtype=real.dtype)).sum()
    return torch.autograd.grad(total, leaves, allow_unused=True)


# ---------------------------------------------------------------- lengths


@all_neurons
@all_backends
@both_dtypes
def test_lengths_equal_separate_runs(p, backend, make):
    """Sample by sample: outputs, states, membranes; gradients to input and parameters; garbage in the padding."""
    neuron, dtype = named(make().to(DTYPES[p]), backend), DTYPES[p]
    lengths = torch.tensor([40, 0, 7, 33, 7])
    x = randn(40, 5, 3, 2, dtype=dtype) * 1.5
    for n, length in enumerate(lengths):
        x[length:, n] = torch.tensor([float("nan"), float("inf")])
    x.requires_grad_()
    rest = neuron.initial_state(x[0])
    start = tuple((part + 0.25).detach() for part in rest)
    s, state, m = neuron.sequence(x, start, membrane=True, lengths=lengths)
    gs, gm = randn(40, 5, 3, 2, seed=8, dtype=dtype), randn(40, 5, 3, 2, seed=9, dtype=dtype)
    leaves = [x, *neuron.parameters()]

    def loss(s, m, last, rows):
        parts = [part for part in last if part.requires_grad]
        real = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
        return (
            (s * gs[: len(s), rows]).sum()
            + (m * gm[: len(m), rows]).sum()
            + sum((r * r.detach().sin()).sum() for r in real)
        )

    ours = torch.autograd.grad(loss(s, m, state, slice(None)), leaves, allow_unused=True)
    exact = isinstance(neuron, MSF) or isinstance(neuron.surrogate, Learned)  # MSF, or the loop
    expected = [torch.zeros_like(leaf) for leaf in leaves]
    for n, length in enumerate(lengths.tolist()):
        assert not s[length:, n].any()
        assert not m[length:, n].any()
        one = tuple(part[n : n + 1] for part in start)
        s1, state1, m1 = neuron.sequence(x[:length, n : n + 1], one, membrane=True)
        assert_same(s[:length, n : n + 1], s1)
        for part, part1 in zip(state, state1, strict=True):
            (assert_same if exact else assert_close)(part[n : n + 1], part1, *([] if exact else ["residual"]))
        (assert_same if exact else assert_close)(m[:length, n : n + 1], m1, *([] if exact else ["residual"]))
        if length:
            for total, part in zip(
                expected,
                torch.autograd.grad(loss(s1, m1, state1, slice(n, n + 1)), leaves, allow_unused=True),
                strict=True,
            ):
                total += 0 if part is None else part
    assert s.any()
    for g, total in zip(ours, expected, strict=True):
        assert torch.isfinite(g).all()
        assert_close(g, total, "pmsn_gradient" if p == "f32" else "pmsn_adjoint")
    for n, length in enumerate(lengths.tolist()):
        assert not ours[0][length:, n].any()


@all_backends
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("name", CHARGES)
def test_lengths_for_every_charge(name, reset, backend):
    neuron = build_msf(name, D=3, reset_mode=reset, detach_reset=False, surrogate="atan", backend=backend)
    x = (randn(6, 4, 3) * 2).requires_grad_()
    lengths = torch.tensor([6, 3, 0, 1])
    s, (v,), m = neuron.sequence(x, lengths=lengths, membrane=True)
    s_, (v_,), m_ = loop(neuron, x, lengths=lengths)
    for ours, theirs in ((s, s_), (v, v_), (m, m_)):
        assert_same(ours, theirs)
    leaves = [x, *neuron.parameters()]
    for ours, theirs in zip(grad_of((s, v, m), leaves), grad_of((s_, v_, m_), leaves), strict=True):
        assert_close(ours, theirs, "adjoint")


@all_neurons
@all_backends
@examples(15)
@given(data=st.data())
def test_a_mask_skips_steps_anywhere(backend, make, data):
    """A mask with holes equals the sequence without the skipped steps."""
    steps, batch = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    mask = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=batch, max_size=batch), min_size=steps, max_size=steps)
        )
    )
    neuron = named(make().double(), backend)
    x = randn(steps, batch, 3, seed=data.draw(st.integers(0, 99))) * 2
    s, state, m = neuron.sequence(torch.where(mask.unsqueeze(2), x, torch.nan), lengths=mask, membrane=True)
    for n in range(batch):
        rows = mask[:, n]
        s1, state1, m1 = neuron.sequence(x[rows, n : n + 1], membrane=True)
        assert_same(s[rows, n : n + 1], s1)
        assert_close(m[rows, n : n + 1], m1, "residual")
        assert not s[~rows, n].any()
        for part, part1 in zip(state, state1, strict=True):
            assert_close(part[n : n + 1], part1, "residual")


def test_lengths_as_a_list_and_for_heads_beside_the_batch():
    neuron = PMSN(4, channel_dim=2)  # [N, heads, C, positions]
    x = randn(9, 3, 2, 4, 5, dtype=F32) * 3
    s, (r, _), _ = neuron.sequence(x, lengths=[9, 4, 0])
    one, (r1, _), _ = neuron.sequence(x[:4, 1:2])
    assert_same(s[:4, 1:2], one)
    assert_close(r[1:2], r1, "residual")
    assert not s[4:, 1].any()
    assert not s[:, 2].any()
    assert neuron(x, lengths=[9, 4, 0])[0].equal(s)


def test_lengths_of_an_empty_batch_or_sequence():
    for neuron in (MSF(), PMSN(3), ParallelIF()):
        assert neuron(torch.zeros(4, 0, 3), lengths=[])[0].shape == (4, 0, 3)
        assert neuron(torch.zeros(0, 2, 3), lengths=[0, 0])[0].shape == (0, 2, 3)
        assert neuron(torch.zeros(0, 2, 3), lengths=torch.zeros(0, 2, dtype=torch.bool))[0].shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, 5], ValueError, r"lie in 0..4"),
        ([-1, 2], ValueError, r"lie in 0..4"),
        ([3], ValueError, "one entry for each of the 2 samples"),
        (torch.ones(2, 4, dtype=torch.bool), ValueError, r"a mask is \[T, N\] = \(4, 2\)"),
        (torch.ones(2), TypeError, "must be integers"),
        ([1.5, 2.0], TypeError, "must be integers"),
    ],
)
def test_bad_lengths(lengths, error, message):
    for neuron in (MSF(), PMSN(3)):
        with pytest.raises(error, match=message):
            neuron(torch.zeros(4, 2, 3), lengths=lengths)


def test_lengths_under_compile():
    neuron = MSF()
    x, lengths = randn(5, 3, 4, dtype=F32) * 2, torch.tensor([5, 2, 0])
    compiled = torch.compile(
        lambda x, lengths: neuron(x, lengths=lengths)[0], fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        # a length on the CPU is checked by value, which a graph cannot hold: a mask is not
        mask = torch.arange(5).unsqueeze(1) < lengths
        assert_same(compiled(x, mask), neuron(x, lengths=lengths)[0])
