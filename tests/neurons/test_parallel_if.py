"""The parallel integrate-and-fire neuron."""

import pytest
import torch

from helpers import DTYPES, PMSN_FLOATS, all_backends, assert_matches_step, both_dtypes, randn, sequence
from msf_pmsn_plugins.neurons import ParallelIF
from msf_pmsn_plugins.neurons.pmsn import BURSTS
from msf_pmsn_plugins.surrogate import SURROGATES, Custom
from tolerances import F64, assert_close, assert_flips_proved

# ---------------------------------------------------------------- the parallel reset and the parallel IF neuron


@all_backends
@both_dtypes
@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_parallel_if_is_the_serial_integrate_and_fire(theta, p, backend):
    """A loop that integrates, fires, and takes whole thresholds away; slopes elementwise."""
    x = (randn(300, 4, 5, dtype=DTYPES[p])).requires_grad_()
    neuron = ParallelIF(theta, backend=backend)
    s, _, m = sequence(neuron, x)
    v, rows = torch.zeros(4, 5, dtype=F64), []
    for current in x.detach().double():
        v = v + current.clamp(min=0)
        rows.append(v)
        v = v - theta * torch.floor(v / theta)
    v = torch.stack(rows)
    assert_flips_proved(s, x.detach(), (v >= theta).double(), x.detach(), theta)
    agree = (s.double() == (v >= theta)).all(0)
    assert_close(torch.where(agree, m.double(), 0.0), torch.where(agree, v, 0.0), "residual", DTYPES[p])
    gs = randn(300, 4, 5, seed=1, dtype=DTYPES[p])
    (gx,) = torch.autograd.grad(s, x, gs)
    expected = gs * (1 - (m.detach() - theta).abs()).clamp(min=0) * (x > 0)
    assert_close(gx, expected, "adjoint")


@pytest.mark.parametrize(
    "surrogate", [*SURROGATES, Custom(lambda u: (1 - u.abs()).clamp(min=0))], ids=[*SURROGATES, "custom"]
)
@pytest.mark.parametrize("burst", BURSTS)
def test_parallel_if_equals_its_steps(burst, surrogate):
    x = (randn(50, 4, 5) * 2).requires_grad_()
    neuron = ParallelIF(0.5, surrogate, burst)
    assert_matches_step(neuron, x, precision=PMSN_FLOATS)


def test_parallel_if_errors():
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        ParallelIF(0.0)
    with pytest.raises(ValueError, match="unknown burst"):
        ParallelIF(burst="sawtooth")
