"""MSF: every charge, its formula, its adjoint and its sequence against a loop of ``step``."""

import pytest
import torch

from helpers import DTYPES, assert_matches_step, both_dtypes, fast_ways, randn, sequence
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.neurons.msf import msf
from msf_pmsn_plugins.settings import MSFSettings
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import MSFParameters
from subjects import build_msf
from tolerances import F32, assert_close, assert_same

# ---------------------------------------------------------------- charges


@pytest.mark.parametrize("name", CHARGES)
def test_charge_is_its_formula(name):
    x, v = randn(50), randn(50, seed=1)
    k, r, b = 0.3 if CHARGES[name].rate in ("decay", "w") else 1.7, -0.25, 0.5
    names = {"x": x, "v": v, "r": r, "b": b, "decay": k, "tau": k, "w": k, "sigmoid": lambda q: q}
    expected = eval(CHARGES[name].formula, {"__builtins__": {}}, names)
    assert_close(CHARGES[name].forward(x, v, k, r, b), expected, "membrane")


@both_dtypes
@pytest.mark.parametrize("name", CHARGES)
def test_charge_adjoint(name, p):
    charge, dtype = CHARGES[name], DTYPES[p]
    x, v, g = (randn(40, seed=i, dtype=dtype) for i in range(3))
    k = torch.tensor(0.3 if charge.rate in ("decay", "w") else 1.7, dtype=dtype)
    for r, b in ((0.0, 1.0), (-0.25, 0.5)):
        leaves = [t.clone().requires_grad_() for t in (x, v, k)]
        m = charge.forward(*leaves, r, b)
        gx, gv, gk = torch.autograd.grad(m, leaves, g, allow_unused=True)
        for ours, theirs in zip(charge.backward(g, k, b), (gx, gv), strict=True):
            assert_close(ours, theirs, "adjoint")
        if charge.rate_grad is not None:
            assert_close(charge.rate_grad(g, x, v, r).sum(), gk, "adjoint")


@fast_ways
@both_dtypes
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("name", CHARGES)
def test_sequence_is_the_loop_for_every_charge(name, reset, detach, p, way):
    x = (randn(7, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    for surrogate, v_reset in (("atan", 0.0), ("rectangular", -0.25)):
        neuron = build_msf(
            name, D=3, reset_mode=reset, detach_reset=detach, surrogate=surrogate, v_reset=v_reset
        )
        s, _, _ = assert_matches_step(neuron, x, (v0,), way=way)
        assert s.sum() > 0


@both_dtypes
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_sequence_is_the_loop_for_every_surrogate(surrogate, detach, p):
    x = (randn(9, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    assert_matches_step(MSF(D=4, surrogate=surrogate, detach_reset=detach, threshold_step=0.75), x, (v0,))


@both_dtypes
@pytest.mark.parametrize(
    "name", [name for name, charge in CHARGES.items() if charge.rate_grad and charge.rate == "w"]
)
def test_learned_rate_per_channel(name, p):
    x = (randn(7, 3, 8, dtype=DTYPES[p]) * 2).requires_grad_()
    v0 = randn(3, 8, seed=5, dtype=DTYPES[p]).requires_grad_()
    neuron = build_msf(name, w=randn(8, seed=6)).to(DTYPES[p])
    assert neuron.w.shape == (8,)
    assert_matches_step(neuron, x, (v0,))


def test_one_learned_rate_in_a_list_is_for_all_channels():
    """So the hosts' older parametric nodes hold it, [1]."""
    x = randn(7, 3, 8, dtype=F32) * 2
    found = []
    for shape in ((), (1,)):
        neuron = build_msf("plif", w=torch.full(shape, 0.3))
        s, _ = neuron(x.requires_grad_())
        found.append((s, *torch.autograd.grad(s.cos().sum(), (x, neuron.w))))
    (s, gx, gw), (s_list, gx_list, gw_list) = found
    assert s.any()
    assert gw_list.shape == (1,)
    assert_same(s_list, s)
    assert_same(gx_list, gx)
    assert_same(gw_list[0], gw)


@both_dtypes
def test_learned_decay_through_the_function(p):
    """Specification, section 3: g_lam = sum_{t>=1} delta_t m_{t-1} (1 - f_{t-1})."""
    x = randn(9, 20, dtype=DTYPES[p]) * 2
    lam = torch.tensor(0.4, dtype=DTYPES[p], requires_grad=True)
    settings = MSFSettings("decay", (1.0, 2.0), surrogate="atan", width=2.0)
    x.requires_grad_()
    s, m, _ = msf(x, torch.zeros_like(x[0]), settings, MSFParameters(rate=lam))
    g, gx = torch.autograd.grad(s.sum(), (lam, x))
    kept = torch.where(s > 0, 0, m)[:-1]
    assert_close(g, (gx[1:] * kept).sum(), "adjoint")


def test_training_and_evaluation_may_charge_differently():
    neuron = MSF(charge=("lif", "lif_product"), tau=1.7)
    x, v = randn(1, 200, dtype=F32), randn(200, seed=1, dtype=F32)
    _, _, m_train = sequence(neuron, x, (v,))
    _, _, m_eval = sequence(neuron.eval(), x, (v,))
    assert_same(m_train[0], CHARGES["lif"].forward(x[0], v, 1.7, 0.0, 1.0))
    assert_same(m_eval[0], CHARGES["lif_product"].forward(x[0], v, 1.7, 0.0, 1.0))
    assert not torch.equal(m_train, m_eval)  # the last bit
