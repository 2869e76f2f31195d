"""Swapping neurons in built models: D = 1, PMSN, adapters. Runs on SpikingJelly 2.0.0 and, again, on 0.0.0.0.14."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import adapters, swap
from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from swap_models import Small, gradients, new_zoo, sew, spikformer
from tolerances import assert_same

# D = 1 changes nothing ---------------------------------------------------------------------------------------


ZOO = {
    "sew_resnet18_if": lambda: sew(neuron.IFNode),
    "sew_resnet18_lif": lambda: sew(neuron.LIFNode, tau=1.7),
    "sew_resnet18_plif": lambda: sew(neuron.ParametricLIFNode),
    "sew_resnet18_soft": lambda: sew(neuron.IFNode, v_reset=None, surrogate_function=surrogate.Sigmoid()),
    "spikformer_cifar10": spikformer,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=new_zoo if n == "spikformer_cifar10" else ()) for n in ZOO]
)
def test_d1_under_site_dynamics_is_bit_identical(name, image):
    net = ZOO[name]()
    # Other backends compute exp, which sigmoid needs, with another last bit.
    swapped = swap.msf(copy.deepcopy(net), image, D=1, backend="torch")
    assert any(isinstance(m, MSFNode) for m in swapped.modules())
    y, gx, grads = gradients(net, image)
    y_new, gx_new, grads_new = gradients(swapped, image)
    assert y.abs().sum() > 0
    assert_same(y_new, y)
    assert_same(gx_new, gx)
    assert gx.abs().sum() > 0
    for key, grad in grads.items():
        if key.endswith(".w"):  # PLIF's own parameter: summed in another order
            torch.testing.assert_close(
                grads_new[key.removesuffix("w") + "neuron.w"], grad, rtol=1e-4, atol=1e-5
            )
        else:
            assert_same(grads_new[key], grad)
    net.eval(), swapped.eval()
    functional.reset_net(net), functional.reset_net(swapped)
    with torch.no_grad():
        assert_same(swapped(image), net(image))


def test_site_settings_are_carried_over(x_seq):
    sg = surrogate.Sigmoid(alpha=3.0)
    net = Small(lambda: neuron.LIFNode(2.5, False, 0.6, -0.2, sg, True, step_mode="m", store_v_seq=True))
    swap.msf(net, x_seq, D=3, threshold_step=0.5)
    node = net.first[1]
    assert (node.D, node.threshold_step, node.tau, node.v_threshold, node.v_reset) == (3, 0.5, 2.5, 0.6, -0.2)
    assert node.detach_reset
    assert node.store_v_seq
    assert node.step_mode == "m"
    assert node.surrogate_function.alpha == 3.0
    assert node.neuron.thresholds == [0.6, 1.1, 1.6]


def test_published_dynamics_take_the_papers_neuron(small, x_seq):
    swap.msf(small, x_seq, dynamics="published")
    fresh = MSFNode.published(step_mode="m")
    x = torch.randn(6, 2, 3) * 2
    assert_same(small.first[1](x), fresh(x))


def test_higher_d_only_adds_to_the_first_layer(x_seq):
    """Same fire mask at every D: the reset looks at the first threshold only."""
    net = Small(lambda: neuron.IFNode(step_mode="m"))
    one = net.first(4 * x_seq)
    swap.msf(net, x_seq, D=4)
    four = net.first(4 * x_seq)
    assert_same((four > 0).float(), one)
    assert four.max() > 1


# PMSN ----------------------------------------------------------------------------------------------------------


def test_sew_resnet_with_pmsn_has_the_papers_parameters(image):
    net = sew()
    keys = {k: v.clone() for k, v in net.state_dict().items()}
    plan = swap.plan(net, image, swap.PMSN(compartments=5))
    assert [s.verdict for s in plan.sites] == ["ok"] * 20
    assert {s.channel_dim for s in plan.sites} == {1}
    assert plan.apply() is net
    assert sum(p.numel() for p in net.parameters()) == 11_814_312
    after = net.state_dict()
    assert {k for k in after if ".neuron." not in k} == set(keys)
    for key, value in keys.items():
        assert_same(after[key], value)
    y, _, grads = gradients(net, image)
    assert y.isfinite().all()
    assert all(g is not None and g.isfinite().all() for g in grads.values())


@new_zoo
def test_spikformer_with_pmsn_finds_every_width(image):
    net = spikformer()
    plan = swap.plan(net, image, swap.PMSN())
    assert [s.verdict for s in plan.sites] == ["ok"] * 15
    axes = {
        s.path.rpartition(".")[2]: (s.channel_dim, s.channels)
        for s in plan.sites
        if s.path.startswith("blocks.0")
    }
    # attention hands over [N, heads, head width, L]: heads times width is the embedding
    assert axes == {
        "qkv_lif": (1, 192),
        "attn_lif": ((1, 2), 64),
        "proj_lif": (1, 64),
        "neuron1": (1, 256),
        "neuron2": (1, 64),
    }
    y, _, grads = gradients(plan.apply(), image)
    assert y.isfinite().all()
    assert all(g is not None for g in grads.values())


def test_pmsn_takes_threshold_and_step_mode(x_seq):
    net = Small(lambda: neuron.LIFNode(v_threshold=0.5, step_mode="m"))
    swap.pmsn(net, x_seq, compartments=3)
    node = net.first[1]
    assert (node.v_threshold, node.step_mode, node.channels, node.neuron.compartments) == (0.5, "m", 10, 3)


def test_single_step_models_are_swapped_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 7, 3, padding=1), neuron.IFNode(), nn.AvgPool2d(2), neuron.IFNode())
    net = swap.pmsn(net, torch.rand(2, 1, 8, 8))
    assert [m.channels for m in net if isinstance(m, PMSNNode)] == [7, 7]
    assert net(torch.rand(3, 1, 6, 6)).shape == (3, 7, 3, 3)


@pytest.mark.parametrize("batch", [6, 10])
def test_a_batch_as_large_as_the_channels_does_not_confuse(small, batch):
    plan = swap.plan(small, torch.randn(10, batch, 6), swap.PMSN())
    assert [(s.channel_dim, s.channels) for s in plan.sites[:2]] == [(1, 10), (1, 8)]


def test_samples_stay_apart_after_the_swap(image):
    """The control: sample 0's own logits move when it changes; the other sample's must not."""
    net = swap.pmsn(sew(), image)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one pass gives running statistics under which every layer spikes
    net(image)
    functional.reset_net(net.eval())
    with torch.no_grad():
        y = net(image)
        other = image.clone()
        other[:, 0] = torch.rand_like(other[:, 0])
        functional.reset_net(net)
        y_other = net(other)
    assert not torch.equal(y[:, 0], y_other[:, 0])
    torch.testing.assert_close(y[:, 1], y_other[:, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", [swap.MSF(), swap.PMSN()])
def test_the_swapped_model_takes_other_sizes(target, image):
    net = swap.plan(sew(), image, target).apply().eval()
    for shape in ((3, 5, 3, 32, 32), (2, 2, 3, 32, 32), (3, 2, 3, 48, 40)):
        functional.reset_net(net)
        assert net(torch.rand(shape)).shape == (*shape[:2], 1000)


# Adapters ----------------------------------------------------------------------------------------------------------


def test_recipes_are_found_and_build(image):
    assert {"sew_resnet", "spikformer"} <= set(adapters.recipes())
    with pytest.raises(KeyError, match="sew_resnet"):
        adapters.get("sew_resnets")
    for name in adapters.RECIPES:
        recipe = adapters.get(name)
        assert recipe.name == name
        for path in recipe.models:
            module, _, constructor = path.partition(":")
            if not framework.FUNCTIONAL and importlib.util.find_spec(module) is None:
                continue  # came with SpikingJelly 2.0.0
            assert callable(getattr(importlib.import_module(module), constructor))


def test_recipes_of_other_packages_are_found(monkeypatch):
    foreign = adapters.Recipe(name="foreign", source="elsewhere")

    class Entry:
        name = "foreign"

        def load(self):
            return foreign

    monkeypatch.setattr(adapters, "entry_points", lambda group: [Entry()])
    assert "foreign" in adapters.recipes()
    assert adapters.get("foreign") is foreign


def test_param_groups_find_the_swapped_neurons(image):
    from msf_pmsn_plugins.optim import param_groups

    net = swap.pmsn(sew(), image)
    groups = param_groups(net, lr=1e-1, neuron_lr=1e-3, weight_decay=0.0, recipe="imagenet")
    assert sum(p.numel() for g in groups for p in g["params"]) == 11_814_312
    channels = sum(m.channels for m in net.modules() if isinstance(m, PMSN))
    by_rate = {g["lr"]: sum(p.numel() for p in g["params"]) for g in groups}
    assert by_rate[1e-2] == 4 * channels  # A_imag at ten times the neuron rate
