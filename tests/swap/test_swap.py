"""Swapping neurons in built models. Runs on SpikingJelly 2.0.0 and, again, on 0.0.0.0.14."""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import re
import weakref

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from msf_pmsn_plugins import adapters, swap
from msf_pmsn_plugins import spikingjelly as face
from msf_pmsn_plugins.neurons import PMSN
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from msf_pmsn_plugins.spikingjelly import host as host_of_nodes
from tolerances import assert_same

new_zoo = pytest.mark.skipif(not face.FUNCTIONAL, reason="Spikformer came with SpikingJelly 2.0.0")


def sew(node=neuron.LIFNode, cnf="ADD", **kwargs):
    """The zoo's SEW ResNet-18, multi-step."""
    torch.manual_seed(0)
    kwargs = {"surrogate_function": surrogate.ATan(), "detach_reset": True, **kwargs}
    net = sew_resnet.sew_resnet18(cnf=cnf, spiking_neuron=node, **kwargs)
    functional.set_step_mode(net, "m")
    return net


def spikformer():
    from spikingjelly.activation_based.model.spikformer import Spikformer

    torch.manual_seed(0)
    sizes = {
        "img_size_h": 32,
        "img_size_w": 32,
        "patch_size": 4,
        "embed_dims": 64,
        "num_heads": 4,
        "depths": 2,
    }
    return Spikformer(T=4, num_classes=10, **sizes)


NEW = "the new neurons bring {} parameters, which are in no optimizer made before: make the optimizer after the swap"


@pytest.fixture
def image():
    return torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """Linear, norm, neuron, twice: [T, N, 6] -> [N, 4]; the second neuron is shared, the third never called."""

    def __init__(self, make=lambda: neuron.LIFNode(detach_reset=True, step_mode="m")):
        super().__init__()
        self.first = nn.Sequential(layer.Linear(6, 10), make())
        self.second = nn.Sequential(layer.Linear(10, 8), make())
        self.unused = make()
        self.head = layer.Linear(8, 4)

    def forward(self, x_seq):
        return self.head(self.second(self.first(x_seq))).mean(0)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def x_seq():
    return torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(2)) * 2


def gradients(net, x):
    net.zero_grad()
    functional.reset_net(net)
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.arange(1.0, y.shape[-1] + 1)).sum().backward()
    return y.detach(), x.grad, {n: p.grad for n, p in net.named_parameters()}


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


# The plan --------------------------------------------------------------------------------------------------------


def test_planning_changes_nothing(small, x_seq):
    small(x_seq)  # leaves a state behind
    small.train()
    small.second.eval()
    net = nn.Sequential(small)
    norm = layer.BatchNorm1d(4)
    net.append(norm)
    before = copy.deepcopy(net.state_dict())
    states = [m.v for m in small.modules() if isinstance(m, neuron.BaseNode)]
    modes = [m.training for m in net.modules()]
    rng = torch.get_rng_state()
    swap.plan(small, x_seq, swap.PMSN())
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in net.modules()] == modes
    assert all(
        a is b
        for a, b in zip(states, [m.v for m in small.modules() if isinstance(m, neuron.BaseNode)], strict=True)
    )
    for key, value in net.state_dict().items():
        assert_same(value, before[key])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_buffers_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x_seq):
            self.calls += 1
            return self.node(x_seq)

    net = Counting()
    swap.plan(net, torch.rand(3, 2, 4), swap.MSF())
    assert net.calls == 0


def test_uncalled_and_readout_neurons_stay(small, x_seq):
    small.second[1].v_threshold = float("inf")
    plan = swap.plan(small, x_seq, swap.PMSN())
    assert [s.verdict for s in plan.sites] == ["ok", "readout", "never called"]
    plan.apply()
    assert isinstance(small.first[1], PMSNNode)
    assert isinstance(small.second[1], neuron.LIFNode)
    assert isinstance(small.unused, neuron.LIFNode)
    small.state_dict()  # a lazy neuron nobody calls would raise here


def test_shared_neurons_stay_shared(x_seq):
    net = Small()
    net.unused = net.first[1]
    swap.msf(net, x_seq)
    assert net.unused is net.first[1]
    assert isinstance(net.unused, MSFNode)


def test_a_neuron_called_twice_is_refused(x_seq):
    class Twice(Small):
        def forward(self, x_seq):
            return self.first[1](self.first(x_seq))

    with pytest.raises(swap.SwapError, match=r"first\.1: called more than once"):
        swap.pmsn(Twice(), x_seq)


def test_rules_and_filter(small, x_seq):
    plan = swap.plan(
        small, x_seq, swap.MSF(D=4), rules={"first.1": swap.Keep(), "re:second.*": swap.PMSN(compartments=3)}
    )
    assert [s.verdict for s in plan.sites] == ["keep", "ok", "never called"]
    plan.apply()
    assert isinstance(small.first[1], neuron.LIFNode)
    assert small.second[1].neuron.compartments == 3
    net = Small()
    swap.plan(net, x_seq, swap.MSF(), filter_fn=lambda module, path: path.startswith("second")).apply()
    assert isinstance(net.first[1], neuron.LIFNode)
    assert isinstance(net.second[1], MSFNode)
    with pytest.raises(swap.SwapError, match=r"'re:third.*'.*first\.1"):
        swap.plan(net, x_seq, swap.MSF(), rules={"re:third.*": swap.Keep()})


def test_the_printed_plan(small, x_seq):
    lines = [re.split("  +", line) for line in str(swap.plan(small, x_seq, swap.PMSN())).splitlines()]
    assert lines[0] == [
        "neuron",
        "now",
        "becomes",
        "one step",
        "channels",
        "verdict",
    ]  # no column says nothing
    assert lines[2] == ["first.1", "LIFNode", "PMSN(5)", "5 x [3, 10]", "10 on axis 1 (2 with time)", "ok"]
    assert lines[4] == ["unused", "LIFNode", "(stays)", "-", "-", "never called"]
    layout = "input [5, 3, 6]: time on axis 0, batch on axis 1"
    assert lines[5:] == [
        [f"3 neurons: 2 ok, 1 never called; dynamics='site'; {layout}"],
        ["", "keeps at all 2: v_threshold=1.0, step_mode='m'"],
        ["", "sets at all 2: compartments=5, init='sequence', backend='auto'"],
        ["", "unused: never called: the forward pass does not reach it: it stays"],
        ["", f"warning: {NEW.format(468)}"],
    ]
    data = swap.plan(small, x_seq, swap.PMSN()).to_dict()
    assert json.loads(json.dumps(data))["sites"][0]["channels"] == 10


def test_ambiguous_axes_need_a_rule():
    """[N, 6, 6] after a layer whose width says nothing: either axis could be the channels."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")

        def forward(self, x_seq):
            return self.node(x_seq.unsqueeze(2).expand(-1, -1, 6, -1))

    x = torch.rand(4, 2, 6)
    with pytest.raises(swap.SwapError, match=r"node: ambiguous.*channel_dim"):
        swap.pmsn(Square(), x)
    net = swap.plan(Square(), x, swap.PMSN(), rules={"node": swap.PMSN(channel_dim=2)}).apply()
    assert net.node.channels == 6
    with pytest.raises(swap.SwapError, match="no channel axis"):
        swap.pmsn(Square(), x, channel_dim=5)


def test_time_folded_into_the_batch_is_seen():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")

        def forward(self, x_seq):
            return self.node(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])

    with pytest.raises(
        swap.SwapError, match=r"node: batch folded into time: axis 0 .* is T\*B = 4\*3.*'fix'"
    ):
        swap.msf(Folded(), torch.rand(4, 3, 5))


# The reset cache, what raises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_liner", [swap.msf, swap.pmsn])
def test_reset_net_reaches_the_new_neurons(one_liner, small, x_seq):
    functional.reset_net(small)  # 2.0.0 caches the module list here
    old = [m for m in small.modules() if isinstance(m, neuron.BaseNode)]  # kept alive on purpose
    x_seq = x_seq.abs()
    one_liner(small, x_seq)
    y = small(x_seq)
    functional.reset_net(small)
    assert_same(small(x_seq), y)
    assert len(old) == 3


def test_nothing_to_swap_raises(small, x_seq):
    with pytest.raises(swap.SwapError, match="no neuron to swap"):
        swap.msf(nn.Linear(6, 4), x_seq)
    swap.msf(small, x_seq)
    small.unused = nn.Identity()
    with pytest.raises(swap.SwapError, match="no neuron to swap"):
        swap.pmsn(small, x_seq)


def test_bad_arguments_raise(small, x_seq):
    with pytest.raises(TypeError, match=r"swap\.MSF"):
        swap.plan(small, x_seq, MSFNode.published())
    with pytest.raises(ValueError, match="unknown dynamics 'sites'"):
        swap.plan(small, x_seq, swap.MSF(), dynamics="sites")
    with pytest.raises(TypeError, match="thresholds"):
        swap.msf(small, x_seq, thresholds=4)
    with pytest.raises(TypeError, match=r"rule 'first\.1'.*MSFNode"):
        swap.plan(small, x_seq, swap.MSF(), rules={"first.1": MSFNode.published()})
    with pytest.raises(TypeError, match="a rule is found by a path"):
        swap.plan(small, x_seq, swap.MSF(), rules={1: swap.Keep()})
    with pytest.raises(ValueError, match="time_dim is 'auto'"):
        swap.plan(small, x_seq, swap.MSF(), time_dim=2)
    with pytest.raises(TypeError, match=r"LIFNode is read by a swap\.Read"):
        swap.plan(small, x_seq, swap.MSF(), neuron_classes={neuron.LIFNode: 1.0})


def test_a_failing_forward_is_the_models_own_error_and_leaves_no_trace(small):
    modes = [m.training for m in small.modules()]
    with pytest.raises(RuntimeError, match="shape"):
        swap.plan(small, torch.rand(5, 3, 7), swap.MSF())
    assert [m.training for m in small.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())


@pytest.mark.parametrize("name", ["EIFNode", "QIFNode", "KLIFNode"])
def test_dynamics_without_an_entry_are_refused_by_name(name, x_seq):
    net = Small(lambda: getattr(neuron, name)(step_mode="m"))
    with pytest.raises(swap.SwapError, match=f"unsupported dynamics: {name}.*published"):
        swap.msf(net, x_seq)
    assert isinstance(swap.msf(net, x_seq, dynamics="published").first[1], MSFNode)
    assert isinstance(
        swap.pmsn(Small(lambda: getattr(neuron, name)(step_mode="m")), x_seq).first[1], PMSNNode
    )


def test_a_subclass_is_taken_for_its_parent_only_if_it_computes_the_same(x_seq):
    class MyLIF(neuron.LIFNode):
        """Adds nothing."""

    class Louder(neuron.LIFNode):
        def forward(self, x):
            return super().forward(2 * x)

    net = Small(lambda: MyLIF(tau=3.0, step_mode="m"))
    before = gradients(net, x_seq)
    after = gradients(swap.msf(net, x_seq, D=1, backend="torch"), x_seq)
    assert_same(after[0], before[0])
    assert_same(after[1], before[1])
    assert isinstance(net.first[1], MSFNode)
    message = "unsupported dynamics: Louder .* its spikes are not those of the formula"
    with pytest.raises(swap.SwapError, match=message):
        swap.msf(Small(lambda: Louder(step_mode="m")), x_seq)


def test_a_stale_plan_is_refused(small, x_seq):
    plan = swap.plan(small, x_seq, swap.MSF())
    plan.apply()
    with pytest.raises(swap.SwapError, match="applied already"):
        plan.apply()
    net = Small()
    plan = swap.plan(net, x_seq, swap.MSF())
    net.second = nn.Identity()
    with pytest.raises(swap.SwapError, match="changed since"):
        plan.apply()


def test_a_model_that_is_a_neuron_is_returned_new():
    node = swap.pmsn(neuron.LIFNode(step_mode="m"), torch.rand(4, 2, 3))
    assert isinstance(node, PMSNNode)
    assert node.channels == 3


def test_a_swapped_model_trains_and_reloads(x_seq):
    for target in (swap.MSF(), swap.PMSN()):
        torch.manual_seed(0)
        net = swap.plan(Small(), x_seq, target).apply()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        labels, losses = torch.tensor([0, 1, 2]), []
        for _ in range(30):
            functional.reset_net(net)
            loss = nn.functional.cross_entropy(net(x_seq), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        other = swap.plan(Small(), x_seq, target).apply()
        other.load_state_dict(net.state_dict())
        functional.reset_net(net)
        assert_same(other(x_seq), net(x_seq))


# What the axes, the block and the example say ------------------------------------------------------------------------


class Around(nn.Module):
    """Linear, a view of its output, a neuron, the view undone, Linear."""

    def __init__(self, width, view, grow=False):
        super().__init__()
        self.view, self.first, self.node = view, nn.Linear(3, width), neuron.IFNode(step_mode="m")
        self.last = nn.Linear(width, 10)

    def forward(self, x_seq):
        h = self.first(x_seq)
        s = self.node(self.view(h))
        return self.last(h) + s.flatten(2).sum(-1)[..., None, None]


def channels_of(net, x):
    (site,) = swap.plan(net, x, swap.PMSN()).sites
    return site.verdict, site.channel_dim, site.channels


@pytest.mark.parametrize(
    ("width", "view", "found"),
    [
        (16, lambda h: h.mean(2)[..., None, None], ("ok", 1, 16)),  # [N, C, 1, 1]
        (16, lambda h: h.mean(3)[:, :, None], ("ambiguous", None, None)),  # [N, 1, L]: no channels left
        (
            30,
            lambda h: h.unflatten(3, (6, 5)).sum(4).transpose(2, 3)[:, :, :, None],
            ("ambiguous", None, None),
        ),
        (48, lambda h: h.mean(2).unflatten(2, (6, 1, 8)), ("ok", (1, 2, 3), 48)),  # [N, heads, 1, head]
        (32, lambda h: h.unflatten(3, (4, 8)).permute(0, 1, 3, 2, 4), ("ambiguous", None, None)),  # L = head
        (
            20,
            lambda h: h.unflatten(3, (4, 5)).permute(0, 1, 3, 4, 2),
            ("ok", (1, 2), 20),
        ),  # [N, heads, head, L]
    ],
)
def test_the_channel_axis_of_models_fixed_to_one_length(width, view, found):
    class Fixed(Around):
        def __init__(self):
            super().__init__(width, view)
            self.pos = nn.Parameter(torch.zeros(8, 3))  # ties the model to L = 8

        def forward(self, x_seq):
            return super().forward(x_seq + self.pos)

    assert channels_of(Fixed(), torch.rand(4, 2, 8, 3)) == found


def test_an_axis_of_size_one_is_no_channel_axis_unless_a_layer_says_so():
    x = torch.rand(4, 2, 1, 8, 8)
    mean = nn.Sequential(layer.Conv2d(1, 5, 3, step_mode="m"), Mean(), neuron.IFNode(step_mode="m"))
    assert channels_of(mean, x)[0] == "ambiguous"
    one = nn.Sequential(layer.Conv2d(1, 1, 3, step_mode="m"), neuron.IFNode(step_mode="m"))
    assert channels_of(one, x) == ("ok", 1, 1)


class Mean(nn.Module):
    def forward(self, x_seq):
        return x_seq.mean(2, keepdim=True)


def test_small_images_leave_one_pixel():
    plan = swap.plan(sew(), torch.rand(2, 2, 3, 16, 16), swap.PMSN())
    assert {(s.verdict, s.channel_dim) for s in plan.sites} == {("ok", 1)}
    assert plan.sites[-1].step_shape == (2, 512, 1, 1)


@new_zoo
@pytest.mark.parametrize(
    ("module", "name", "attention"),
    [
        ("qkformer", "qkformer_10_384", {("ambiguous", None), ("ok", (1, 2))}),
        ("spike_driven_transformer", "sdt_8_384", {("ok", (1, 2, 3))}),
    ],
)
def test_attention_of_the_zoo(module, name, attention):
    model = getattr(importlib.import_module(f"spikingjelly.activation_based.model.{module}"), name)()
    plan = swap.plan(model, torch.rand(2, 1, 3, 32, 32), swap.PMSN())
    at_attention = [s for s in plan.sites if s.path.endswith("attn_lif")]
    assert {(s.verdict, s.channel_dim) for s in at_attention} == attention
    assert {(s.verdict, s.channel_dim) for s in plan.sites if s not in at_attention} == {("ok", 1)}
    unclear = [s.path for s in plan.sites if s.verdict == "ambiguous"]
    assert str(plan).count("name the axis") == len({s.note for s in plan.sites if s.note})
    assert all(str(plan).count(path) == 2 for path in unclear)


@pytest.mark.parametrize("cnf", ["AND", "IAND"])
def test_blocks_that_multiply_spikes_refuse_counts(cnf, image):
    plan = swap.plan(sew(cnf=cnf), image, swap.MSF(D=2))
    assert [s.verdict for s in plan.sites] == ["binary only"] * 20  # the stem feeds the first block
    with pytest.raises(swap.SwapError, match=f"binary only: a residual block with cnf='{cnf}'"):
        plan.apply()
    told = swap.plan(sew(cnf=cnf), image, swap.MSF(), rules={"re:.*": swap.MSF(D=2)})
    assert {s.verdict for s in told.sites} == {"ok"}
    assert all("binary" in s.warnings[0] for s in told.sites)
    for target in (swap.MSF(D=1), swap.PMSN()):
        assert {s.verdict for s in swap.plan(sew(cnf=cnf), image, target).sites} == {"ok"}


def test_one_step_is_no_time_to_integrate(small, x_seq):
    with pytest.raises(swap.SwapError, match="no time to integrate: the example has T = 1"):
        swap.pmsn(small, x_seq[:1])
    swap.plan(small, x_seq[:1], swap.MSF(), rules={"re:first.*": swap.PMSN()}).apply()
    assert isinstance(small.first[1], PMSNNode)
    assert isinstance(small.second[1], MSFNode)


def test_an_axis_that_grows_with_the_batch_is_not_time():
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.node = (neuron.IFNode(step_mode="m") for _ in range(3))

        def forward(self, x_seq):
            return self.node(self.second(self.first(x_seq)).transpose(0, 1))

    with pytest.raises(swap.SwapError, match="node: no time axis"):
        swap.msf(Swapped(), torch.rand(4, 3, 5))


def test_a_model_whose_neurons_all_follow_axis_1_has_its_time_there():
    class BatchFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")

        def forward(self, x):
            return self.node(x.transpose(0, 1)).transpose(0, 1)

    x = torch.rand(3, 4, 5)
    plan = swap.plan(BatchFirst(), x, swap.MSF())
    assert "input [3, 4, 5]: time on axis 1, batch on axis 0" in str(plan)
    assert plan.sites[0].steps == 4
    with pytest.raises(swap.SwapError, match="no time axis"):
        swap.plan(BatchFirst(), x, swap.MSF(), time_dim=0).apply()


@pytest.mark.parametrize(
    "wrap", [lambda x: {"image": x, "scale": 2}, lambda x: ([x], None)], ids=["dict", "list"]
)
def test_inputs_in_containers_are_varied_too(wrap, x_seq):
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode="m")

        def forward(self, data, rest=None):
            x = data["image"] if isinstance(data, dict) else data[0]
            return self.node(x.flatten(0, 1))

    with pytest.raises(swap.SwapError, match="batch folded into time"):
        swap.msf(Folding(), wrap(x_seq))


def test_an_input_that_cannot_be_varied_is_taken_as_it_is(x_seq):
    class Opaque:
        x = x_seq

    class Unpack(Small):
        def forward(self, data):
            return super().forward(data.x)

    assert isinstance(swap.msf(Unpack(), Opaque()).first[1], MSFNode)


# Neurons of the host that are no stock ones ---------------------------------------------------------------------------


@new_zoo
@pytest.mark.parametrize("name", ["PSN", "SlidingPSN", "MaskedPSN"])
def test_parallel_neurons_are_listed_and_need_a_threshold(name, x_seq):
    arguments = {"PSN": (5,), "SlidingPSN": (2,), "MaskedPSN": (2, 5)}[name]

    def make():
        node = getattr(neuron, name)(*arguments)
        node.step_mode = "m"
        return node

    with pytest.raises(
        swap.SwapError, match=rf"first\.1, second\.1: unsupported dynamics: {name} has dynamics"
    ):
        swap.msf(Small(make), x_seq)
    with pytest.raises(swap.SwapError, match=f"{name} has no v_threshold"):
        swap.pmsn(Small(make), x_seq)
    net = swap.pmsn(Small(make), x_seq, v_threshold=1.0)
    assert (net.first[1].step_mode, net.first[1].v_threshold) == ("m", 1.0)


@pytest.mark.skipif(face.FUNCTIONAL, reason="SpikingJelly 2.0.0 has no clock_driven")
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("v_reset", [0.0, None], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ["IF", "LIF", "ParametricLIF", "EIF"])
def test_legacy_neurons_keep_their_dynamics(name, v_reset, detach, x_seq):
    from spikingjelly.clock_driven import neuron as legacy

    def make():
        return getattr(legacy, f"MultiStep{name}Node")(v_reset=v_reset, detach_reset=detach)

    net = Small(make)
    if name == "EIF":
        with pytest.raises(swap.SwapError, match="unsupported dynamics: MultiStepEIFNode has dynamics"):
            swap.msf(net, x_seq)
        assert isinstance(swap.pmsn(net, x_seq).first[1], PMSNNode)
        return
    y, gx, _ = gradients(net, x_seq)
    y_new, gx_new, _ = gradients(swap.msf(net, x_seq, D=1, backend="torch"), x_seq)
    assert isinstance(net.first[1], MSFNode)
    assert net.first[1].step_mode == "m"
    assert_same(y_new, y)
    assert_same(gx_new, gx)


@new_zoo
def test_non_spiking_nodes_are_readouts(x_seq):
    net = Small()
    net.second[1] = neuron.NonSpikingIFNode(decode="mean-mem")
    net.head = nn.Identity()
    plan = swap.plan(net, x_seq, swap.PMSN())
    assert plan.sites[1].verdict == "readout"
    assert not hasattr(net.second[1], "v")


def test_a_surrogate_that_does_not_spike_is_refused(x_seq):
    sg = surrogate.Sigmoid(spiking=False)
    with pytest.raises(swap.SwapError, match="unsupported dynamics: .*spiking"):
        swap.msf(Small(lambda: neuron.LIFNode(surrogate_function=sg, step_mode="m")), x_seq)


# Applying ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [swap.MSF(), swap.PMSN()])
def test_new_nodes_go_where_the_input_lies(target):
    net = nn.Sequential(nn.Linear(3, 5, device="meta"), neuron.IFNode(step_mode="m"))
    plan = swap.plan(net, torch.rand(4, 2, 3, device="meta"), target)
    assert plan.sites[0].device == torch.device("meta")
    assert all(p.device.type == "meta" for p in plan.apply().parameters())


def test_nothing_is_replaced_if_one_cannot_be(small, x_seq, monkeypatch):
    class Failing(MSFNode):
        made = 0

        def __init__(self, **kwargs):
            type(self).made += 1
            if self.made == 2:
                raise ValueError("no second one")
            super().__init__(**kwargs)

    plan = swap.plan(small, x_seq, swap.MSF())
    with monkeypatch.context() as patch:
        patch.setitem(host_of_nodes.NODES, "msf", Failing)
        with pytest.raises(swap.SwapError, match=r"second\.1: no second one"):
            plan.apply()
    assert type(small.first[1]) is neuron.LIFNode
    assert isinstance(plan.apply().first[1], MSFNode)


def test_a_plan_holds_the_old_neurons_and_the_one_liners_let_go_of_them(small, x_seq):
    """Caches of the host live as long as they do."""
    old = [weakref.ref(m) for m in (small.first[1], small.second[1])]
    plan = swap.plan(small, x_seq, swap.MSF())
    text = str(plan)
    plan.apply()
    gc.collect()
    assert [type(r()) for r in old] == [neuron.LIFNode] * 2
    assert str(plan) == text
    del plan
    gc.collect()
    assert [r() for r in old] == [None, None]


def test_undo_gives_back_the_very_modules(x_seq):
    net = Small(lambda: neuron.ParametricLIFNode(step_mode="m"))
    net.unused = net.first[1]  # shared
    old = dict(net.named_modules(remove_duplicate=False))
    keys = {k: v.clone() for k, v in net.state_dict().items()}
    functional.reset_net(net)  # 2.0.0 caches the module list here
    y, gx, _ = gradients(net, x_seq)
    plan = swap.plan(net, x_seq, swap.PMSN())
    with pytest.raises(swap.SwapError, match="not applied"):
        plan.undo()
    plan.apply().train(False)
    functional.reset_net(net)  # and here
    net(x_seq)
    assert plan.undo() is net
    assert all(new is old[path] for path, new in net.named_modules(remove_duplicate=False))
    assert not any(m.training for m in net.modules())
    for key, value in net.state_dict().items():
        assert_same(value, keys[key])
    y_again, gx_again, _ = gradients(net.train(), x_seq)
    assert_same(y_again, y)
    assert_same(gx_again, gx)
    plan.apply()  # and once more
    net.first[1] = nn.Identity()
    with pytest.raises(swap.SwapError, match=r"changed since the plan was applied: first\.1"):
        plan.undo()


def test_neurons_kept_in_plain_containers_too_follow(x_seq):
    """A net may walk over a list of its own modules: the list would go on running the old neurons."""
    net = Small(lambda: neuron.LIFNode(step_mode="m"))
    old = [m for m in net.modules() if isinstance(m, neuron.LIFNode)][:2]  # the third is never called
    loop = [net.first, *old]
    net.walk = {"all": (loop, old[0]), "self": loop}
    loop.append(loop)
    net.pair = net.pair_again = (old[0], 3)
    object.__setattr__(net, "last", old[-1])
    numbers = net.numbers = (1, [2.0, torch.ones(2)])
    plan = swap.plan(net, x_seq, swap.MSF(D=4))
    plan.apply()
    new = [m for m in net.modules() if isinstance(m, MSFNode)]
    assert net.walk["self"] is loop
    assert net.walk["all"] == (loop, new[0])
    assert loop[:-1] == [net.first, *new]
    assert loop[-1] is loop
    assert net.pair is net.pair_again
    assert (net.pair, net.last) == ((new[0], 3), new[-1])
    assert net.numbers is numbers
    plan.undo()
    assert loop[:-1] == [net.first, *old]
    assert (net.pair, net.last) == ((old[0], 3), old[-1])


def test_a_shared_neuron_that_is_kept_at_one_place_stays_in_lists(x_seq):
    net = Small(lambda: neuron.LIFNode(step_mode="m"))
    net.unused = shared = net.first[1]
    net.walk = [shared]
    swap.plan(net, x_seq, swap.MSF(D=4), rules={"unused": swap.Keep()}).apply()
    assert isinstance(net.first[1], MSFNode)
    assert net.unused is shared
    assert net.walk == [shared]


def test_undo_of_a_model_that_is_a_neuron():
    node = neuron.LIFNode(step_mode="m")
    plan = swap.plan(node, torch.rand(4, 2, 3), swap.MSF())
    assert isinstance(plan.apply(), MSFNode)
    assert plan.undo() is node


@pytest.mark.parametrize(
    ("kwargs", "counts"),
    [
        ({"filter_fn": lambda module, path: False}, "3 keep"),
        ({"rules": {"re:.*1": swap.Keep()}}, "2 keep, 1 never called"),
    ],
)
def test_a_plan_that_swaps_nothing_raises(kwargs, counts, small, x_seq):
    with pytest.raises(swap.SwapError, match=f"no neuron would be swapped: {counts}"):
        swap.plan(small, x_seq, swap.MSF(), **kwargs).apply()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: swap.MSF(D=0), "D.*0"),
        (lambda: swap.MSF(D=2.5), r"D.*2\.5"),
        (lambda: swap.MSF(threshold_step=-1.0), "threshold_step"),
        (lambda: swap.MSF(backend="cuda"), "cuda"),
        (lambda: swap.MSF(surrogate_function="atn"), "atn.*atan"),
        (lambda: swap.PMSN(compartments=1), "compartments.*2 to 17"),
        (lambda: swap.PMSN(compartments=18), "compartments.*18"),
        (lambda: swap.PMSN(init="shdd"), "shdd.*shd"),
        (lambda: swap.PMSN(backend="cuda"), "cuda"),
        (lambda: swap.PMSN(channel_dim="1"), "channel_dim.*'1'"),
        (lambda: swap.PMSN(channel_dim=(1, 2.0)), "channel_dim"),
    ],
)
def test_targets_are_checked_when_they_are_made(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("mode", ["s", "m"])
def test_planning_leaves_no_tensor_behind(mode):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.node = neuron.IFNode(step_mode=mode, store_v_seq=mode == "m" or face.FUNCTIONAL)
            self.calls = torch.zeros(())

        def forward(self, x_seq):
            self.calls += 1
            self.last = x_seq
            return self.node(x_seq)

    net = Own()
    x = torch.rand(4, 2, 3)
    net(x)
    calls, last, v_seq, v = net.calls, net.last, getattr(net.node, "v_seq", None), net.node.v
    swap.plan(net, x, swap.MSF())
    assert net.calls is calls
    assert calls == 1
    assert net.last is last
    assert net.node.v is v
    assert getattr(net.node, "v_seq", None) is v_seq
    fresh = Own()
    swap.plan(fresh, x, swap.MSF())
    assert not hasattr(fresh, "last")


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
            if not face.FUNCTIONAL and importlib.util.find_spec(module) is None:
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
