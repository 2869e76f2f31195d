"""MSF: golden vectors of the published code, and of the hosts' neurons that it contains."""

import itertools

import pytest
import torch

from helpers import DTYPES, all_ways, both_dtypes, golden, loop, tensor
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import F32, assert_close, assert_same

V1 = {"v1p0": 1.0, "v0p5": 0.5}


# ---------------------------------------------------------------- golden vectors


def sets(name):
    g = golden(name)
    return [(name, v, int(t)) for v in V1 for t in g["T_values"]]


@all_ways
@both_dtypes
@pytest.mark.parametrize(("name", "v", "steps"), sets("msf_d4") + sets("msf_d8_rectangular"))
def test_golden(name, v, steps, p, way):
    g = golden(name)
    x = tensor(g[f"x_T{steps}"], DTYPES[p])
    gy = tensor(g[f"gy_T{steps}"], DTYPES[p])
    for surrogate in ("rectangular", "sigmoid", "atan", "gaussian") if "d4" in name else ("rectangular",):
        neuron = MSF(D=int(g["D"]), decay=float(g["decay"]), v_threshold=V1[v], surrogate=surrogate)
        x.requires_grad_()
        s, _, m = way(neuron, x)
        assert_same(s, tensor(g[f"y_{p}_{v}_T{steps}"], DTYPES[p]))
        assert_close(m, tensor(g[f"m_f64_{v}_T{steps}"]), "membrane")
        (gx,) = torch.autograd.grad(s, x, gy)
        assert_close(gx, tensor(g[f"gx_f64_{surrogate}_{v}_T{steps}"]), "msf_gradient")


@all_ways
@both_dtypes
@pytest.mark.parametrize(("v", "steps"), [case[1:] for case in sets("msf_lif")])
def test_one_threshold_is_the_published_lif_to_the_bit(v, steps, p, way):
    g = golden("msf_lif")
    x = tensor(g[f"x_T{steps}"], DTYPES[p]).requires_grad_()
    neuron = MSF(D=1, v_threshold=V1[v], surrogate=Surrogate("rectangular", float(g["alpha"])))
    s, _, _ = way(neuron, x)
    (gx,) = torch.autograd.grad(s, x, tensor(g[f"gy_T{steps}"], DTYPES[p]))
    assert_same(s, tensor(g[f"y_{p}_{v}_T{steps}"], DTYPES[p]))
    assert_same(gx, tensor(g[f"gx_{p}_{v}_T{steps}"], DTYPES[p]))


@all_ways
@both_dtypes
@pytest.mark.parametrize("part", ["sweep", "seq"])
@pytest.mark.parametrize("v", V1)
@pytest.mark.parametrize("count", [4, 8, 1])
def test_golden_ties(count, v, part, p, way):
    g = golden("msf_ties")
    key = "lif" if count == 1 else f"D{count}"
    x = tensor(g[f"x_{part}"], DTYPES[p]).requires_grad_()
    for surrogate in ("rectangular", "sigmoid", "atan", "gaussian") if count == 4 else ("rectangular",):
        s, _, m = way(MSF(D=count, v_threshold=V1[v], surrogate=surrogate), x)
        assert_same(s, tensor(g[f"y_{key}_{v}_{part}"], DTYPES[p]))
        if count > 1:
            assert_same(m, tensor(g[f"m_{key}_{v}_{part}"], DTYPES[p]))
        (gx,) = torch.autograd.grad(s, x, tensor(g[f"gy_{part}"], DTYPES[p]))
        expected = tensor(g[f"gx_{key}_{v}_{part}" if count == 1 else f"gx_{key}_{surrogate}_{v}_{part}"])
        if surrogate == "rectangular" and part == "sweep":
            assert_same(gx, expected.to(gx.dtype))  # one product with 0 or 1
        assert_close(gx, expected, "msf_gradient", F32)  # the file holds float32 gradients


HOSTS = list(itertools.product(["tau2p0", "tau1p3333"], [0, 1], ["th1p0", "th0p5"]))


@all_ways
@both_dtypes
@pytest.mark.parametrize(("tau", "decay_input", "th"), HOSTS)
def test_spikingjelly_lif_in_its_own_order_of_operations(tau, decay_input, th, p, way):
    g = golden("spikingjelly_lif")
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    case = f"{p}_{tau}_di{decay_input}_{th}"
    for surrogate in ("atan", "sigmoid"):
        neuron = MSF(
            D=1,
            v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
            charge="lif_decay_input" if decay_input else "lif",
            tau={"tau2p0": 2.0, "tau1p3333": 4 / 3}[tau],
            surrogate=surrogate,
        )
        s, (v,), _ = way(neuron, x)
        assert_same(s, tensor(g[f"y_{case}"], DTYPES[p]))
        assert_close(v, tensor(g[f"v_{case}"])[-1], "host")
        (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
        assert_close(gx, tensor(g[f"gx_{surrogate}_{case.replace('f32', 'f64')}"]), "msf_gradient")


@all_ways
@both_dtypes
@pytest.mark.parametrize(("tau", "decay_input", "th"), HOSTS)
def test_spikingjelly_lif_is_one_threshold_with_decay_1_minus_1_over_tau(tau, decay_input, th, p, way):
    g = golden("spikingjelly_lif")
    k = {"tau2p0": 2.0, "tau1p3333": 4 / 3}[tau]
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    neuron = MSF(
        D=1,
        decay=1 - 1 / k,
        input_scale=1 / k if decay_input else 1.0,
        v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
        surrogate="atan",
    )
    s, (v,), _ = way(neuron, x)
    case = f"{p}_{tau}_di{decay_input}_{th}"
    # up to rounding only, but no membrane of this file lies that close to a threshold
    assert_same(s, tensor(g[f"y_{case}"], DTYPES[p]))
    assert_close(v, tensor(g[f"v_{case}"])[-1], "host")
    (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
    assert_close(gx, tensor(g[f"gx_atan_{case.replace('f32', 'f64')}"]), "msf_gradient")


@all_ways
@both_dtypes
@pytest.mark.parametrize("th", ["th1p0", "th0p5"])
@pytest.mark.parametrize("beta", ["beta0p25", "beta0p5"])
def test_snntorch_leaky_is_one_threshold_off_ties(beta, th, p, way):
    g = golden("snntorch_leaky")
    x = tensor(g["x"], DTYPES[p]).requires_grad_()
    neuron = MSF(
        D=1,
        decay={"beta0p25": 0.25, "beta0p5": 0.5}[beta],
        v_threshold={"th1p0": 1.0, "th0p5": 0.5}[th],
        surrogate="atan",
    )
    s, _, m = way(neuron, x)
    case = f"{beta}_{th}_zero_delay1"
    assert_same(s, tensor(g[f"y_{p}_{case}"], DTYPES[p]))
    assert_close(m, tensor(g[f"mem_f64_{case}"]), "host")
    (gx,) = torch.autograd.grad(s, x, tensor(g["gy"], DTYPES[p]))
    assert_close(gx, tensor(g[f"gx_f64_{case}"]), "msf_gradient")


@pytest.mark.parametrize("th", ["th1p0", "th0p5"])
def test_hosts_at_exact_ties(th):
    """SpikingJelly fires there, as MSF does; snnTorch is silent."""
    theta = {"th1p0": 1.0, "th0p5": 0.5}[th]
    g = golden("spikingjelly_lif")
    s, _, _ = loop(MSF(D=1, decay=0.5, v_threshold=theta), tensor(g["x_tie"]))
    assert_same(s, tensor(g[f"y_tie_tau2p0_di0_{th}"], F32))
    g = golden("snntorch_leaky")
    s, _, _ = loop(MSF(D=1, v_threshold=theta), tensor(g["x_tie"]))
    assert not torch.equal(s, tensor(g[f"y_tie_beta0p25_{th}_zero"], F32))
