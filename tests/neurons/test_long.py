"""Long sequences: a million steps of one channel, trained on two thousand and run on thirty thousand."""

import resource
import time

import pytest
import torch

from msf_pmsn_plugins.neurons import MSF, PMSN, parallel_reset
from msf_pmsn_plugins.neurons.pmsn import pmsn
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.tensors import PMSNWeights
from subjects import at_rest
from tolerances import F32, F64, assert_close, assert_same

pytestmark = pytest.mark.slow
MILLION = 2**20


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def drives(steps, seed=0):
    return torch.randn(steps, 1, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [lambda: MSF(decay=0.5), lambda: PMSN(1)], ids=["msf", "pmsn"])
def test_a_million_steps_forward_and_backward_in_bounded_memory(make):
    torch.manual_seed(0)
    neuron, x = make(), drives(MILLION).requires_grad_()
    before, start = peak(), time.perf_counter()
    s, _ = neuron(x)
    s.sum().backward()
    grown = peak() - before
    assert grown < 1.5 * 2**30, f"{grown / 2**20:.0f} MiB after {time.perf_counter() - start:.0f} s"
    assert torch.isfinite(x.grad).all()
    assert 0.001 < s.mean() < 4
    for parameter in neuron.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_error_of_the_drive_does_not_grow_with_time():
    """The state decays, so the rounding of a step is forgotten: the error at a million is that at a thousand."""
    torch.manual_seed(0)
    neuron, x = PMSN(1), drives(MILLION)

    def drive(dtype):
        weights = PMSNWeights(*(part.detach() for part in neuron.weights(dtype)))
        wide = x.to(dtype).unsqueeze(-1)
        return pmsn(wide, at_rest(wide[0], 4), weights)[1].flatten()

    error = (drive(F32).double() - drive(F64)).abs()
    assert error[-MILLION // 2 :].max() <= 3 * error[1024 : MILLION // 2].max()
    assert error.max() < 1e-5


@pytest.mark.parametrize("fixed", [False, True])
def test_wrong_spikes_of_the_reset_in_a_million_steps(fixed):
    """Identical float32 drives, against exact arithmetic: the error grows like 2**-24 sqrt(T) thresholds."""
    y = drives(MILLION, seed=1)
    s, _, _ = parallel_reset(y, settings=PMSNSettings(fixed=fixed))
    # in steps of 2**-40 the sum of a million drives is off by 2**-21 at most
    exact = torch.cumsum(torch.round(torch.relu(y).double() * 2.0**40).long(), 0) >> 40
    spikes = torch.diff(exact, dim=0, prepend=torch.zeros_like(exact[:1])) > 0
    assert (spikes != (s > 0)).sum() <= 2.0**-24 * MILLION**0.5 * MILLION


def test_trained_on_two_thousand_steps_runs_on_thirty_thousand():
    torch.manual_seed(0)
    neuron = PMSN(8)
    optimizer = torch.optim.Adam(neuron.parameters(), 1e-2)
    for step in range(3):
        s, _ = neuron(torch.randn(2000, 2, 8, generator=torch.Generator().manual_seed(step)))
        optimizer.zero_grad()
        (s.mean() - 0.2).square().backward()
        optimizer.step()
    x = torch.randn(30_000, 2, 8, generator=torch.Generator().manual_seed(9)).double()
    neuron = neuron.double()
    whole, last = neuron(x)
    state, parts = None, []
    for part in x.split(2000):
        s, state = neuron(part, state)
        parts.append(s)
    assert_same(torch.cat(parts), whole)
    for ours, theirs in zip(state, last, strict=True):
        assert_close(ours, theirs, "residual")


def test_membranes_of_a_long_sequence_stay_small():
    y = drives(30_000).abs()
    m = parallel_reset(y, membrane=True)[2]
    assert m.max() < 1 + y.max()
