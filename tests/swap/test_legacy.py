"""Old import names: the stand-ins compute what the originals do, and all is undone.

Runs on SpikingJelly 2.0.0, where they stand in, and again on 0.0.0.0.14, whose own classes then pass the same tests.
``golden/legacy_nodes.npz`` was recorded there.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import sys
import textwrap
import threading
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from helpers import GOLDEN
from msf_pmsn_plugins.swap import legacy
from msf_pmsn_plugins.swap.legacy import legacy_imports

OLD = find_spec("spikingjelly.clock_driven") is not None
SURROGATES = (
    "PiecewiseQuadratic",
    "PiecewiseExp",
    "Sigmoid",
    "SoftSign",
    "ATan",
    "NonzeroSignLogAbs",
    "Erf",
    "SquarewaveFourierSeries",
    "S2NN",
    "QPseudoSpike",
)


def cases():
    """name -> (class, its arguments, name of the surrogate)."""
    found = {}
    for kind, v_reset, detach in itertools.product(
        ("IF", "LIF", "ParametricLIF"), (0.0, None, -0.25), (True, False)
    ):
        for decay_input in (True, False) if kind != "IF" else (None,):
            arguments = {"v_reset": v_reset, "detach_reset": detach, "v_threshold": 0.75}
            if decay_input is not None:
                arguments |= {"decay_input": decay_input, "init_tau" if "P" in kind else "tau": 1.7}
            found[f"{kind}-{v_reset}-{detach}-{decay_input}"] = (f"MultiStep{kind}Node", arguments, "Sigmoid")
    for name in SURROGATES:
        found[f"surrogate-{name}"] = ("MultiStepLIFNode", {"tau": 2.0}, name)
    return found


CASES = cases()


def drive(neuron, surrogate, case):
    """Spikes, membranes and gradients of two sequences in a row."""
    cls, arguments, function = CASES[case]
    node = getattr(neuron, cls)(
        surrogate_function=getattr(surrogate, function)(), backend="cupy", **arguments
    )
    x = torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(len(case))) * 1.5
    x.requires_grad_()
    outputs = [node(part) for part in x]
    s, v = torch.stack(outputs), node.v
    weights = torch.randn(s.shape, generator=torch.Generator().manual_seed(7))
    (s * weights).sum().backward()
    found = {"s": s.detach(), "v": v.detach(), "gx": x.grad}
    return found | {f"g{name}": p.grad.reshape(1) for name, p in node.named_parameters()}


@functools.cache
def golden():
    with np.load(GOLDEN / "legacy_nodes.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("case", CASES)
def test_nodes_compute_the_bits_of_the_originals(case):
    with legacy_imports():
        from spikingjelly.clock_driven import neuron, surrogate

        found = drive(neuron, surrogate, case)
    assert found["s"].unique().tolist() == [0, 1]
    for name, value in found.items():
        expected = golden()[f"{case}/{name}"]
        if name == "gw":  # summed in an order that torch chooses
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, expected), name


@pytest.fixture
def no_timm(monkeypatch):
    """As if timm and einops were not installed."""
    exists = legacy.other_packages.exists
    gone = ("timm", "einops", "torchinfo")
    monkeypatch.setattr(
        legacy.other_packages, "exists", lambda name: name.split(".")[0] not in gone and exists(name)
    )
    for name in [name for name in sys.modules if name.split(".")[0] in gone]:
        monkeypatch.delitem(sys.modules, name)


def test_the_old_names_resolve_and_everything_is_undone(no_timm):
    names = [
        "spikingjelly.clock_driven",
        "spikingjelly.clock_driven.neuron",
        "spikingjelly.cext.neuron",
        "timm",
        "timm.models.layers",
        "einops.layers.torch",
    ]
    activation = importlib.import_module("spikingjelly.activation_based")
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    before = {name: sys.modules.get(name) for name in names}
    attributes = [dict(vars(thing)) for thing in (sys.modules["spikingjelly"], activation, functional)]
    constructor = neuron.LIFNode.__init__
    with pytest.raises(ZeroDivisionError), legacy_imports():
        for name in names:
            importlib.import_module(name)
        exec("from spikingjelly.clock_driven import encoding, functional, layer, neuron, surrogate")
        exec("import spikingjelly.clock_driven.neuron as n; assert n.MultiStepLIFNode")
        functional.set_backend(nn.Linear(1, 1), "cupy")
        assert neuron.LIFNode(backend="cupy", step_mode="m").step_mode == "m"
        raise ZeroDivisionError
    kept = [name for name in names if not OLD or "clock_driven" not in name]  # the real one stays imported
    assert {name: sys.modules.get(name) for name in kept} == {name: before[name] for name in kept}
    after = [dict(vars(thing)) for thing in (sys.modules["spikingjelly"], activation, functional)]
    if not OLD:
        assert [set(a) for a in after] == [set(a) for a in attributes]
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("spikingjelly.clock_driven")
        with pytest.raises(TypeError):
            neuron.LIFNode(backend="cupy")
    else:
        assert not hasattr(sys.modules["spikingjelly.cext"], "neuron")
        with pytest.raises((AssertionError, ImportError)):
            sys.modules["spikingjelly.clock_driven.neuron"].MultiStepLIFNode(backend="cupy")
    assert neuron.LIFNode.__init__ is constructor


def test_one_at_a_time():
    with legacy_imports(), pytest.raises(RuntimeError, match="active already"), legacy_imports():
        pass
    failed = []

    def enter():
        try:
            with legacy_imports():
                pass
        except RuntimeError as error:
            failed.append(error)

    with legacy_imports():
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(failed) == 1
    with legacy_imports():  # and again afterwards
        pass


def test_classes_are_the_same_in_every_context():
    found = []
    for _ in range(2):
        with legacy_imports():
            from spikingjelly.cext.neuron import MultiStepIFNode
            from spikingjelly.clock_driven.neuron import MultiStepLIFNode

            found.append((MultiStepLIFNode, MultiStepIFNode))
    assert found[0] == found[1]


def test_what_is_not_offered_is_named():
    with legacy_imports():
        if not OLD:
            with pytest.raises(ImportError, match="it offers BaseNode"):
                exec("from spikingjelly.clock_driven.neuron import EIFNode")
            with pytest.raises(ImportError, match="SpikingJelly 0.0.0.0.14"):
                exec("from spikingjelly.clock_driven.surrogate import PiecewiseLeakyReLU")
    with pytest.raises(ValueError, match="seq_to_ann"), legacy_imports(seq_to_ann="child"):
        pass


@pytest.mark.parametrize("layout", ["module", "sequential"])
def test_containers_have_the_keys_of_their_time_and_load_those_of_the_other(layout):
    def build(name):
        with legacy_imports(seq_to_ann=name):
            from spikingjelly.clock_driven import layer

            two = layer.SeqToANNContainer(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
            return nn.Sequential(two, layer.SeqToANNContainer(nn.Conv2d(3, 1, 1)))

    net = build(layout)
    (other,) = {"module", "sequential"} - {layout}
    prefixes = {"module": ("0.module.0.", "1.module."), "sequential": ("0.0.", "1.0.")}
    keys = [
        key
        for key in net.state_dict()
        if key.endswith("weight") and "module.1" not in key and "0.1" not in key
    ]
    assert tuple(key.removesuffix("weight") for key in keys) == prefixes[layout]
    source = build(other)
    assert source.state_dict().keys() != net.state_dict().keys()
    net.load_state_dict(source.state_dict())
    x = torch.rand(3, 2, 2, 4, 4)
    assert torch.equal(net.eval()(x), source.eval()(x))
    assert net(x).shape == (3, 2, 1, 4, 4)
    flat = source[1].module if other == "module" else source[1][0]
    assert torch.equal(source[1](source[0](x))[1], flat(source[0](x)[1]))
    with pytest.raises(RuntimeError, match="Unexpected"):
        net.load_state_dict({**source.state_dict(), "0.2.weight": torch.zeros(1)})


def test_cext_nodes_take_their_own_arguments():
    with legacy_imports():
        from spikingjelly.cext import neuron as cext
        from spikingjelly.clock_driven import neuron, surrogate

        lif = cext.MultiStepLIFNode(2.0, True, 0.5, 0.0, "Sigmoid", 3.0, True)
        plif = cext.MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True)
        plain = neuron.MultiStepLIFNode(
            tau=2.0,
            decay_input=False,
            v_threshold=0.5,
            surrogate_function=surrogate.Sigmoid(3.0),
            detach_reset=True,
        )
        with pytest.raises(ValueError, match="'ATan' or 'Sigmoid'"):
            cext.MultiStepIFNode(surrogate_function="Erf")
        assert isinstance(lif, neuron.MultiStepLIFNode)
        assert type(cext.IFNode().surrogate_function).__name__ == "ATan"
    x = torch.randn(4, 2, 3) * 2
    gradients = []
    for node in (lif, plain):
        y = x.clone().requires_grad_()
        s = node(y)
        (s * x).sum().backward()
        gradients.append((s.detach(), y.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert plif.w.shape == (1,)
    assert {k: tuple(v.shape) for k, v in plif.state_dict().items()} == {"w": (1,)}
    assert 0 < plif(x).mean() < 1


def test_layers_and_encoders_compute_what_they_are_named_for():
    torch.manual_seed(0)
    with legacy_imports():
        from spikingjelly.clock_driven import encoding, functional, layer

        dropout = layer.MultiStepDropout(0.5)
        steps = layer.MultiStepContainer(nn.Linear(3, 3), nn.ReLU())
        norm = layer.MultiStepThresholdDependentBatchNorm2d(0.5, 1.0, 3)
        x = torch.rand(4, 2, 3)
        y = dropout(x)
        assert torch.equal(y != 0, (y[:1] != 0).expand_as(y))  # one mask for all steps
        functional.reset_net(dropout)
        assert dropout.mask is None
        linear = steps.module[0] if hasattr(steps, "module") else steps[0]
        torch.testing.assert_close(steps(x), linear(x).relu())
        assert norm.weight[0].item() == 0.5
        assert encoding.PoissonEncoder()(torch.ones(3)).tolist() == [1, 1, 1]


def test_a_moved_timm_is_found_where_it_is_now(tmp_path, monkeypatch):
    for name, text in {
        "timm/__init__.py": "",
        "timm/models/__init__.py": "",
        "timm/models/_registry.py": "def register_model(f):\n    return f\n",
        "timm/models/vision_transformer.py": "def _cfg():\n    return {'real': True}\n",
        "timm/layers/__init__.py": "class DropPath:\n    real = True\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with legacy_imports():
        from timm.models.layers import DropPath
        from timm.models.registry import register_model
        from timm.models.vision_transformer import _cfg

        assert DropPath.real
        assert _cfg() == {"real": True}
        assert register_model(len) is len
    assert "timm.models.layers" not in sys.modules
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)


def test_what_stands_in_for_timm(no_timm):
    with legacy_imports():
        with pytest.raises(ImportError, match="pip install timm"):
            exec("from timm.models.layers import Mlp")
        from einops.layers.torch import Rearrange

        with pytest.raises(ImportError, match="pip install einops"):
            Rearrange("a b -> b a")
        from timm.models import create_model
        from timm.models.layers import DropPath, to_2tuple, trunc_normal_
        from timm.models.registry import register_model

        @register_model
        def tiny(pretrained=False, width=1, drop_rate=None):
            return nn.Linear(width, 1 if drop_rate is None else drop_rate)

        assert create_model("tiny", width=3, drop_rate=None).in_features == 3
        with pytest.raises(ValueError, match="there are: tiny"):
            create_model("huge")
    assert to_2tuple(4) == (4, 4)
    assert to_2tuple((1, 2)) == (1, 2)
    weight = trunc_normal_(torch.empty(1000), std=0.02)
    assert weight.abs().max() < 2
    drop = DropPath(0.25)
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1) / 0.75)}
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert abs(float(y.mean()) - 1) < 0.05
    assert drop.eval()(x) is x


def test_a_published_pattern_imports_from_a_file(no_timm, tmp_path, monkeypatch):
    (tmp_path / "old_model.py").write_text(
        textwrap.dedent("""
        import torch
        from spikingjelly.clock_driven import functional, layer
        from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        from timm.models.registry import register_model
        from einops.layers.torch import Rearrange

        @register_model
        def net():
            return torch.nn.Sequential(
                layer.SeqToANNContainer(torch.nn.Linear(3, 4)),
                MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"),
            )
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    with legacy_imports():
        old_model = importlib.import_module("old_model")
        net = old_model.net()
    monkeypatch.delitem(sys.modules, "old_model")
    assert isinstance(old_model, types.ModuleType)
    y = net(torch.ones(5, 2, 3) * 9)
    assert y.shape == (5, 2, 4)
    old_model.functional.reset_net(net)
    assert net[1].v == 0


def test_surrogates_of_ones_own_are_derived_as_before():
    with legacy_imports():
        from spikingjelly.clock_driven import neuron, surrogate

        class Straight(surrogate.SurrogateFunctionBase):
            """The step, with slope alpha."""

            @staticmethod
            def spiking_function(x, alpha):
                soft = alpha * x
                return soft + (surrogate.heaviside(x) - soft).detach()

        node = neuron.MultiStepLIFNode(tau=2.0, surrogate_function=Straight(0.5))
    x = torch.randn(5, 2, 3, requires_grad=True)
    s = node(x)
    s.sum().backward()
    assert set(s.unique().tolist()) <= {0.0, 1.0}
    assert x.grad.abs().sum() > 0
    assert surrogate.heaviside(torch.tensor([-1.0, 0.0, 2.0])).tolist() == [0.0, 1.0, 1.0]
