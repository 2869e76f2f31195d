"""The swap on every way in which recipes build and call neurons. Runs on both versions of SpikingJelly."""

from __future__ import annotations

import copy
import importlib
import json

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from msf_pmsn_plugins import spikingjelly as framework
from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from msf_pmsn_plugins.swap.around import Around
from recipes_standins import (
    OWN_LIF,
    SEW,
    STANDINS,
    BatchFirst,
    Each,
    MultiStepLIFNode,
    OwnLIF,
    QKFormer,
    Spikformer,
    Stepping,
    build,
)
from swap_checks import assert_nothing_changed, gradients, reset
from tolerances import assert_same

each = pytest.mark.parametrize("name", STANDINS)


# D = 1 changes nothing, anywhere --------------------------------------------------------------------------------


@each
def test_d1_under_site_dynamics_is_bit_identical(name):
    net, x, standin = build(name)
    target = swap.MSF(D=1, backend="torch")
    plan = swap.plan(
        copy.deepcopy(net), x, target, neuron_classes=standin.neuron_classes, rules=standin.rules
    )
    swapped = plan.apply()
    assert any(isinstance(m, MSFNode) for m in swapped.modules())
    assert_nothing_changed(net, swapped, x)
    assert_nothing_changed(net, plan.undo(), x)


@pytest.mark.parametrize("v_reset", [0.0, None, -0.3], ids=["zero", "soft", "below"])
@pytest.mark.parametrize("decay_input", [True, False], ids=["input", "plain"])
@pytest.mark.parametrize("detach_reset", [True, False], ids=["detached", "attached"])
def test_copies_of_lif_keep_every_setting(v_reset, decay_input, detach_reset):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 10)
            self.lif = MultiStepLIFNode(
                tau=1.7, decay_input=decay_input, v_reset=v_reset, detach_reset=detach_reset, v_threshold=0.6
            )

        def forward(self, x_seq):
            return self.lif(self.fc(x_seq)).mean(0)

    torch.manual_seed(0)
    net, x = Net(), torch.randn(6, 3, 6) * 2
    plan = swap.plan(copy.deepcopy(net), x, swap.MSF(D=1, backend="torch"))
    if v_reset == -0.3 and not detach_reset:
        assert plan.sites[0].warnings == ["gradients agree up to rounding"]
        return
    assert plan.sites[0].warnings == []
    node = plan.apply().lif
    assert (node.v_threshold, node.v_reset, node.detach_reset) == (0.6, v_reset, detach_reset)
    y, gx, _ = gradients(net, x)
    y_new, gx_new, _ = gradients(plan.model, x)
    assert_same(y_new, y)
    assert_same(gx_new, gx)


ZOO = {
    "qkformer": ("qkformer", "qkformer_10_384", (2, 2, 3, 32, 32)),
    "spike_driven_transformer": ("spike_driven_transformer", "sdt_8_384", (2, 2, 3, 32, 32)),
    "maxformer": ("maxformer", "maxformer_cifar", (2, 2, 3, 32, 32)),
    "ms_resnet": ("ms_resnet", "ms_resnet18", (2, 2, 3, 32, 32)),
    "max_resnet": ("ms_resnet", "max_resnet18", (2, 2, 3, 32, 32)),
    "masnn": ("masnn", "att_ms_resnet18", (2, 2, 3, 32, 32)),
    "spiking_resnet": ("spiking_resnet", "spiking_resnet18", (2, 2, 3, 32, 32)),
    "spiking_vgg": ("spiking_vgg", "spiking_vgg11_bn", (2, 2, 3, 32, 32)),
}
OLD_ZOO = (
    "spiking_resnet",
    "spiking_vgg",
)  # both versions have these; the neuron is an argument, in single steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_d1_changes_nothing_in_the_zoo(name):
    module, make, shape = ZOO[name]
    if name not in OLD_ZOO and not framework.FUNCTIONAL:
        pytest.skip("came with SpikingJelly 2.0.0")
    make = getattr(importlib.import_module(f"spikingjelly.activation_based.model.{module}"), make)
    torch.manual_seed(0)
    net = make(spiking_neuron=neuron.LIFNode, detach_reset=True) if name in OLD_ZOO else make()
    if name in OLD_ZOO:
        functional.set_step_mode(net, "m")
    for node in net.modules():
        if isinstance(node, neuron.BaseNode) and name in OLD_ZOO:
            node.v_threshold = 0.5  # fresh weights drive the last layers too little for spikes
    x = torch.rand(shape) * 2
    plan = swap.plan(copy.deepcopy(net), x, swap.MSF(D=1, backend="torch"))
    assert {s.verdict for s in plan.sites} == {"ok"}
    swapped = plan.apply()
    results = []
    for each_net in (net, swapped):
        torch.manual_seed(1)  # for dropout
        results.append(gradients(each_net, x))
    (y, gx, grads), (y_new, gx_new, grads_new) = results
    assert y.abs().sum() > 0
    assert_same(y_new, y)
    assert_same(gx_new, gx)
    for key, grad in grads.items():
        assert_same(grads_new[key], grad)


# Verdicts ---------------------------------------------------------------------------------------------------------


@each
def test_verdicts_and_axes(name):
    net, x, standin = build(name)
    one = swap.plan(net, x, swap.MSF(D=1), neuron_classes=standin.neuron_classes)
    assert {s.path: s.verdict for s in one.sites} == standin.msf
    pmsn = swap.plan(net, x, swap.PMSN(), neuron_classes=standin.neuron_classes)
    stays = {path for path, verdict in standin.msf.items() if verdict == "never called"}
    found = {
        s.path: s.channel_dim if s.verdict in ("ok", "single-step") else s.verdict
        for s in pmsn.sites
        if s.path not in stays
    }
    assert found == standin.pmsn
    data = pmsn.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert str(pmsn).count("\n") > len(pmsn.sites)
    assert pmsn._repr_html_().count("<tr") == len(pmsn.sites) + 1
    assert "0x" not in str(pmsn)


@each
def test_pmsn_swaps_hold(name):
    net, x, standin = build(name)
    plan = swap.plan(net, x, swap.PMSN(), neuron_classes=standin.neuron_classes, rules=standin.settles)
    plan.apply()
    report = swap.verify(net, x, plan=plan, raise_on_failure=True)
    assert report.ok
    assert report["samples stay apart"].status == "pass"
    assert report["gradients"].status == "pass"


@pytest.mark.parametrize(
    "name", ["spikformer_cifar10", "sew_add", "ms_resnet", "batch_first", "single_steps"]
)
def test_msf_swaps_hold(name):
    net, x, standin = build(name)
    plan = swap.plan(net, x, swap.MSF(D=4), neuron_classes=standin.neuron_classes)
    plan.apply()
    assert swap.verify(net, x, plan=plan).ok


def test_planning_leaves_no_trace_in_plain_attributes():
    class Counting(SEW):
        seen = 0

        def forward(self, x):
            self.seen += 1
            self.history = [*getattr(self, "history", []), 1]
            return super().forward(x)

    net = Counting()
    before = {path: dict(vars(m)) for path, m in net.named_modules()}
    swap.plan(net, torch.rand(4, 2, 2, 8, 8), swap.MSF(D=1))
    assert net.seen == 0
    for path, module in net.named_modules():
        assert vars(module).keys() == before[path].keys()
        assert all(vars(module)[key] is value for key, value in before[path].items())


def test_what_a_training_step_left_is_no_obstacle():
    """States of another batch, and attributes with a graph, as multi-step nodes of the older interface keep them."""

    class Keeping(MultiStepLIFNode):
        def forward(self, x_seq):
            self.spike_seq = super().forward(x_seq)
            return self.spike_seq

    net = SEW(make=Keeping)
    x = torch.rand(4, 2, 2, 8, 8)
    y = net(x)
    plan = swap.plan(net, torch.rand(4, 3, 2, 8, 8), swap.MSF(D=1))
    assert {s.verdict for s in plan.sites} == {"ok"}
    assert net.sn.spike_seq.grad_fn is not None
    y.sum().backward()
    own = BatchFirst()
    own(torch.rand(5, 4, 2, 8, 8))
    left = own.lif1.v
    plan = swap.plan(own, torch.rand(2, 4, 2, 8, 8), swap.MSF(D=1), neuron_classes={OwnLIF: OWN_LIF})
    assert {s.verdict for s in plan.sites} == {"ok"}
    assert own.lif1.v is left


def test_half_precision_is_planned_in_single():
    class Half(SEW):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    plan = swap.plan(Half(), torch.rand(4, 2, 2, 8, 8), swap.MSF(D=1))
    assert {s.verdict for s in plan.sites} == {"ok"}


# A batch folded into time ------------------------------------------------------------------------------------------


def test_a_folded_batch_leaks_as_published_or_is_unfolded():
    """The published fold lets samples reach one another; ``fix`` stops that, at every T and batch size."""
    _, x, _ = build("qkformer")
    settle = {"attn_lif": swap.Rule(channel_dim="shared")}
    for target in (swap.MSF(D=1), swap.PMSN()):
        torch.manual_seed(0)
        leaking = swap.plan(
            QKFormer(), x, target, rules={**settle, "attn.proj_lif": swap.Rule(folded="reproduce")}
        )
        report = swap.verify(leaking.apply(), x, plan=leaking)
        assert report["samples stay apart"].status == "fail"
        assert "exchanging one sample moved the output of another" in str(report)
        torch.manual_seed(0)
        fixed = swap.plan(QKFormer(), x, target, rules={**settle, "attn.proj_lif": swap.Rule(folded="fix")})
        net = fixed.apply()
        assert swap.verify(net, x, plan=fixed).ok
        for shape in ((6, 2, 3, 8, 8), (3, 5, 3, 8, 8)):
            copied = copy.deepcopy(net)  # its clock is its own
            reset(copied)
            copied(torch.rand(shape))
            assert copied.attn.proj_lif.steps == shape[0]
        assert net.attn.proj_lif.steps == 4


def test_an_unfolded_neuron_computes_what_an_unfolded_recipe_does():
    class Unfolding(MultiStepLIFNode):
        """What the authors would have written: the same neuron on [T, B, C, N]."""

        def forward(self, x):
            return super().forward(x.unflatten(0, (4, -1))).flatten(0, 1)

    _, x, _ = build("qkformer")
    torch.manual_seed(0)
    meant = QKFormer()
    meant.attn.proj_lif.__class__ = Unfolding
    torch.manual_seed(0)
    net = QKFormer()
    plan = swap.plan(net, x, swap.MSF(D=1, backend="torch"), rules={"attn.proj_lif": swap.Rule(folded="fix")})
    assert plan.sites[-1].step_shape == (2, 16, 16)
    plan.apply()
    assert_same(net(x), meant(x))
    plan.undo()
    assert not any(m._forward_pre_hooks for m in net.modules())
    kept = {"attn.v_lif": swap.Keep(), "attn.attn_lif": swap.Keep(), "attn.proj_lif": swap.Rule(folded="fix")}
    plan = swap.plan(net, x, swap.MSF(D=1), rules=kept)
    plan.apply()
    assert net.attn.attn_lif._forward_pre_hooks  # the clock may be a neuron that stays
    plan.undo()
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_fold_that_nothing_before_it_can_unfold_is_refused():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.after = MultiStepLIFNode(), MultiStepLIFNode()

        def forward(self, x_seq):
            return self.after(self.lif(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])).mean(0)

    rules = {"lif": swap.Rule(folded="fix")}
    with pytest.raises(swap.SwapError, match="lif: batch folded into time: no neuron before it"):
        swap.plan(First(), torch.rand(4, 3, 5), swap.MSF(D=1), rules=rules).apply()


# Rules ---------------------------------------------------------------------------------------------------------------


def test_rules_by_predicate_and_by_field():
    _, x, _ = build("spikformer_cifar10")
    plan = swap.plan(
        Spikformer(),
        x,
        swap.MSF(D=4),
        rules={
            lambda module, path: module.v_threshold == 0.5: swap.Keep(),
            "re:mlp.*": swap.Rule(target=swap.PMSN(compartments=3), channel_dim=-1),
        },
    )
    by_path = {s.path: s for s in plan.sites}
    assert by_path["attn.attn_lif"].verdict == "keep"
    assert (by_path["mlp.fc1_lif"].target.compartments, by_path["mlp.fc1_lif"].channel_dim) == (3, 2)
    net = plan.apply()
    assert isinstance(net.mlp.fc2_lif, PMSNNode)
    assert isinstance(net.attn.attn_lif, MultiStepLIFNode)


@pytest.mark.parametrize(
    "make",
    [
        lambda: swap.Rule(folded="fixed"),
        lambda: swap.Rule(repeated="yes"),
        lambda: swap.Rule(output_scale=0.5),
        lambda: swap.Rule(channel_dim="share"),
        lambda: swap.Rule(channel_dim=(1, 2.0)),
        lambda: swap.Rule(time_dim="1"),
        lambda: swap.Rule(target=MSFNode),
    ],
    ids=["folded", "repeated", "scale", "channel", "channels", "time", "target"],
)
def test_rules_are_checked_when_they_are_made(make):
    with pytest.raises((ValueError, TypeError), match="rule"):
        make()


def test_one_set_of_parameters_for_all_elements():
    net, x, standin = build("qkformer")
    swap.plan(net, x, swap.PMSN(), rules=standin.settles).apply()
    node = net.attn_lif.node
    assert node.channels == 1
    u = torch.rand(5, 2, 2, 1, 16)
    s = net.attn_lif(u)
    assert s.shape == u.shape
    node.carried = None
    assert_same(node(u.reshape(5, 2, 1, -1)).reshape(u.shape), s)


def test_a_time_axis_can_be_named():
    """[B, T, C] into SpikingJelly-like neurons: the recipe's mistake, put right by a rule."""

    class Mistaken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 10), MultiStepLIFNode()

        def forward(self, x):
            return self.lif(self.fc(x)).mean(1)

    x = torch.rand(2, 4, 6) * 3
    auto = swap.plan(Mistaken(), x, swap.PMSN())
    assert "if the input is [N, T, *], say time_dim=1" in str(auto)
    with pytest.raises(swap.SwapError, match=r"no time axis: .* axis 0 .* does not follow T: .*time_dim"):
        swap.plan(Mistaken(), x, swap.PMSN(), time_dim=1).apply()
    plan = swap.plan(Mistaken(), x, swap.PMSN(), time_dim=1, rules={"lif": swap.Rule(time_dim=1)})
    assert (plan.sites[0].steps, plan.sites[0].step_shape) == (4, (2, 10))
    net = plan.apply()
    assert swap.verify(net, x, plan=plan).ok


def test_repeated_calls_carry_their_state_if_told():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(6, 10), MultiStepLIFNode()

        def forward(self, x_seq):
            return torch.cat([self.lif(self.fc(x_seq)), self.lif(self.fc(x_seq.flip(0)))]).mean(0)

    torch.manual_seed(0)
    net, x = Twice(), torch.rand(4, 2, 6) * 3
    with pytest.raises(swap.SwapError, match=r"lif: called more than once: .*swap\.Rule\(repeated='carry'\)"):
        swap.msf(net, x, D=1)
    rules = {"lif": swap.Rule(repeated="carry")}
    swapped = swap.plan(copy.deepcopy(net), x, swap.MSF(D=1, backend="torch"), rules=rules).apply()
    assert_nothing_changed(net, swapped, x)


def test_shared_neurons_are_listed_with_their_other_paths():
    net = Stepping()
    net.again = net.lif1
    plan = swap.plan(net, torch.rand(4, 2, 6), swap.MSF(D=1))
    assert {s.path: s.shared_with for s in plan.sites} == {"lif1": ["again"], "lif2": [], "again": ["lif1"]}
    assert str(plan).count("again and lif1 are one module and stay one") == 1
    plan.apply()
    assert net.again is net.lif1


# Where counts mean something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("connect_f", ["AND", "IAND"])
def test_blocks_that_multiply_refuse_counts_of_the_stem_too(connect_f):
    plan = swap.plan(SEW(connect_f), torch.rand(4, 2, 2, 8, 8), swap.MSF(D=2))
    verdicts = {s.path: s.verdict for s in plan.sites}
    assert verdicts.pop("zeroth_sn") == "ok"
    assert set(verdicts.values()) == {"binary only"}


def test_counts_in_attention_are_bounded_and_the_fixed_scale_is_named():
    _, x, _ = build("spikformer_cifar10")
    warned = {s.path for s in swap.plan(Spikformer(), x, swap.MSF(D=4)).sites if s.warnings}
    assert warned == {f"attn.{n}_lif" for n in ("q", "k", "v", "attn", "proj")}
    text = str(swap.plan(Spikformer(), x, swap.MSF(D=4)))
    assert "of two reaches 16 and of three 64 times that of binary spikes" in text
    assert "its fixed scale 0.125 was tuned to binary spikes" in text
    for target in (swap.MSF(D=1), swap.PMSN()):
        assert not any(s.warnings for s in swap.plan(Spikformer(), x, target).sites)


def test_counts_into_a_max_pool_and_a_rate_buffer_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3)
            self.lif, self.pool = MultiStepLIFNode(), nn.MaxPool3d((1, 2, 2))
            self.lif2 = MultiStepLIFNode()
            self.register_buffer("firing_rate", torch.zeros(()))

        def forward(self, x_seq):
            y = self.conv(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
            return self.lif2(self.pool(self.lif(y))).mean(0)

    x = torch.rand(4, 2, 2, 8, 8)
    plan = swap.plan(Net(), x, swap.MSF(D=4))
    assert [bool(s.warnings) for s in plan.sites] == [True, False]
    assert "MaxPool3d takes its output: of binary spikes that is OR, of counts the largest" in str(plan)
    assert "firing_rate holds a firing rate: a mean of counts may exceed 1" in str(plan)
    quiet = swap.plan(Net(), x, swap.MSF(D=1))
    assert quiet.warnings == []
    assert not any(s.warnings for s in quiet.sites)


# Back ---------------------------------------------------------------------------------------------------------------


def test_lif_is_the_way_back():
    def make(kind, **kwargs):
        torch.manual_seed(0)
        node = getattr(neuron, kind)(step_mode="m", detach_reset=True, **kwargs)
        return nn.Sequential(layer.Linear(6, 10), node, layer.Linear(10, 5))

    x = torch.randn(5, 3, 6) * 3
    for kind, kwargs in (
        ("IFNode", {}),
        ("LIFNode", {"tau": 1.7, "decay_input": False, "v_threshold": 0.7, "v_reset": None}),
        ("ParametricLIFNode", {"init_tau": 3.0}),
    ):
        net = make(kind, **kwargs)
        before = gradients(net, x)
        swap.msf(net, x, D=1)
        assert swap.lif(net, x) is net
        assert type(net[1]).__name__ == kind
        after = gradients(net, x)
        assert_same(after[0], before[0])
        assert_same(after[1], before[1])
    net = swap.msf(make("LIFNode"), x, D=4)
    with pytest.raises(swap.SwapError, match=r"1: counts 0\.\.4 become 0 and 1"):
        swap.lif(net, x)
    assert isinstance(net[1], MSFNode)
    counts = net[1](x @ net[0].weight.T * 4)
    swap.lif(net, x, lossy=True)
    assert counts.max() > 1
    assert_same(net[1](x @ net[0].weight.T * 4), (counts > 0).float())
    net = swap.pmsn(make("LIFNode", v_threshold=0.5), x)
    with pytest.raises(swap.SwapError, match="PMSNNode with its 260 parameters becomes a LIF with tau=2"):
        swap.lif(net)
    assert swap.lif(net, lossy=True)[1].v_threshold == 0.5
    with pytest.raises(swap.SwapError, match="has no neuron of msf_pmsn_plugins"):
        swap.lif(net)


def test_lif_of_the_published_neuron_fires_as_it_did():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), MSFNode.published(D=1, step_mode="m"))
    x = torch.randn(8, 3, 6) * 3
    s = net(x)
    swap.lif(net, x)
    assert net[1].tau == pytest.approx(4 / 3)
    assert_same(net(x), s)


def test_the_wrapper_says_what_it_does():
    node = Around(MSFNode.published(step_mode="m"), time_dim=1, keeps_state=False)
    assert "time_dim=1, keeps_state=False" in repr(node)
    folded = Around(MSFNode.published(step_mode="m"), steps=4)
    with pytest.raises(ValueError, match="10 rows does not unfold into T = 4"):
        folded(torch.rand(10, 3))
    assert Each(nn.Identity())(torch.rand(2, 3, 4)).shape == (2, 3, 4)


class Forwarding(nn.Module):
    """A wrapper that looks like what it wraps: it passes on each attribute that it has not."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x):
        return self.base(x)


@pytest.mark.parametrize("target", [swap.MSF(D=1, backend="torch"), swap.PMSN()], ids=["msf", "pmsn"])
def test_a_wrapper_that_passes_attributes_on_is_no_neuron(target):
    torch.manual_seed(0)
    x = torch.randn(6, 2, 5) * 2
    net = nn.Sequential(Forwarding(neuron.LIFNode(step_mode="m")), Forwarding(nn.Linear(5, 4)))
    plan = swap.plan(copy.deepcopy(net), x, target)
    assert [site.path for site in plan.sites] == ["0.base"]
    swapped = plan.apply()
    assert swap.verify(swapped, x).ok
    if isinstance(target, swap.MSF):
        assert_nothing_changed(net, swapped, x)
    assert_nothing_changed(net, plan.undo(), x)
