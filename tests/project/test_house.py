"""One place each: what a third party adds is one entry in one table."""

import sys
import types
from typing import ClassVar

import pytest
import torch
from msf_pmsn_plugins.adapters import Recipe
from torch import nn

from msf_pmsn_plugins import adapters, backends, neurons, swap
from msf_pmsn_plugins.backends.torch import msf as torch_msf
from msf_pmsn_plugins.backends.torch import pmsn as torch_pmsn
from msf_pmsn_plugins.charges import CHARGES, Charge
from msf_pmsn_plugins.hosts import HOSTS, Host
from msf_pmsn_plugins.neurons import MSF, PMSN, Neuron
from msf_pmsn_plugins.resets import RESETS, Reset
from msf_pmsn_plugins.surrogate import SURROGATES, Custom, Kind


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
    bell = Custom(lambda u: torch.exp(-2 * u.abs()))  # kernels are given its slopes
    assert_paths_agree(MSF(reset_mode="halved", detach_reset=False, surrogate=bell))


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
        with torch.no_grad():  # states that it cannot keep are made of what it can
            neuron, x_seq = (
                make(backend="third"),
                torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0)),
            )
            if make is MSF:
                _s, _state, kept = neuron.trajectory(x_seq)
                state = neuron.initial_state(x_seq[0])
                for t, x in enumerate(x_seq):
                    state = neuron.step(x, state)[1]
                    assert torch.equal(kept["v"][t], state[0])
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


# A framework of one neuron that takes steps, and our host for it.


class Leak(nn.Module):
    """Decays by a quarter, adds, fires at 1 and starts anew."""

    def __init__(self):
        super().__init__()
        self.v = None

    def forward(self, x):
        v = x if self.v is None else self.v * 0.25 + x
        spikes = (v >= 1).to(v)
        self.v = v * (1 - spikes)
        return spikes


class LeakMSF(nn.Module):
    """MSF in the words of that framework."""

    PUBLISHED: ClassVar[dict] = {}

    def __init__(self, D=4, threshold_step=1.0, v_threshold=1.0, backend="auto"):
        super().__init__()
        self.neuron = MSF(
            D=D, decay=0.25, v_threshold=v_threshold, threshold_step=threshold_step, backend=backend
        )
        self.carried = None

    def forward(self, x):
        spikes, self.carried, _ = self.neuron.single(x, self.carried or self.neuron.initial_state(x))
        return spikes

    def reset(self):
        self.carried = None


def rest(model):
    for module in model.modules():
        if isinstance(module, Leak):
            module.v = None
        elif isinstance(module, LeakMSF):
            module.reset()


@pytest.fixture
def tiny(monkeypatch):
    """The framework ``tiny`` with its host."""
    host = types.ModuleType("tiny_host.host")
    host.NODES = {"msf": LeakMSF}
    host.WORDS = {}
    host.SEQUENCES = "give them one by one"
    host.ADVICE = "rest the net between samples"
    host.is_stock = lambda module: type(module) is Leak
    host.is_readout = lambda module: False
    host.site_charges = lambda module: []
    host.site_settings = lambda module, step_mode=None: {"v_threshold": 1.0}
    host.site_dynamics = lambda module, step_mode=None, charge=None: {"v_threshold": 1.0}
    host.as_stock = lambda node: (Leak(), [])
    host.learned = lambda module: {}
    host.reset_net = rest
    host.after_swap = lambda model: None
    monkeypatch.setitem(sys.modules, "tiny_host.host", host)
    monkeypatch.setattr(Leak, "__module__", "tiny.neurons")
    monkeypatch.setattr(LeakMSF, "__module__", "tiny_host.nodes")
    monkeypatch.setitem(HOSTS, "tiny", Host("tiny_host.host", r"tiny\.neurons"))


class TinyNet(nn.Module):
    """Three steps through two layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), Leak(), nn.Linear(5, 4), Leak())

    def forward(self, x):
        rest(self)
        return sum(self.layers(x) for _ in range(3))


def tiny_net():
    torch.manual_seed(0)
    net = TinyNet()
    for layer in net.layers:
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(4)
    return net, torch.randn(2, 6)


def test_a_host_is_a_module_and_one_line(tiny):
    net, x = tiny_net()
    expected = net(x)
    assert expected.any()
    plan = swap.plan(net, x, swap.MSF(D=1))
    assert [site.verdict for site in plan.sites] == ["single-step"] * 2
    assert "rest the net between samples" in plan.warnings
    plan.apply()
    assert isinstance(net.layers[1], LeakMSF)
    assert torch.equal(net(x), expected)

    rebuilt = swap.Plan.from_dict(tiny_net()[0], plan.to_dict()).apply()
    assert torch.equal(rebuilt(x), expected)
    assert isinstance(swap.lif(net).layers[3], Leak)
    assert torch.equal(net(x), expected)


def test_a_recipe_is_a_module_and_one_line(tiny, monkeypatch):
    net, x = tiny_net()
    module = types.ModuleType("msf_pmsn_plugins.adapters.tiny_net")
    module.RECIPE = Recipe(
        name="tiny_net", source="this file", classes=("TinyNet",), rules={"layers.3": swap.Keep()}
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(adapters, "RECIPES", (*adapters.RECIPES, "tiny_net"))
    recipe = adapters.recognise(net)
    assert recipe is module.RECIPE
    recipe.plan(net, x, swap.MSF(D=1)).apply()
    assert isinstance(net.layers[1], LeakMSF)
    assert isinstance(net.layers[3], Leak)


def test_the_swap_knows_every_neuron():
    assert {"MSF", "PMSN"} <= set(swap.__all__)
