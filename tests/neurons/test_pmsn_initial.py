"""PMSN: initial values, the number of parameters."""

import math

import numpy as np
import pytest
import torch

from helpers import golden, tensor
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from tolerances import F64, assert_close, assert_same


def expected_frequencies(modes, coupling):
    k = np.arange(1, modes)
    return np.sort(np.linalg.eigvals(np.diag(coupling * k, 1) - np.diag(coupling * k, -1)).imag)


@pytest.mark.parametrize("modes", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("variant", ["smnist", "shd", "imagenet"])
def test_golden_init(variant, modes):
    g = golden("pmsn_init")
    neuron = PMSN(2, modes + 1, init={"smnist": "sequence"}.get(variant, variant))
    assert_close(neuron.log_A_real, torch.full((2, modes), math.log(0.5), dtype=F64), "initial_values")
    coupling = 0.25 if variant == "imagenet" else 5.0
    assert_close(
        neuron.A_imag, torch.from_numpy(expected_frequencies(modes, coupling)).expand(2, -1), "initial_values"
    )
    b = torch.complex(neuron.VinvB_real, neuron.VinvB_imag)
    c = torch.complex(neuron.CV_real, neuron.CV_imag)
    # B and C in the basis of the compartments: sum of C B is c . 1
    assert (c * b).sum(1).tolist() == pytest.approx([modes if variant == "shd" else 1.0] * 2, abs=1e-4)
    if variant == "imagenet" and modes != 4:
        return
    key = f"{variant}_N{modes}_"
    assert_close(neuron.A_imag, tensor(g[key + "A_imag"])[:2], "initial_values")
    assert_close(c * b, tensor(g[key + "CB"])[:2], "initial_values")


def test_published_frequencies_and_products():
    neuron = PMSN(1)
    assert neuron.A_imag[0].tolist() == pytest.approx([-18.2514, -4.1093, 4.1093, 18.2514], abs=1e-4)
    cb = torch.complex(neuron.CV_real, neuron.CV_imag) * torch.complex(neuron.VinvB_real, neuron.VinvB_imag)
    assert cb.real[0].tolist() == pytest.approx([0.0919, 0.4081, 0.4081, 0.0919], abs=1e-4)
    assert cb.imag[0].tolist() == pytest.approx([-0.3354, -0.3354, 0.3354, 0.3354], abs=1e-4)
    shd = PMSN(1, init="shd")
    cb = torch.complex(shd.CV_real, shd.CV_imag) * torch.complex(shd.VinvB_real, shd.VinvB_imag)
    assert sorted(cb.real[0].tolist()) == pytest.approx([0.3675, 0.3675, 1.6325, 1.6325], abs=1e-4)
    assert cb.imag[0].tolist() == pytest.approx([0.0] * 4, abs=1e-4)
    assert PMSN(1, 17).A_imag.max().item() == pytest.approx(120.106, abs=1e-3)


@pytest.mark.parametrize("compartments", range(2, 18))
def test_initial_modes_are_conjugate_pairs_to_the_bit(compartments):
    neuron = PMSN(1, compartments)
    for name, sign in (
        ("A_imag", -1),
        ("VinvB_real", 1),
        ("VinvB_imag", -1),
        ("CV_real", 1),
        ("CV_imag", -1),
    ):
        value = getattr(neuron, name).detach()
        assert_same(value.flip(1), sign * value)


@pytest.mark.parametrize(
    ("init", "low", "high"), [("sequence", 1e-3, 1e-1), ("shd", 1e-3, 1e-1), ("imagenet", 0.2, 1)]
)
def test_random_initial_values(init, low, high):
    torch.manual_seed(0)
    neuron = PMSN(4096, init=init)
    dt = neuron.log_dt.exp()
    assert dt.min() >= low * (1 - 1e-6)
    assert dt.max() <= high * (1 + 1e-6)
    # uniform in the logarithm: quartiles where they belong
    share = (neuron.log_dt - math.log(low)) / (math.log(high) - math.log(low))
    assert share.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.03
    )
    if init == "imagenet":
        assert neuron.D.min() >= 0
        assert neuron.D.max() < 1
        assert neuron.D.quantile(torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.25, 0.75], abs=0.03)
    else:
        assert neuron.D.mean().item() == pytest.approx(0, abs=0.06)
        assert neuron.D.std().item() == pytest.approx(1, abs=0.05)
    torch.manual_seed(0)
    assert_same(PMSN(4096, init=init).D, neuron.D)


def test_golden_random_initial_values_lie_in_the_range():
    g = golden("pmsn_init")
    assert np.exp(g["smnist_log_dt_256"]).min() >= 1e-3 * (1 - 1e-6)
    assert np.exp(g["smnist_log_dt_256"]).max() <= 1e-1 * (1 + 1e-6)
    assert 0.3 < (g["smnist_D_256"] < 0).mean() < 0.7


def test_parameter_count():
    for compartments in (2, 5, 17):
        count = sum(p.numel() for p in PMSN(7, compartments).parameters())
        assert count == 7 * (2 + 6 * (compartments - 1))
    assert dict(PMSN(7).named_parameters()).keys() == set(PARAMETERS)
    assert not list(PMSN(7).buffers())
