"""What the axes, the block around a neuron and the example say. Runs on both versions of SpikingJelly."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode
from swap_models import Small, new_zoo, sew

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
