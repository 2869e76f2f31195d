"""The self-check of a swap catches wrong swaps that are finite, have gradients and the right keys."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins import swap
from msf_pmsn_plugins.neurons import Neuron
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from msf_pmsn_plugins.swap.around import Around
from recipes_standins import SEW, STANDINS, Repeating, Spikformer, Stepping
from tolerances import assert_same


class Net(nn.Module):
    """[T, N, 2, H, W] -> [N, 5]: two convolutions with norms and neurons, a mean over pixels and time."""

    def __init__(self, make=lambda: neuron.LIFNode(step_mode="m", detach_reset=True)):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = (
            layer.Conv2d(2, 6, 3, padding=1, step_mode="m"),
            layer.BatchNorm2d(6, step_mode="m"),
        )
        self.lif1 = make()
        self.conv2, self.bn2 = (
            layer.Conv2d(6, 8, 3, padding=1, step_mode="m"),
            layer.BatchNorm2d(8, step_mode="m"),
        )
        self.lif2 = make()
        self.fc = nn.Linear(8, 5)

    def forward(self, x_seq):
        x = self.lif1(self.bn1(self.conv1(x_seq)))
        x = self.lif2(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(3).mean(3)).mean(0)


@pytest.fixture
def x_seq():
    """T, N, H and W are all different, as in a careless example they are not."""
    return torch.rand(4, 3, 2, 9, 7, generator=torch.Generator().manual_seed(1))


def status(report):
    return {c.name: c.status for c in report.checks}


GOOD = {
    "runs": "pass",
    "other batch size": "pass",
    "other T": "pass",
    "other height and width": "pass",
    "samples stay apart": "pass",
    "reset": "pass",
    "gradients": "pass",
    "state dict": "pass",
}


def planted(node):
    """A net with ``node()`` in place of its second neuron; what a hand-made swap looks like."""
    net = Net()
    net.lif2 = node()
    return net


def looks_fine(net, x_seq):
    """What people check by hand: the output is finite, every parameter has a gradient."""
    y = copy.deepcopy(net)
    out = y(x_seq)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in y.parameters())


@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN(compartments=3)], ids=["msf", "pmsn"])
def test_right_swaps_hold(target, x_seq):
    net = Net()
    plan = swap.plan(net, x_seq, target)
    plan.apply()
    assert status(swap.verify(net, x_seq, plan=plan)) == GOOD
    alone = swap.verify(net, x_seq)
    assert alone.ok
    assert status(alone) == {**GOOD, "state dict": "skip"}


# Wrong swaps ----------------------------------------------------------------------------------------------------------


class BatchAsTime(nn.Module):
    """The node sees [N, T, ...]: time on the batch."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def forward(self, x_seq):
        return self.node(x_seq.transpose(0, 1)).transpose(0, 1)


class ChannelsOnBatch(nn.Module):
    """The node's channel axis is the batch."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def forward(self, x_seq):
        return self.node(x_seq.transpose(1, 2)).transpose(1, 2)


WRONG = {
    "channel_axis_on_the_batch": (
        lambda: ChannelsOnBatch(PMSNNode(3, 3, channel_dim=1, step_mode="m")),
        {"other batch size"},
        "PMSN.*channel",
    ),
    "channel_axis_on_the_height": (
        lambda: PMSNNode(9, 3, channel_dim=2, step_mode="m"),
        {"other height and width"},
        "lif2",
    ),
    "channel_axis_on_the_width": (
        lambda: PMSNNode(7, 3, channel_dim=3, step_mode="m"),
        {"other height and width"},
        "lif2",
    ),
    "time_on_the_batch_msf": (
        lambda: BatchAsTime(MSFNode.published(step_mode="m")),
        {"other batch size", "other T", "samples stay apart"},
        "time of the neuron follows the batch of the input: lif2",
    ),
    "time_on_the_batch_pmsn": (
        lambda: BatchAsTime(PMSNNode(8, 3, step_mode="m")),
        {"other batch size", "other T", "samples stay apart"},
        "time of the neuron follows the batch of the input: lif2",
    ),
    "time_on_the_batch_by_our_wrapper": (
        lambda: Around(PMSNNode(8, 3, step_mode="m"), time_dim=1),
        {"other batch size", "other T", "samples stay apart"},
        "exchanging one sample moved the output of another by",
    ),
    "batch_folded_into_time": (
        lambda: Folded(PMSNNode(8, 3, step_mode="m")),
        {"other batch size", "samples stay apart"},
        "exchanging one sample moved",
    ),
}


class Folded(nn.Module):
    """[T*N, ...] into a multi-step node."""

    def __init__(self, node):
        super().__init__()
        self.node = node

    def forward(self, x_seq):
        return self.node(x_seq.flatten(0, 1).unsqueeze(1)).squeeze(1).unflatten(0, x_seq.shape[:2])


@pytest.mark.parametrize("name", WRONG)
def test_planted_wrong_swaps_are_caught(name, x_seq):
    make, expected, text = WRONG[name]
    net = planted(make)
    looks_fine(net, x_seq)
    report = swap.verify(net, x_seq)
    assert {c.name for c in report.checks if c.status == "fail"} == expected
    assert not report.ok
    with pytest.raises(swap.SwapError, match=text):
        swap.verify(net, x_seq, raise_on_failure=True)


@pytest.mark.skipif(not framework.FUNCTIONAL, reason="SpikingJelly 0.0.0.0.14 caches no modules")
def test_a_stale_reset_cache_is_caught(x_seq):
    """Modules set by hand after the first reset_net, the old ones alive: nobody resets the new ones."""
    net = Net()
    functional.reset_net(net)
    old = net.lif2
    net.lif2 = MSFNode.published(step_mode="m")
    looks_fine(net, x_seq)
    report = swap.verify(net, x_seq)
    assert status(report) == {**GOOD, "reset": "fail", "state dict": "skip"}
    assert "the host's reset does not reach lif2" in report["reset"].detail
    functional.invalidate_reset_cache(net)
    assert swap.verify(net, x_seq).ok
    assert isinstance(old, neuron.LIFNode)


def test_a_node_that_nothing_resets_is_caught(x_seq):
    class Unreset(PMSNNode):
        def reset(self):
            pass

    report = swap.verify(planted(lambda: Unreset(8, 3, step_mode="m")), x_seq)
    assert status(report)["reset"] == "fail"


def test_a_state_outside_of_the_node_is_caught(x_seq):
    class Growing(nn.Module):
        def __init__(self):
            super().__init__()
            self.node, self.gain = PMSNNode(8, 3, step_mode="m"), 1.0

        def forward(self, x_seq):
            self.gain += 1.0
            return self.node(self.gain * x_seq)

    net = planted(Growing)
    report = swap.verify(net, x_seq)
    assert report["reset"].detail == "two runs with a reset between them differ"
    assert net.lif2.gain == 1.0


def test_parameters_without_a_gradient_are_caught(x_seq):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = PMSNNode(8, 3, step_mode="m")

        def forward(self, x_seq):
            return self.node(x_seq).detach() + 0 * x_seq

    report = swap.verify(planted(Detached), x_seq)
    assert status(report)["gradients"] == "fail"
    assert "no gradient reaches lif2.node.neuron" in report["gradients"].detail

    class Broken(PMSNNode):
        def forward(self, x_seq):
            return super().forward(x_seq) * (self.neuron.D.reshape(-1, 1, 1) - 1).sqrt()

    assert not swap.verify(planted(lambda: Broken(8, 3, step_mode="m")), x_seq).ok


def test_a_branch_that_starts_at_zero_is_no_missing_gradient(x_seq):
    net = swap.pmsn(Net(), x_seq, compartments=3)
    nn.init.zeros_(net.bn2.weight)
    nn.init.zeros_(net.fc.weight)
    assert swap.verify(net, x_seq)["gradients"].status == "pass"
    assert not net.fc.weight.any()


def test_changed_keys_are_caught(x_seq):
    net = Net()
    plan = swap.plan(net, x_seq, swap.PMSN(compartments=3))
    plan.apply()
    net.bn1.register_buffer("more", torch.zeros(3))
    report = swap.verify(net, x_seq, plan=plan)
    assert report["state dict"].status == "fail"
    assert report["state dict"].detail == "keys outside the neurons changed: bn1.more"


def test_a_silent_network_is_unclear_not_right(x_seq):
    net = Net(lambda: MSFNode.published(v_threshold=1e9, step_mode="m"))
    report = swap.verify(net, x_seq)
    assert report["samples stay apart"].status == "unclear"
    assert "the network is silent" in str(report)
    assert not report.ok


def test_a_neuron_that_fails_at_once_is_reported(x_seq):
    report = swap.verify(planted(lambda: PMSNNode(11, 3, step_mode="m")), x_seq)
    assert status(report) == {"runs": "fail", "state dict": "skip"}
    assert report["runs"].detail.startswith("lif2: ")


# What the check leaves alone, and what it does not hold against a swap ----------------------------------------------


def test_verifying_changes_nothing(x_seq):
    net = Net()
    swap.pmsn(net, x_seq, compartments=3)
    net(x_seq)
    net.bn1.eval()
    keys = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    momentum = net.bn1.momentum
    state = [part.clone() for part in net.lif1.carried]
    grads = [p.grad for p in net.parameters()]
    rng = torch.get_rng_state()
    assert swap.verify(net, x_seq).ok
    assert torch.equal(torch.get_rng_state(), rng)
    for key, value in net.state_dict().items():
        assert_same(value, keys[key])
    assert [m.training for m in net.modules()] == modes
    assert net.bn1.momentum == momentum
    for part, before in zip(net.lif1.carried, state, strict=True):
        assert_same(part, before)
    assert [p.grad for p in net.parameters()] == grads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_model_made_for_one_size_is_not_blamed_on_the_swap(x_seq):
    class Fixed(Net):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8 * 9 * 7, 5)

        def forward(self, x_seq):
            x = self.lif1(self.bn1(self.conv1(x_seq)))
            return self.fc(self.lif2(self.bn2(self.conv2(x))).flatten(2)).mean(0)

    net = Fixed()
    plan = swap.plan(net, x_seq, swap.PMSN(compartments=3))
    assert {s.channel_dim for s in plan.sites} == {1}
    plan.apply()
    report = swap.verify(net, x_seq, plan=plan)
    assert report.ok
    assert report["other height and width"].status == "skip"


def test_a_model_of_our_own_steps(x_seq):
    report = swap.verify(swap.pmsn(Stepping(), torch.rand(4, 3, 6)), torch.rand(4, 3, 6))
    assert report.ok, str(report)
    repeated = swap.verify(swap.pmsn(Repeating(), torch.rand(3, 6)), torch.rand(3, 6))
    assert repeated.ok, str(repeated)
    assert repeated["other T"].detail == "the input has no time axis"


def test_the_report_is_data_and_text(x_seq):
    report = swap.verify(swap.pmsn(Net(), x_seq, compartments=3), x_seq)
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["ok"]
    lines = str(report).splitlines()
    assert len(lines) == len(report.checks) + 1
    assert lines[-1] == "the swap holds"
    assert str(swap.verify(planted(WRONG["time_on_the_batch_msf"][0]), x_seq)).endswith(
        "THE SWAP DOES NOT HOLD"
    )


def test_a_model_without_our_neurons_has_nothing_to_verify(x_seq):
    with pytest.raises(swap.SwapError, match="Net has no neuron of msf_pmsn_plugins to verify"):
        swap.verify(Net(), x_seq)


# The zoo ----------------------------------------------------------------------------------------------------------


def small(name):
    torch.manual_seed(0)
    if name == "sew_resnet18":
        net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10)
        functional.set_step_mode(net, "m")
        return net, torch.rand(3, 2, 3, 32, 32)
    if name == "spiking_vgg11_bn":
        from spikingjelly.activation_based.model import spiking_vgg

        net = spiking_vgg.spiking_vgg11_bn(spiking_neuron=neuron.LIFNode, num_classes=10)
        functional.set_step_mode(net, "m")
        net.classifier = nn.Sequential(nn.Flatten(2), nn.Linear(512 * 49, 10))
        return net, torch.rand(2, 2, 3, 32, 32)
    from spikingjelly.activation_based.model import ms_resnet, spikformer

    if name == "ms_resnet18":
        kwargs = {"in_channels": 3, "num_classes": 10, "layers": (1, 1, 1), "base_channels": 8}
        return ms_resnet.MSResNet(T=3, **kwargs), torch.rand(3, 2, 3, 32, 32)
    sizes = {
        "img_size_h": 32,
        "img_size_w": 32,
        "patch_size": 4,
        "embed_dims": 64,
        "num_heads": 4,
        "depths": 1,
    }
    return spikformer.Spikformer(T=3, num_classes=10, **sizes), torch.rand(3, 2, 3, 32, 32)


ZOO = [
    "sew_resnet18",  # on both versions
    pytest.param("spiking_vgg11_bn", marks=pytest.mark.slow),
    *(
        pytest.param(
            n, marks=pytest.mark.skipif(not framework.FUNCTIONAL, reason="came with SpikingJelly 2.0.0")
        )
        for n in ("ms_resnet18", "spikformer")
    ),
]


@pytest.mark.parametrize(
    "target",
    [pytest.param(swap.MSF(D=2), marks=pytest.mark.slow), swap.PMSN(compartments=3)],
    ids=["msf", "pmsn"],
)
@pytest.mark.parametrize("name", ZOO)
def test_right_swaps_of_the_zoo_hold(name, target):
    net, x = small(name)
    plan = swap.plan(net, x, target)
    report = swap.verify(plan.apply(), x, plan=plan)
    assert report.ok, str(report)
    assert {report[c].status for c in ("other batch size", "samples stay apart", "reset")} == {"pass"}


@pytest.mark.parametrize("name", ["spikformer_cifar10", "sew_add"])
def test_a_wrong_rule_is_caught_after_the_fact(name):
    """Rules are taken at their word: here they put the channels on an axis of tokens, of pixels."""
    torch.manual_seed(0)
    net = {"spikformer_cifar10": Spikformer, "sew_add": SEW}[name]()
    x = torch.rand(STANDINS[name].shape)
    plan = swap.plan(
        net, x, swap.PMSN(compartments=3), rules={"re:mlp.*|layer1.0.*": swap.Rule(channel_dim=-1)}
    )
    if name == "spikformer_cifar10":
        plan = swap.plan(net, x, swap.PMSN(compartments=3), rules={"re:mlp.*": swap.Rule(channel_dim=1)})
    report = swap.verify(plan.apply(), x, plan=plan)
    assert report["other height and width"].status == "fail"


def test_nodes_inside_a_verified_net_are_ours(x_seq):
    net = swap.pmsn(Net(), x_seq, compartments=3)
    assert sum(isinstance(m, Neuron) for m in net.modules()) == 2


@pytest.mark.parametrize("compartments", [2, 3, 5])
def test_a_pmsn_of_any_size_holds(compartments, x_seq):
    """One hidden compartment is real: nothing reaches its imaginary parts."""
    report = swap.verify(swap.pmsn(Net(), x_seq, compartments=compartments), x_seq)
    assert report.ok, str(report)


# How often the model runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["plan", "alone"])
@pytest.mark.parametrize("target", [swap.MSF(D=4), swap.PMSN(compartments=3)], ids=["msf", "pmsn"])
def test_at_most_25_forward_passes_unless_told(target, told, x_seq):
    net = Net()
    plan = swap.plan(net, x_seq, target)
    plan.apply()
    counted = []
    net.register_forward_pre_hook(lambda *_: counted.append(1))
    report = swap.verify(net, x_seq, plan=plan if told == "plan" else None)
    assert report.ok
    assert report.passes == len(counted) <= 25
    counted.clear()
    more = swap.verify(net, x_seq, plan=plan, passes=60)
    assert report.passes < more.passes <= 60
    with pytest.raises(ValueError, match="at least 20"):
        swap.verify(net, x_seq, passes=5)


def test_the_bar_is_shown_if_asked_for(x_seq, capsys):
    net = Net()
    swap.plan(net, x_seq, swap.MSF(D=4)).apply()
    swap.verify(net, x_seq)
    assert capsys.readouterr().err == ""
    report = swap.verify(net, x_seq, progress=True)
    assert f"{report.passes} forward passes" in capsys.readouterr().err
