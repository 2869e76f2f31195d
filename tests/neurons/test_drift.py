"""PMSN at long T: the summed drive, which decides when an integrating soma fires, drifts by rounding alone."""

import copy

import pytest
import torch

from helpers import all_backends
from msf_pmsn_plugins.neurons import PMSN


def membranes(neuron, x_seq):
    """Without a reset they are the drives."""
    return neuron.sequence(x_seq, membrane=True)[2][:, 0].double()


def published_drive(neuron, x_seq):
    """An FFT convolution with the kernel, in float32."""
    steps = len(x_seq)
    lam = torch.complex(-neuron.log_A_real.exp(), neuron.A_imag)
    lam_dt = lam * neuron.log_dt.exp().unsqueeze(-1)
    b, c = torch.complex(neuron.VinvB_real, neuron.VinvB_imag), torch.complex(neuron.CV_real, neuron.CV_imag)
    w = c * b * (torch.exp(lam_dt) - 1) / lam
    kernel = (w.unsqueeze(-1) * torch.exp(lam_dt.unsqueeze(-1) * torch.arange(steps))).real.sum(1)
    spectrum = torch.fft.rfft(kernel, 2 * steps) * torch.fft.rfft(x_seq[:, 0].T.contiguous(), 2 * steps)
    return torch.fft.irfft(spectrum, 2 * steps)[:, :steps].T.double()


@torch.no_grad()
@all_backends
@pytest.mark.parametrize("seed", range(2))
def test_long_sequences_drift_no_more_than_the_published_kernel(seed, backend):
    torch.manual_seed(seed)
    neuron = PMSN(8, reset_mode="none", backend=backend)
    neuron.log_dt.fill_(torch.tensor(1e-3).log())  # the smallest published step size
    neuron.D.zero_()
    x = torch.randn(16384, 1, 8)
    exact = membranes(copy.deepcopy(neuron).double(), x.double())
    ours, theirs = (
        float((y - exact).cumsum(0).abs().max()) for y in (membranes(neuron, x), published_drive(neuron, x))
    )
    assert 8 * ours <= theirs, f"largest error of the summed drive: ours {ours:.1e}, published {theirs:.1e}"
