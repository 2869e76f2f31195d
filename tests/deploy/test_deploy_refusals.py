"""Binary deployment: what is refused, by name and with the remedy."""

from __future__ import annotations

import re

import pytest
import torch
from deploy_nets import Sequence, Spikes, check, plain, randomise, refusal
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.neurons import MSF, PMSN


def behind(function, **kwargs):
    """A network that applies ``function`` to counts 0..3, a layer following."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.lif = nn.Conv2d(3, 6, 3, padding=1), Spikes(3, **kwargs)
            self.norm, self.last, self.scale = (
                nn.BatchNorm2d(6),
                nn.Conv2d(6, 4, 1),
                nn.Parameter(torch.ones(1)),
            )

        def forward(self, x):
            return self.last(function(self, self.lif(self.stem(x)), x))

    return randomise(Net())


@pytest.mark.parametrize(
    ("function", "message", "remedy"),
    [
        (
            lambda m, s, x: s * 0.5,
            "mul() changes counts by arithmetic, given the spikes of lif.msf (0..3)",
            "factors",
        ),
        (lambda m, s, x: 1 - s, "sub() changes counts by arithmetic", "factors into"),
        (lambda m, s, x: s / 4, "changes counts by arithmetic", "factors into the weights"),
        (lambda m, s, x: m.norm(s), "'norm' (BatchNorm2d) is no operation", "before the neuron"),
        (
            lambda m, s, x: F.conv2d(s, m.last.weight[:, :, :, :].repeat(2, 1, 1, 1)[:6]),
            "outside a layer",
            "nn.Conv2d",
        ),
        (lambda m, s, x: s @ s, "matmul() multiplies spikes outside a layer", "cannot be deployed"),
        (
            lambda m, s, x: torch.cat([s[:, :3], x], 1),
            "cat() joins spikes with real values",
            "through a layer of its own",
        ),
        (
            lambda m, s, x: torch.maximum(s, m.stem(x)),
            "compares spikes with real values",
            "outputs of neurons only",
        ),
        (lambda m, s, x: s[:, torch.arange(6)], "getitem() is given another tensor", "outputs of neurons"),
        (lambda m, s, x: F.dropout(s, 0.5), "drops spikes in evaluation too", "training=self.training"),
        (lambda m, s, x: F.pad(s, (1, 1), value=1.0), "pads with 1.0", "with 0"),
        (
            lambda m, s, x: F.max_pool2d(s, 2, return_indices=True)[0],
            "returns indices too",
            "return_indices=False",
        ),
        (
            lambda m, s, x: F.max_pool2d(s + s, 2),
            "takes a maximum of sums of spikes",
            "pool before the addition",
        ),
        (lambda m, s, x: torch.add(s, s, alpha=2), "adds with alpha", "layer's weights"),
        (lambda m, s, x: s + s.amax((2, 3), keepdim=True), "adds counts of shapes", "expand one"),
        (lambda m, s, x: s.half().float(), "half() is no operation", "before the neuron"),
        (lambda m, s, x: torch.relu(s), "relu() is no operation on binary spikes", "before the neuron"),
    ],
)
def test_operations_on_counts_are_refused_by_name(function, message, remedy, x):
    text = refusal(behind(function), x)
    assert message in text
    assert remedy in text


def test_refusals_name_the_place(x):
    class Block(nn.Module):
        def forward(self, s):
            return s.exp() + 0

        def __init__(self):
            super().__init__()
            self.unused = nn.Identity()

    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(2), Block(), nn.Conv2d(6, 2, 1)))
    assert "exp() in '2' is no operation" in refusal(net, x)


def test_weights_behind_the_last_neuron_are_no_readout(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.weight = nn.Linear(8, 4), Spikes(2), nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return F.linear(self.lif(self.fc(x)), self.weight)

    assert "linear() multiplies spikes outside a layer" in refusal(randomise(Net()), x)


def test_bits_refuse_a_maximum(x):
    text = refusal(randomise(plain(3)), x, "bits")
    assert "'3' (MaxPool2d) takes a maximum of bits" in text
    assert "form='channels' or 'substeps'" in text
    net = behind(lambda m, s, x: torch.cat([(s + s)[:, :3], s[:, 3:]], 1))
    check(net, x, "bits")
    net = behind(lambda m, s, x: torch.cat([(s + s)[:, :3], m.lif(s)[:, 3:]], 1))
    check(net, x, "channels")


def test_unaligned_bits_are_refused(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), Spikes(3), Spikes(7)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            a, b = self.a(x), self.b(x)
            return self.last(torch.cat([a + a, b], 1))

    net = randomise(Net())
    assert "joins sums of bits of different lengths" in refusal(net, x, "bits")
    check(net, x, "substeps")


def test_layers_without_a_batch_axis():
    net = randomise(nn.Sequential(nn.Conv1d(3, 4, 1), Spikes(3), nn.Conv1d(4, 2, 1)))
    x = torch.randn(3, 6) * 3
    out = deploy.to_binary(net, x)
    assert torch.equal(out(x), net(x))
    assert "'2' (Conv1d) has no batch axis for the sub-steps" in refusal(net, x, "substeps")


def test_weights_that_are_not_finite_are_refused(x):
    net = randomise(plain(2))
    net[4].weight.data[0, 0] = torch.inf
    assert "  4: its weights are not finite" in refusal(net, x)


def test_counts_taken_from_the_end_of_the_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.msf, self.fc = MSF(D=2), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.msf(x)[-2])

    assert [r.planes for r in check(randomise(Net()), torch.randn(3, 2, 3), "channels").report] == [2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "calls no spiking neuron"),
        (lambda: nn.Sequential(nn.LazyLinear(3), Spikes()), "run it once first"),
        (
            lambda: nn.Sequential(nn.Linear(3, 2), Sequence(PMSN(channel_dim=-1, burst=True, channels=2))),
            "set burst=False",
        ),
        (lambda: Looped(), "torch.fx cannot trace the forward pass"),
        (lambda: Whole(), "takes the whole output of 'msf': unpack it first"),
    ],
)
def test_models_are_refused(make, message):
    assert message in refusal(make(), torch.randn(3, 2, 3))


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.msf, self.fc = MSF(), nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.fc(self.msf(x[t : t + 1])[0]) for t in range(len(x))])


class Whole(Looped):
    def forward(self, x):
        return self.fc(self.msf(x)[:1][0])


@pytest.mark.parametrize("factor", [0.5, torch.tensor([1.0, 0.5, 1.0, 1.0])], ids=["one", "by channel"])
def test_graded_spikes_are_refused(factor):
    from msf_pmsn_plugins import snntorch as framework

    net = nn.Sequential(
        nn.Linear(3, 4),
        framework.MSF.published(D=2, init_hidden=True, graded_spikes_factor=factor),
        nn.Linear(4, 2),
    )
    assert "multiplies its spikes by graded_spikes_factor" in refusal(net, torch.randn(2, 3))


def test_a_class_that_does_not_emit_binary_is_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    assert "'1' emits something else than counts 0..1" in refusal(net, torch.randn(2, 3), binary=nn.Sigmoid)


def test_a_layer_that_is_no_weighted_sum_is_found_by_comparison(x):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            return self._conv_forward(x, (w - w.mean()) / w.std(), self.bias)

    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(3), Standardised(6, 4, 3)))
    assert "'2' (Standardised) gives other results on binary input" in refusal(net, x)


def test_weights_computed_at_each_call_are_refused(x):
    net = randomise(plain(2))
    parametrize.register_parametrization(net[4], "weight", nn.Identity())
    message = "the weight of '4' is computed from other parameters at every call"
    assert message in refusal(net, x)
    with pytest.raises(deploy.DeployError, match=message):
        deploy.round_weights(net)
    with pytest.raises(deploy.DeployError, match=message):
        deploy.fold_batchnorm(net)


def test_a_reset_inside_forward_is_found_by_comparison():
    from msf_pmsn_plugins import snntorch as framework

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.last = (
                nn.Linear(3, 8),
                framework.MSF.published(D=2, beta=0.9, init_hidden=True),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            framework.reset(self)
            return self.last(self.lif(self.fc(x)))

    assert "the second call in a row gives other results" in refusal(randomise(Net()), torch.randn(4, 3) * 8)


def test_what_tracing_misses_is_found_by_comparison():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.calls = nn.Linear(3, 8), Spikes(2), 0

        def forward(self, x):
            self.calls += 1
            return self.lif(self.fc(x)) + self.calls

    net = Net()
    assert "it does something that torch.fx does not see" in refusal(net, torch.randn(4, 3)) or net.calls == 0


def test_a_state_on_a_graph_of_a_host_is_refused_and_ours_is_carried_on():
    """Nodes of ours copy their state without its graph; a framework's own cannot be copied."""
    from spikingjelly.activation_based import layer, neuron

    from msf_pmsn_plugins.spikingjelly import MSFNode

    x = torch.randn(2, 3)
    stock = nn.Sequential(layer.Linear(3, 2), neuron.LIFNode(), layer.Linear(2, 2))
    stock(x)
    assert "reset the neurons first" in refusal(stock, x, binary=neuron.LIFNode)
    net = randomise(nn.Sequential(layer.Linear(3, 6), MSFNode.published(), layer.Linear(6, 2)))
    net(x)
    assert net[1].v.requires_grad
    assert net[1].v.any()
    out = deploy.to_binary(net, x)
    for part in (x, -x):
        assert torch.equal(out(part), net(part))


@pytest.mark.parametrize("form", deploy.FORMS)
def test_what_is_named_may_have_the_counts(form, x):
    net = randomise(nn.Sequential(nn.Conv2d(3, 6, 3), Spikes(3), nn.AvgPool2d(3), nn.Conv2d(6, 4, 1)))
    assert "with counts=['2']" in refusal(net, x, form)
    out = deploy.to_binary(net, x, form, counts=["2"])
    assert torch.equal(out(x), net(x))
    assert [(r.layer, r.input, r.levels) for r in out.report][1] == ("2", "counts", 3)
    net = behind(lambda m, s, x: m.norm(s * 0.3))
    (name,) = re.findall(r"counts=\['(.*)'\]", refusal(net, x, form))
    out = deploy.to_binary(net, x, form, counts=[name])
    assert torch.equal(out(x), net(x))
    assert [(r.layer, r.input) for r in out.report][1:] == [("mul", "counts"), ("last", "real")]
    with pytest.raises(deploy.DeployError, match=r"nothing of the name\(s\) \['nowhere'\] takes counts"):
        deploy.to_binary(net, x, form, counts=["nowhere", name])
    with pytest.raises(TypeError, match="counts is a list of names"):
        deploy.to_binary(net, x, form, counts="mul")


def test_unknown_form(x):
    with pytest.raises(ValueError, match="unknown form 'unary'; known: channels, substeps, bits"):
        deploy.to_binary(plain(), x, "unary")
