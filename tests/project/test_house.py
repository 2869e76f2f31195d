"""One place each: what a third party adds is one entry in one table."""

import sys
import types

import pytest
import torch

from msf_pmsn_plugins import backends, neurons, swap
from msf_pmsn_plugins.backends.torch import msf as torch_msf
from msf_pmsn_plugins.backends.torch import pmsn as torch_pmsn
from msf_pmsn_plugins.charges import CHARGES, Charge
from msf_pmsn_plugins.neurons import MSF, PMSN, Neuron
from msf_pmsn_plugins.resets import RESETS, Reset
from msf_pmsn_plugins.surrogate import SURROGATES, Kind


def run(neuron, x_seq):
    """Counts and the gradient to the input, by the fast path and by a loop of steps."""
    results = []
    for path in (neuron.sequence, lambda x: neuron._loop(x, neuron._begin(x, None), False)):
        x = x_seq.clone().requires_grad_()
        s_seq, *_ = path(x)
        s_seq.backward(torch.arange(s_seq.numel(), dtype=x.dtype).reshape(s_seq.shape) / 64)
        results.append((s_seq.detach(), x.grad))
    return results


def assert_paths_agree(neuron):
    x_seq = torch.randint(-128, 129, (6, 3, 5), generator=torch.Generator().manual_seed(0)) / 64
    (s, g), (s_step, g_step) = run(neuron, x_seq)
    assert torch.equal(s, s_step)
    torch.testing.assert_close(g, g_step, rtol=1e-5, atol=1e-6)
    assert s.any()
    assert g.any()


@pytest.mark.parametrize("make", [MSF, lambda **k: PMSN(5, **k)], ids=["MSF", "PMSN"])
def test_a_surrogate_is_one_entry(monkeypatch, make):
    hat = Kind(lambda u, a: (u.abs() < 2 * a) * (0.25 / a), 0.5, lambda t: (t > 0).to(t.dtype))
    monkeypatch.setitem(SURROGATES, "hat", hat)
    assert_paths_agree(make(surrogate="hat"))


def test_a_charge_is_one_entry(monkeypatch):
    half = Charge("v/2 + x", "none", lambda x, v, k, r, b: v / 2 + x, lambda g, k, b: (g, g / 2))
    monkeypatch.setitem(CHARGES, "half", half)
    assert_paths_agree(MSF(charge="half"))


def test_a_reset_is_one_entry(monkeypatch):
    halved = Reset(
        "m/2 where f else m",
        lambda m, f, s, r, q: m - f * m / 2,
        lambda g, fired: g - fired * g / 2,
        lambda g, m, r, q: (-g * m / 2, None),
    )
    monkeypatch.setitem(RESETS, "halved", halved)
    assert_paths_agree(MSF(reset_mode="halved"))
    assert_paths_agree(MSF(reset_mode="halved", detach_reset=False, surrogate="atan"))
    assert_paths_agree(MSF(reset_mode="halved", reset_delay=True))


class Ramp(Neuron):
    """Fires when the sum of its inputs reaches 1."""

    def initial_state(self, x):
        return (torch.zeros_like(x),)

    def step(self, x, state):
        v = state[0] + x
        s = torch.sigmoid(v - 1)
        return s, (v,), v


def test_a_neuron_is_a_step():
    assert_paths_agree(Ramp())
    assert isinstance(neurons.MSF(), Neuron)


@pytest.mark.parametrize("make", [MSF, lambda **k: PMSN(5, **k)], ids=["MSF", "PMSN"])
def test_a_backend_is_a_package_and_one_line(monkeypatch, make):
    """It is found by its name, chosen by ``auto`` where it stands first, and asked only for what it knows."""
    calls = []

    def counted(function):
        def call(*args):
            calls.append(function.__name__)
            return function(*args)

        return call

    package = types.ModuleType("third_party")
    package.unusable = lambda: ""
    modules = {"third_party": package}
    for name, source in (("msf", torch_msf), ("pmsn", torch_pmsn)):
        module = modules[f"third_party.{name}"] = types.ModuleType(f"third_party.{name}")
        module.KNOWS = frozenset({"reset 'hard'", "reset 'floor'", "charge 'decay'"})
        for direction in ("forward", "backward"):
            setattr(module, f"{name}_{direction}", counted(getattr(source, f"{name}_{direction}")))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    table = {"third": backends.Backend("third_party", keeps_drive=True), **backends.BACKENDS}
    monkeypatch.setattr(backends, "BACKENDS", table)
    backends._choose.cache_clear()
    try:
        for backend in ("third", "auto"):
            calls.clear()
            assert_paths_agree(make(backend=backend))
            assert len(calls) == 2
        other = {"reset_mode": "soft"} if make is MSF else {"reset_mode": "serial"}
        calls.clear()
        assert_paths_agree(make(**other))
        assert calls == []
        with pytest.raises(ValueError, match="third.*has no reset"):
            make(backend="third", **other)(torch.zeros(2, 3, 5))
    finally:
        backends._choose.cache_clear()
        for name in ("msf", "pmsn"):
            backends._loaded.pop(("third", name), None)
        backends.unusable.cache_clear()


def test_the_swap_knows_every_neuron():
    assert {"MSF", "PMSN"} <= set(swap.__all__)
