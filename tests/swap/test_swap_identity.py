"""Where a swap at D = 1 changes no bit: the table on the page on swapping is what these tests find. On both hosts."""

from __future__ import annotations

import re

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from helpers import ROOT
from msf_pmsn_plugins import snntorch, swap
from msf_pmsn_plugins import spikingjelly as framework

NODES = {
    "IFNode": lambda **k: neuron.IFNode(**k),
    "LIFNode": lambda **k: neuron.LIFNode(tau=1.7, **k),
    "LIFNode, decay_input=False": lambda **k: neuron.LIFNode(tau=1.7, decay_input=False, **k),
    "ParametricLIFNode": lambda **k: neuron.ParametricLIFNode(**k),
}
RESETS = {
    "hard, detached": {"v_reset": 0.0, "detach_reset": True},
    "hard": {"v_reset": 0.0},
    "soft, detached": {"v_reset": None, "detach_reset": True},
    "soft": {"v_reset": None},
    "below, detached": {"v_reset": -0.25, "detach_reset": True},
    "below": {"v_reset": -0.25},
}


def channels_last(x):
    return x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])


# What comes to the neuron, and what is done with its output; the norm before sums in memory order.
LAYOUTS = {
    "contiguous": (lambda x: x, lambda y: y),
    "channels last": (channels_last, lambda y: y),
    "view behind": (lambda x: x, lambda y: y.flatten(3).transpose(-1, -2)),
    "batch first": (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda y: y),
}


class Net(nn.Module):
    def __init__(self, make, layout, step_mode):
        super().__init__()
        torch.manual_seed(1)
        self.before, self.after = LAYOUTS[layout]
        self.conv = layer.Conv2d(3, 8, 3, padding=1, step_mode="m")
        self.norm = layer.BatchNorm2d(8, step_mode="m")
        self.node, self.step_mode = make(step_mode=step_mode), step_mode

    def forward(self, x):
        h = self.norm(self.conv(self.before(x)))
        y = self.node(h) if self.step_mode == "m" else torch.stack([self.node(h_t) for h_t in h])
        return self.after(y)


def run(net, x):
    functional.reset_net(net)
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    if not y.requires_grad or (not net.training and not framework.FUNCTIONAL):
        return y.detach(), []  # the older host passes no gradient in evaluation
    y.backward(torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).cos())
    grads = {name: p.grad for name, p in net.named_parameters() if not name.startswith("node.")}
    return y.detach(), [x.grad, *grads.values()]


def pair(node, reset, layout, mode, steps, step_mode):
    """Outputs and gradients of the net as it is, and of the swapped one."""

    def make(step_mode):
        return NODES[node](surrogate_function=surrogate.ATan(), step_mode=step_mode, **RESETS[reset])

    x = 3 * torch.rand(steps, 2, 3, 6, 6, generator=torch.Generator().manual_seed(steps))
    results = []
    for swapped in (False, True):
        net = Net(make, layout, step_mode)
        if swapped:
            plan = swap.plan(net, x, swap.MSF(D=1, backend="torch"))
            plan.apply()
        results.append(run(net.train(mode == "train"), x))
    return results


def rounding(reset):
    """The one setting whose gradients are summed in another order."""
    return reset == "below"


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("node", NODES)
def test_nothing_changes_whatever_the_settings(node, reset, mode):
    (y, grads), (y_new, grads_new) = pair(node, reset, "contiguous", mode, 3, "m")
    assert 0 < y.mean() < 1
    assert torch.equal(y_new, y)
    for new, old in zip(grads_new, grads, strict=True):
        if rounding(reset):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(new, old)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_changes_whatever_the_layout(layout, mode, step_mode, steps):
    (y, grads), (y_new, grads_new) = pair("LIFNode", "hard, detached", layout, mode, steps, step_mode)
    assert torch.equal(y_new, y)
    for new, old in zip(grads_new, grads, strict=True):
        assert torch.equal(new, old)


# Where gradients lie decides in which order a norm in front sums them.
ORDERS = {
    "contiguous": (0, 1, 2, 3),
    "channels last": (0, 2, 3, 1),
    "transposed": (0, 1, 3, 2),
    "batch inside": (1, 0, 2, 3),
}


def in_order(x, order):
    """``x`` [N, C, H, W] with its axes in another order of memory."""
    return x.permute(ORDERS[order]).contiguous().permute([ORDERS[order].index(d) for d in range(4)])


def gradient_strides(call, inputs, grads):
    """Strides of the gradients as they come back to ``inputs``, of which ``call`` makes outputs."""
    seen = {}
    views = [x.requires_grad_().view_as(x) for x in inputs]
    for i, view in enumerate(views):
        view.register_hook(lambda g, i=i: seen.update({i: g.stride()}))
    torch.autograd.backward(call(views), grads)
    return seen


@pytest.mark.parametrize("behind", ORDERS)
@pytest.mark.parametrize("before", ORDERS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_gradients_lie_as_those_of_the_old_node(step_mode, steps, before, behind):
    old = NODES["LIFNode"](surrogate_function=surrogate.ATan(), step_mode=step_mode)
    new = framework.MSFNode(1.7, surrogate_function=surrogate.ATan(), step_mode=step_mode, D=1)

    def strides(node):
        inputs = [in_order(torch.rand(2, 3, 4, 5), before) for _ in range(steps)]
        grads = [in_order(torch.rand(2, 3, 4, 5), behind) for _ in range(steps)]
        if step_mode == "s":
            return gradient_strides(lambda xs: [node(x) for x in xs], inputs, grads)
        return gradient_strides(lambda xs: [node(xs[0])], [torch.stack(inputs)], [torch.stack(grads)])

    assert strides(new) == strides(old)


@pytest.mark.parametrize("behind", ORDERS)
@pytest.mark.parametrize("before", ORDERS)
@pytest.mark.parametrize("mechanism", ["zero", "subtract"])
def test_gradients_lie_as_those_of_leaky(mechanism, before, behind):
    def strides(node):
        inputs = [in_order(torch.rand(2, 3, 4, 5), before) for _ in range(3)]
        node.reset_mem()
        grads = [in_order(torch.rand(2, 3, 4, 5), behind) for _ in inputs]
        return gradient_strides(lambda xs: [node(x) for x in xs], inputs, grads)

    settings = {"beta": 0.5, "reset_mechanism": mechanism, "init_hidden": True}
    assert strides(snntorch.MSF(D=1, **settings)) == strides(snn.Leaky(**settings))


def table():
    """The rows of the page: node and reset -> where gradients are equal."""
    lines = ["| node | " + " | ".join(RESETS) + " |", "| --- " * (len(RESETS) + 1) + "|"]
    for node in NODES:
        cells = []
        for reset in RESETS:
            (_, grads), (_, new) = pair(node, reset, "contiguous", "train", 3, "m")
            equal = all(torch.equal(a, b) for a, b in zip(grads, new, strict=True))
            cells.append("bits" if equal else "rounding")
        lines.append(f"| `{node}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_on_the_page_is_what_holds():
    page = (ROOT / "docs" / "swap.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- identity -->\n\n(.*?)\n\n<!-- end -->", page, flags=re.DOTALL)
    assert shown == table()
