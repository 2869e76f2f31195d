"""ImageNet with SEW-ResNet: SpikingJelly's own network, its neurons swapped."""

import torch
from spikingjelly.activation_based import functional, layer
from spikingjelly.activation_based import neuron as stock
from spikingjelly.activation_based.model import sew_resnet
from spikingjelly.activation_based.surrogate import ATan
from torch import Tensor, nn

from msf_pmsn_plugins import swap
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

from ..neurons import MSF, PMSN, Factory

__all__ = ["SEWResNet"]


class SEWResNet(nn.Module):
    """``sew_resnet18`` .. of SpikingJelly's zoo: images [N, 3, H, W] or [T, N, 3, H, W] -> logits [T, N, classes].

    MSF and PMSN come in by :mod:`msf_pmsn_plugins.swap`, all others by the zoo's own ``spiking_neuron=``. An image is
    repeated ``steps`` times. Published: PMSN with ``init="imagenet"``, depth 18 or 34 and, what the paper does not say
    but the code does, ``offset=True, stem="avg"``: 11,814,316 and 22,018,988 parameters; without them 11,814,312 and
    22,018,984.

    Args:
        depth: 18, 34, 50, 101 or 152.
        offset: add a learned number per step to the input, so that repeated images differ from step to step.
        stem: ``"max"`` (the zoo's) or ``"avg"`` (published) pooling after the first neuron.
    """

    time_first_input = "NCHW"

    def __init__(
        self,
        depth: int,
        classes: int,
        neuron: Factory,
        steps: int = 4,
        offset: bool = False,
        stem: str = "max",
    ):
        super().__init__()
        if stem not in ("max", "avg"):
            raise ValueError(f"unknown stem {stem!r}; known: 'max', 'avg'")
        self.steps = steps
        build = getattr(sew_resnet, f"sew_resnet{depth}")
        if isinstance(neuron, MSF | PMSN):
            net = build(
                cnf="ADD", num_classes=classes, spiking_neuron=stock.IFNode, surrogate_function=ATan()
            )
            functional.set_step_mode(net, "m")
            _swap(net, neuron)
        else:
            # these need no channels
            net = build(cnf="ADD", num_classes=classes, spiking_neuron=lambda: neuron(0))
            functional.set_step_mode(net, "m")
        if stem == "avg":
            net.maxpool = layer.AvgPool2d(3, 2, padding=1, step_mode="m")
        self.net = net
        self.offset = None
        if offset:
            self.offset = nn.Parameter(nn.init.trunc_normal_(torch.empty(steps, 1, 1, 1, 1), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            x = x.unsqueeze(0).expand(self.steps, *x.shape)
        if self.offset is not None:
            if len(x) != len(self.offset):
                raise ValueError(
                    f"this network has an offset for each of {len(self.offset)} steps, got T = {len(x)}"
                )
            x = x + self.offset
        return self.net(x)


def _swap(net: nn.Module, neuron: MSF | PMSN) -> None:
    """Put ``neuron`` in place of the stock ones; the swap finds the channels of each site."""
    example = torch.zeros(2, 1, 3, 32, 32)
    if isinstance(neuron, MSF):
        target = swap.MSF(D=neuron.D, v_threshold=neuron.v_threshold)
        swap.plan(net, example, target, dynamics="published").apply()
        for node in net.modules():
            if isinstance(node, MSFNode):
                node.tau = neuron.tau
        return
    if neuron.tied:
        raise ValueError("a swap makes untied PMSN: tied=True is not for SEWResNet")
    swap.plan(net, example, swap.PMSN(neuron.compartments, init=neuron.init)).apply()
    for node in net.modules():
        if isinstance(node, PMSNNode):
            node.neuron.reset_mode = "floor" if neuron.reset else "none"
            node.neuron.coeff = neuron.coeff
            node.neuron.context = neuron.context
