"""Nets that several tests of the swap use, and what is compared of them."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import nn

from msf_pmsn_plugins import spikingjelly as framework

new_zoo = pytest.mark.skipif(not framework.FUNCTIONAL, reason="Spikformer came with SpikingJelly 2.0.0")


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


class Square(nn.Module):
    """[T, N, L] -> [T, N, 6, L]: where L is 6 the widths do not say which axis of its neuron is the channels."""

    def __init__(self):
        super().__init__()
        self.node = neuron.IFNode(step_mode="m")

    def forward(self, x_seq):
        return self.node(x_seq.unsqueeze(2).expand(-1, -1, 6, -1))


class TimeInBatch(nn.Module):
    """A multi-step neuron that is given [T*N, *]."""

    def __init__(self):
        super().__init__()
        self.node = neuron.IFNode(step_mode="m")

    def forward(self, x_seq):
        return self.node(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


NEW = "the new neurons bring {} parameters, which are in no optimizer made before: make the optimizer after the swap"


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


def gradients(net, x):
    net.zero_grad()
    functional.reset_net(net)
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.arange(1.0, y.shape[-1] + 1)).sum().backward()
    return y.detach(), x.grad, {n: p.grad for n, p in net.named_parameters()}
