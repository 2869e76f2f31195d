"""Steps without a batch axis: the same as a batch of one, in every neuron, on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import DTYPES, all_backends, both_dtypes, chunks, loop, randn, singles
from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, Neuron, ParallelIF
from tolerances import assert_close, assert_same

# What makes a neuron, and one step without a batch axis.
NEURONS = {
    "MSF [C]": (lambda: MSF(3), (7,)),
    "MSF []": (lambda: MSF(3), ()),
    "MSF, its numbers per channel": (
        lambda: MSF(3, decay=torch.rand(7), v_threshold=torch.rand(7) + 0.5),
        (7,),
    ),
    "MSF, its channels from behind": (
        lambda: MSF(3, decay=torch.rand(7), v_threshold=torch.rand(7) + 0.5, channel_dim=-2),
        (7, 2),
    ),
    "MSF, learned": (lambda: MSF(3, decay=torch.rand(5), learn_decay=True, learn_threshold=True), (5,)),
    "MSF, soft": (lambda: MSF(2, reset_mode="soft", detach_reset=False, surrogate="atan"), (7,)),
    "PMSN [C]": (lambda: PMSN(7), (7,)),
    "PMSN []": (lambda: PMSN(1), ()),
    "PMSN, unsized": (lambda: PMSN(), (7,)),
    "PMSN [C, H, W]": (lambda: PMSN(3, channel_dim=-3), (3, 4, 5)),
    "PMSN [H, W, C]": (lambda: PMSN(5, channel_dim=3), (3, 4, 5)),
    "PMSN [H, C]": (lambda: PMSN(12, channel_dim=(1, 2)), (3, 4)),
    "PMSN, two axes from behind": (lambda: PMSN(12, channel_dim=(-2, -1)), (3, 4)),
    "PMSN, tied": (lambda: PMSN(7, tied=True, burst=True), (7,)),
    "ParallelIF [C]": (lambda: ParallelIF(), (7,)),
    "ParallelIF []": (lambda: ParallelIF(), ()),
    "MSN [C]": (lambda: MSN(7, 3), (7,)),
    "MSN []": (lambda: MSN(1, 3), ()),
}
each = pytest.mark.parametrize("name", NEURONS)


def built(name: str, backend: str, dtype: torch.dtype) -> tuple[Neuron, Tensor]:
    torch.manual_seed(0)
    make, shape = NEURONS[name]
    neuron = make()
    if backend not in neuron.supported_backends:
        backend = "torch"
    neuron.backend = backend
    return neuron.to(dtype), 4 * randn(12, *shape, dtype=dtype)


def outcome(neuron: Neuron, x_seq: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Tensor]:
    """Spikes, last state, membranes and the gradient to the input."""
    x_seq = x_seq.clone().requires_grad_()
    s_seq, state, m_seq = neuron.sequence(x_seq, membrane=True)
    (s_seq * randn(*s_seq.shape, seed=1, dtype=x_seq.dtype)).sum().backward()
    return s_seq, state, m_seq, x_seq.grad


@both_dtypes
@all_backends
@each
def test_a_sequence_without_a_batch_is_a_batch_of_one(name, backend, p):
    neuron, x_seq = built(name, backend, DTYPES[p])
    s_seq, state, m_seq, grad = outcome(neuron, x_seq)
    expected, expected_state, expected_m, expected_grad = outcome(neuron, x_seq.unsqueeze(1))
    assert s_seq.shape == m_seq.shape == grad.shape == x_seq.shape
    assert 0 < float((s_seq > 0).double().mean()) < 1
    assert_same(s_seq, expected.squeeze(1))
    assert_same(m_seq, expected_m.squeeze(1))
    assert_close(grad, expected_grad.squeeze(1), "adjoint")
    for part, other in zip(state, expected_state, strict=True):
        assert part.shape == other.shape[1:]
        assert_same(part, other.squeeze(0))


@all_backends
@each
def test_steps_and_chunks_without_a_batch_are_the_sequence(name, backend):
    neuron, x_seq = built(name, backend, torch.float64)
    whole, last, _ = neuron.sequence(x_seq)
    for run in (loop, singles, chunks):
        s_seq, state, _ = run(neuron, x_seq)
        assert_same(s_seq, whole)
        for part, other in zip(state, last, strict=True):
            assert_close(part, other, "residual")


def test_the_number_of_axes_tells_and_what_is_ambiguous_raises():
    image = torch.rand(6, 3, 4, 5)
    with pytest.raises(ValueError, match=r"3 channels.*has 4.*no batch axis.*channel_dim=-3"):
        PMSN(3)(image)
    with pytest.raises(
        ValueError, match=r"5 channels.*has 4"
    ):  # no axis in front has them: no advice that is wrong
        PMSN(5)(image)
    with pytest.raises(ValueError, match=r"5 channels.*has 3"):
        PMSN(5)(torch.rand(6, 3))
    with pytest.raises(ValueError, match=r"5 channels.*has 1"):
        PMSN(5)(torch.rand(6))
    with pytest.raises(ValueError, match=r"channel_dim=3 counts.*\(2, 5\)"):
        PMSN(5, channel_dim=3)(torch.rand(4, 2, 5))
    with pytest.raises(ValueError, match="whose axis 0 is the batch"):
        PMSN(5, channel_dim=0)(torch.rand(4, 5))
    with pytest.raises(ValueError, match="without axes"):
        MSF()(torch.tensor(1.0))


@pytest.mark.parametrize("lengths", [[3] * 7, torch.ones(12, 7, dtype=torch.bool)])
@pytest.mark.parametrize("name", ["MSF []", "PMSN [C]", "PMSN []", "MSN [C]", "PMSN, two axes from behind"])
def test_lengths_belong_to_samples(name, lengths):
    neuron, x_seq = built(name, "torch", torch.float32)
    with pytest.raises(ValueError, match="no batch axis"):
        neuron.sequence(x_seq, lengths=lengths)


def test_a_loop_of_steps_runs_any_surrogate_without_a_batch():
    for neuron in (MSF(2, surrogate=torch.sigmoid), PMSN(7, surrogate=torch.sigmoid)):
        x_seq = randn(5, 7, dtype=torch.float32)
        s_seq, _, _ = neuron.sequence(x_seq)
        assert_same(s_seq, loop(neuron, x_seq, None)[0])
