"""Old recurrent nets, models, converter and operations: on 0.0.0.0.14 its own, on 2.0.0 ours, the same laws."""

from __future__ import annotations

import copy
import importlib
import importlib.util

import pytest
import torch
from spikingjelly.activation_based import functional
from test_legacy import OLD
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.swap.legacy import legacy_imports
from msf_pmsn_plugins.swap.legacy.originals import ORIGINALS
from tolerances import assert_same

# Recurrent nets -------------------------------------------------------------------------------------------------------


def lstm(**settings):
    torch.manual_seed(0)
    with legacy_imports():
        from spikingjelly.clock_driven import rnn

        net = rnn.SpikingLSTM(4, 6, **settings)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    return net


@pytest.mark.parametrize("layers", [1, 3])
def test_a_layer_of_a_one_way_lstm_takes_the_last_step_of_the_layer_before_it(layers):
    net, x = lstm(num_layers=layers), torch.randn(6, 2, 4)
    h, c = torch.zeros(layers, 2, 6), torch.zeros(layers, 2, 6)
    expected, largest = [], 0.0
    for x_t in x:
        before, h, c = h, h.clone(), c.clone()
        for i, cell in enumerate(net.cells):
            gates = cell.linear_ih(x_t if i == 0 else before[i - 1]) + cell.linear_hh(before[i])
            a, f, g, o = (gates >= 0).float().chunk(4, dim=1)
            c[i] = c[i] * f + a * g
            h[i] = c[i] * o
        largest = max(largest, float(c.max()))
        expected.append(h[-1])
    y, states = net(x)
    assert_same(y.detach(), torch.stack(expected))
    assert largest > 1  # a cell is not held at 1
    assert [tuple(s.shape) for s in states] == [(1, layers, 2, 6)] * 2
    assert_same(states[0][0].detach(), h)


def test_recurrent_nets_go_on_from_their_states_and_train():
    net, x = lstm(num_layers=2), torch.randn(6, 2, 4, requires_grad=True)
    whole, _ = net(x)
    first, (h, c) = net(x[:4])
    last, _ = net(x[4:], (h[0], c[0]))
    assert_same(torch.cat([first, last]).detach(), whole.detach())
    whole.sum().backward()
    assert x.grad.abs().sum() > 0
    two_way, _ = lstm(num_layers=2, bidirectional=True)(x)
    assert two_way.shape == (6, 2, 12)


# Models ---------------------------------------------------------------------------------------------------------------


NETS = {
    "sew_resnet": ("sew_resnet18", {"cnf": "ADD"}),
    "spiking_resnet": ("spiking_resnet18", {}),
    "spiking_vgg": ("spiking_vgg11_bn", {"norm_layer": nn.BatchNorm2d}),
}


def models(name, T=None):
    """A net in multi-step and in single-step form, with the same weights."""
    made, settings = NETS[name]
    torch.manual_seed(0)
    with legacy_imports():
        module = importlib.import_module(f"spikingjelly.clock_driven.model.{name}")
        neuron = importlib.import_module("spikingjelly.clock_driven.neuron")
        many = getattr(module, f"multi_step_{made}")(
            pretrained=False,
            progress=True,
            T=T,
            multi_step_neuron=neuron.MultiStepIFNode,
            num_classes=3,
            **settings,
        )
        one = getattr(module, made)(single_step_neuron=neuron.IFNode, num_classes=3, **settings)
    with torch.no_grad():
        for module in many.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(0.2, 0.6)
    one.load_state_dict(many.state_dict())
    return many, one


@pytest.mark.parametrize("name", NETS)
def test_a_model_steps_as_it_runs_through_a_sequence(name):
    many, one = (net.eval() for net in models(name))
    x_seq = 2 * torch.rand(2, 1, 3, 32, 32)
    with torch.no_grad():
        y_seq = many(x_seq)
        steps = torch.stack([one(x) for x in x_seq])
    assert y_seq.shape == (2, 1, 3)
    torch.testing.assert_close(y_seq, steps)
    assert not torch.equal(y_seq[0], y_seq[1])


@pytest.mark.parametrize("name", NETS)
def test_a_static_input_is_seen_once_and_repeated(name):
    (still, one), x = models(name, T=2), 2 * torch.rand(2, 3, 32, 32)
    moving, again = copy.deepcopy(still).eval(), copy.deepcopy(still).eval()
    y = still(x)
    assert y.shape == (2, 2, 3)
    norm = next(m for m in still.modules() if isinstance(m, nn.BatchNorm2d))
    conv = next(m for m in one.modules() if isinstance(m, nn.Conv2d))
    seen = conv(x).detach()
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * seen.var((0, 2, 3)))
    with torch.no_grad():
        torch.testing.assert_close(moving(torch.stack([x, x])), again(x))


def test_an_old_model_is_swapped():
    net, _ = models("sew_resnet", T=3)
    x = 2 * torch.rand(2, 3, 32, 32)
    plan = swap.plan(net, x, swap.MSF(D=1, backend="torch"))
    assert {s.verdict for s in plan.sites} == {"ok"}
    functional.reset_net(net)
    before = net.eval()(x).detach()
    functional.reset_net(net)
    assert_same(plan.apply()(x).detach(), before)
    assert swap.verify(net, x, plan=plan).ok


def test_a_trained_net_is_converted():
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    x = torch.rand(4, 1, 6, 6)
    with legacy_imports():
        from spikingjelly.clock_driven import ann2snn

        net = ann2snn.Converter(mode="max", dataloader=[(x, 0)])(ann)
    with torch.no_grad():
        mean = torch.stack([net(x) for _ in range(128)]).mean(0)
        torch.testing.assert_close(mean, ann(x), atol=0.05, rtol=0.05)


# Operations -----------------------------------------------------------------------------------------------------------


def test_operations_on_spikes():
    with legacy_imports():
        from spikingjelly.clock_driven import accelerating

        v, s = torch.randn(5, 4, requires_grad=True), (torch.rand(5, 4) > 0.5).float().requires_grad_()
        for found, expected in (
            (accelerating.add(v, s), v + s),
            (accelerating.sub(v, s), v - s),
            (accelerating.mul(v, s), v * s),
            (accelerating.mul(s, s, x_is_spike=True), s * s),
            (accelerating.soft_voltage_transform(v, s, 0.5), v - 0.5 * s),
            (accelerating.hard_voltage_transform(v, s, -0.25), (1 - s) * v - 0.25 * s),
        ):
            assert_same(found.detach(), expected.detach())
            grads = [
                torch.autograd.grad(y.square().sum(), (v, s), allow_unused=True) for y in (found, expected)
            ]
            for mine, its in zip(*grads, strict=True):
                assert (mine is None) == (its is None)
                if mine is not None:
                    assert_same(mine, its)
        assert_same(accelerating.add(v, s.bool()).detach(), (v + s).detach())


# What is not offered --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not OLD, reason="only this SpikingJelly has the originals")
@pytest.mark.parametrize("part", [part for part in ORIGINALS if part != "cext.neuron"])
def test_what_is_recommended_is_there(part):
    module = importlib.import_module(f"spikingjelly.{part}")
    missing = [
        name
        for name in ORIGINALS[part].split()
        if not hasattr(module, name) and not exists(f"{module.__name__}.{name}")
    ]
    assert not missing


def exists(name):
    return importlib.util.find_spec(name) is not None


@pytest.mark.skipif(OLD, reason="this SpikingJelly has the originals")
@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("clock_driven", "spike_op", "use SpikingJelly 0.0.0.0.14"),
        ("clock_driven.model", "parametric_lif_net", "use SpikingJelly 0.0.0.0.14"),
        ("clock_driven.layer", "NeuNorm", "use SpikingJelly 0.0.0.0.14"),
        ("clock_driven.neuron", "PSN", "SpikingJelly 0.0.0.0.14 has none either"),
        ("clock_driven.accelerating", "ModelPipeline", "SpikingJelly 0.0.0.0.14 has none either"),
        ("cext.neuron", "LIFStep", "use SpikingJelly 0.0.0.0.12"),
        ("cext.neuron", "EIFNode", "SpikingJelly 0.0.0.0.12 has none either"),
    ],
)
def test_a_message_recommends_no_version_that_lacks_the_thing(module, name, text):
    with legacy_imports(), pytest.raises(ImportError, match=text):
        getattr(importlib.import_module(f"spikingjelly.{module}"), name)
