"""Nothing is left unsaid: neurons that stay, the output, new parameters, wrappers. On both hosts."""

from __future__ import annotations

import warnings

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode

X = torch.rand(4, 2, 8)


class LIFSpike(nn.Module):
    """Looks like a neuron, with a module inside."""

    def __init__(self):
        super().__init__()
        self.act = nn.Identity()

    def forward(self, x):
        return (self.act(x) >= 1.0).float()


class Gate(nn.Module):
    """Has a threshold, and no name that says so."""

    def __init__(self):
        super().__init__()
        self.thresh = 1.0

    def forward(self, x):
        return (x >= self.thresh).float()


class SpikeBlock(nn.Sequential):
    """A part of a network."""


def lif():
    return neuron.LIFNode(step_mode="m")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (LIFSpike, ["LIFSpike at 2"]),
        (Gate, ["Gate at 2"]),
        (lambda: SpikeBlock(nn.Linear(8, 8)), []),
        (lambda: SpikeBlock(lif(), LIFSpike()), ["LIFSpike at 2.1"]),
        (lambda: torch.jit.script(Scripted()), ["ScriptedLIF at 2"]),
        (lambda: MSFNode(step_mode="m"), []),
    ],
    ids=["name", "threshold", "block", "inside", "scripted", "ours"],
)
def test_what_looks_like_a_neuron_and_stays_is_named(make, named):
    plan = swap.plan(nn.Sequential(lif(), nn.Linear(8, 8), make()), X, swap.MSF(D=1))
    found = [text.split(" looks like")[0] for text in plan.warnings if "looks like a neuron" in text]
    assert found == named
    assert all(name in str(plan) for name in named)


class ScriptedLIF(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x >= 1.0).to(x.dtype)


Scripted = ScriptedLIF


def test_a_net_with_no_known_neuron_says_which_classes_to_name():
    net = nn.Sequential(nn.Linear(8, 8), LIFSpike(), Gate())
    with pytest.raises(
        swap.SwapError, match=r"If Gate, LIFSpike are neurons, name the classes: neuron_classes"
    ):
        swap.plan(net, X, swap.MSF(D=4))
    plan = swap.plan(
        nn.Sequential(nn.Linear(8, 8), Gate()), X, swap.MSF(D=4), neuron_classes={Gate: swap.Activation()}
    )
    assert plan.apply()[1] is not None


def test_the_site_of_the_output_is_marked():
    net = nn.Sequential(layer.Linear(8, 8), lif(), layer.Linear(8, 4), lif())
    plan = swap.plan(net, X, swap.MSF(D=4))
    assert [s.gives_output for s in plan.sites] == [False, True]
    assert "3 (output)" in str(plan)
    assert any("3 gives the model's output: it becomes counts 0..4" in text for text in plan.warnings)
    assert not any("output" in text for text in swap.plan(net, X, swap.MSF(D=1)).warnings)
    headed = nn.Sequential(layer.Linear(8, 8), lif(), layer.Linear(8, 4))
    assert not any(s.gives_output for s in swap.plan(headed, X, swap.MSF(D=4)).sites)


def test_one_call_warns_as_the_plan_does():
    net = nn.Sequential(layer.Linear(8, 8), lif())
    plan = swap.plan(net, X, swap.PMSN(compartments=3))
    with pytest.warns(swap.SwapWarning) as said:
        swap.pmsn(net, X, compartments=3)
    assert [str(warning.message) for warning in said] == plan.all_warnings()
    assert said[0].filename == __file__
    new = sum(p.numel() for p in net[1].parameters())
    assert any(f"bring {new} parameters, which are in no optimizer" in str(w.message) for w in said)


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    net = nn.Sequential(layer.Linear(8, 8), lif())
    with warnings.catch_warnings():
        warnings.simplefilter("error", swap.SwapWarning)
        with pytest.raises(swap.SwapWarning):
            swap.pmsn(net, X)
    assert type(net[1]) is neuron.LIFNode


def test_one_call_takes_what_a_plan_takes():
    net = nn.Sequential(layer.Linear(8, 8), lif(), layer.Linear(8, 8), Gate())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", swap.SwapWarning)
        swap.msf(
            net,
            X,
            D=4,
            rules={"1": swap.Keep()},
            neuron_classes={Gate: swap.Activation()},
            time_dim=0,
            filter_fn=lambda module, path: True,
        )
    assert type(net[1]) is neuron.LIFNode
    assert isinstance(net[3].node, MSFNode)


# Wrappers -------------------------------------------------------------------------------------------------------------


def net():
    return nn.Sequential(layer.Linear(8, 8), lif())


def compiled_in_place():
    model = net()
    model.compile(backend="eager")
    return model


WRAPPED = {
    "DataParallel": (lambda: nn.DataParallel(net()), "wrapped in DataParallel"),
    "compiled": (lambda: torch.compile(net(), backend="eager"), "wrapped in OptimizedModule"),
    "compiled_in_place": (compiled_in_place, "compiled"),
    "inside": (lambda: nn.Sequential(nn.Identity(), nn.DataParallel(net())), "1 is wrapped in DataParallel"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_are_refused(name):
    make, text = WRAPPED[name]
    with pytest.raises(swap.SwapError, match=f"{text} already.*swap first, then wrap"):
        swap.plan(make(), X, swap.PMSN())


def test_a_wrapped_part_without_neurons_is_no_concern():
    model = nn.Sequential(nn.DataParallel(nn.Linear(8, 8)), lif())
    swap.plan(model, X, swap.MSF(D=4)).apply()
    assert isinstance(model[1], MSFNode)
    nn.DataParallel(model)  # swapped first, then wrapped
