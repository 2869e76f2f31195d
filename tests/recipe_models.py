"""Tiny builds of every recipe: SpikingJelly's zoos, and stand-ins of our own where no package has the model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from msf_pmsn_plugins.swap.legacy import legacy_imports

ZOO = "spikingjelly.activation_based.model"
IF = {"spiking_neuron": neuron.IFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True}


def zoo(path: str, *args: Any, step_mode: str | None = None, **kwargs: Any) -> nn.Module:
    """A model of the zoo, with norms that let spikes through."""
    module, name = path.split(":")
    net = getattr(import_module(f"{ZOO}.{module}"), name)(*args, **kwargs)
    if step_mode is not None:
        functional.set_step_mode(net, step_mode)
    return lively(net)


def lively(net: nn.Module) -> nn.Module:
    """Weights that let spikes through, in evaluation as in training."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0.4, 1.2)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            with torch.no_grad():
                module.weight.mul_(10 if isinstance(module, nn.Linear) else 4)
    return net


@dataclass(frozen=True)
class Model:
    """How to build it, what it takes, and since which SpikingJelly it is there."""

    recipe: str
    build: Any
    shape: tuple[int, ...]
    new: bool = False  # only in 2.0.0
    slow: bool = False  # large, whatever the arguments


def old_style(
    path: str, shape: tuple[int, ...], recipe: str, *args: Any, slow: bool = False, **kwargs: Any
) -> Model:
    return Model(recipe, lambda: zoo(path, *args, step_mode="m", **{**IF, **kwargs}), shape, slow=slow)


def new_style(path: str, shape: tuple[int, ...], recipe: str, **kwargs: Any) -> Model:
    return Model(recipe, lambda: zoo(path, **kwargs), shape, new=True)


# Stand-ins: each has the construction pattern of a published file, and nothing of its text ----------------------------


def legacy_spikformer() -> nn.Module:
    """Old imports, backend='cupy', tokens [T, B, N, C] with the channels last, T kept by the model."""
    with legacy_imports():
        from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        from timm.models.layers import DropPath, trunc_normal_
        from timm.models.registry import register_model
        from timm.models.vision_transformer import _cfg

        def lif(**kwargs: Any) -> nn.Module:
            return MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy", **kwargs)

        class Tokens(nn.Module):
            """Linear, norm over channels, neuron, on [T, B, N, C]."""

            def __init__(self, width: int, out: int, **kwargs: Any) -> None:
                super().__init__()
                self.linear, self.bn, self.lif = nn.Linear(width, out), nn.BatchNorm1d(out), lif(**kwargs)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.bn(self.linear(x).flatten(0, 1).transpose(1, 2)).transpose(1, 2)
                return self.lif(y.reshape(*x.shape[:2], *y.shape[1:]).contiguous())

        class SSA(nn.Module):
            scale = 0.125

            def __init__(self, dim: int, num_heads: int) -> None:
                super().__init__()
                self.num_heads = num_heads
                self.q, self.k, self.v, self.proj = (Tokens(dim, dim) for _ in range(4))
                self.attn_lif = lif(v_threshold=0.5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k, v = (
                    f(x).unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for f in (self.q, self.k, self.v)
                )
                y = (q @ k.transpose(-1, -2) * self.scale) @ v
                return self.proj(self.attn_lif(y.transpose(2, 3).flatten(3)))

        class Block(nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                self.attn, self.drop = SSA(dim, 4), DropPath(0.1)
                self.mlp = nn.Sequential(Tokens(dim, 2 * dim), Tokens(2 * dim, dim))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x + self.drop(self.attn(x))
                return x + self.mlp(x)

        class Spikformer(nn.Module):
            def __init__(self, dim: int = 16, T: int = 3) -> None:
                super().__init__()
                self.T = T
                self.patch = nn.Conv2d(3, dim, 4, 4, bias=False)
                self.patch_bn, self.patch_lif = nn.BatchNorm2d(dim), lif()
                self.rpe_lif = lif()  # never called
                self.block = nn.ModuleList([Block(dim)])
                self.head = nn.Linear(dim, 5)
                trunc_normal_(self.head.weight, std=0.5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
                y = self.patch_bn(self.patch(x.flatten(0, 1)))
                y = self.patch_lif(y.reshape(*x.shape[:2], *y.shape[1:]).contiguous())
                y = y.flatten(-2).transpose(-1, -2)
                for block in self.block:
                    y = block(y)
                return self.head(y.mean(2).mean(0))

        @register_model
        def spikformer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            model = Spikformer(**kwargs)
            model.default_cfg = _cfg()
            return model

        return lively(spikformer(T=3))


def legacy_sew(connect_f: str = "ADD") -> nn.Module:
    """``spikingjelly.cext`` neurons, containers with a child ``module``, [N, T, C, H, W] permuted, one image size."""
    with legacy_imports():
        from spikingjelly.cext import neuron as cext_neuron
        from spikingjelly.clock_driven import layer as old

        def conv(n: int, m: int, kernel: int = 3) -> nn.Module:
            return old.SeqToANNContainer(
                nn.Conv2d(n, m, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(m)
            )

        class Block(nn.Module):
            def __init__(self, n: int) -> None:
                super().__init__()
                self.connect_f = connect_f
                self.conv1, self.sn1 = conv(n, n), cext_neuron.MultiStepIFNode(detach_reset=True)
                self.conv2, self.sn2 = conv(n, n), cext_neuron.MultiStepParametricLIFNode(detach_reset=True)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.sn2(self.conv2(self.sn1(self.conv1(x))))
                return x * (1.0 - y) if self.connect_f == "IAND" else x + y

        class SEWResNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv1, self.sn1 = conv(2, 8, 1), cext_neuron.MultiStepIFNode(detach_reset=True)
                self.pool = old.SeqToANNContainer(nn.MaxPool2d(2))
                self.layer1 = nn.Sequential(Block(8))
                self.fc = nn.Linear(8 * 8 * 8, 5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.layer1(self.pool(self.sn1(self.conv1(x.transpose(0, 1)))))
                return self.fc(x.flatten(2).mean(0))

        net = lively(SEWResNet())
        nn.init.constant_(net.layer1[0].conv2.module[1].weight, 1.0)  # as published scripts reach it
        return net


def legacy_qkformer() -> nn.Module:
    """A gate without channels, [T, B, heads, 1, N], and a neuron that takes [T*B, C, N]."""
    with legacy_imports():
        from spikingjelly.clock_driven.neuron import MultiStepLIFNode

        def lif(**kwargs: Any) -> nn.Module:
            return MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy", **kwargs)

        class Conv(nn.Module):
            def __init__(self, n: int, m: int) -> None:
                super().__init__()
                self.conv, self.bn, self.lif = nn.Conv1d(n, m, 1, bias=False), nn.BatchNorm1d(m), lif()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = self.bn(self.conv(x.flatten(0, 1)))
                return self.lif(y.reshape(*x.shape[:2], *y.shape[1:]))

        class TokenAttention(nn.Module):
            def __init__(self, dim: int, num_heads: int) -> None:
                super().__init__()
                self.num_heads = num_heads
                self.q, self.k, self.attn_lif = Conv(dim, dim), Conv(dim, dim), lif(v_threshold=0.5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k = (f(x).unflatten(2, (self.num_heads, -1)) for f in (self.q, self.k))
                return (self.attn_lif(q.sum(3, keepdim=True)) * k).flatten(2, 3)

        class SSA(nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                self.q, self.k = Conv(dim, dim), Conv(dim, dim)
                self.proj_conv, self.proj_bn = nn.Conv1d(dim, dim, 1), nn.BatchNorm1d(dim)
                self.proj_lif = lif()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                y = (self.q(x) + self.k(x)).flatten(0, 1)
                y = self.proj_lif(self.proj_bn(self.proj_conv(y)))
                return y.reshape(x.shape)

        class Token(nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                self.tssa = TokenAttention(dim, 4)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.tssa(x)

        class Spiking(nn.Module):
            def __init__(self, dim: int) -> None:
                super().__init__()
                self.ssa = SSA(dim)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.ssa(x)

        class spiking_transformer(nn.Module):
            T = 3

            def __init__(self, dim: int = 16) -> None:
                super().__init__()
                self.patch_embed1 = Conv(3, dim)
                self.stage1 = nn.ModuleList([Token(dim)])
                self.stage3 = nn.ModuleList([Spiking(dim)])
                self.head = nn.Linear(dim, 5)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.patch_embed1(x.flatten(2).unsqueeze(0).repeat(self.T, 1, 1, 1))
                for block in (*self.stage1, *self.stage3):
                    x = block(x)
                return self.head(x.mean(3).mean(0))

        return lively(spiking_transformer())


THRESH, DECAY, STEPS = 0.5, 0.25, 3


class Spike(torch.autograd.Function):
    """Fires above the threshold; a rectangle as its derivative."""

    @staticmethod
    def forward(ctx: Any, m: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(m)
        return m.gt(THRESH).float()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (m,) = ctx.saved_tensors
        return grad * ((m - THRESH).abs() < 0.5).float()


class mem_update(nn.Module):
    """A recipe's own neuron: [T, N, C, H, W] from rest in every call, constants of its file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem, spike, steps = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for t in range(STEPS):
            mem = mem * DECAY * (1 - spike.detach()) + x[t]
            spike = Spike.apply(mem)
            steps.append(spike)
        return torch.stack(steps)


class ResNet_origin_18(nn.Module):
    """Neurons before the convolutions, sums of membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer.Conv2d(3, 8, 3, padding=1, step_mode="m")
        self.act1, self.act2 = mem_update(), mem_update()
        self.conv1 = layer.Conv2d(8, 8, 3, padding=1, step_mode="m")
        self.bn = layer.BatchNorm2d(8, step_mode="m")
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1))
        x = x + self.bn(self.conv1(self.act1(x)))
        return self.fc(self.act2(x).mean((0, 3, 4)))


class SnnDelays(nn.Module):
    """A convolution over time before every neuron; the forward runs through plain lists of the modules."""

    def __init__(self) -> None:
        super().__init__()

        def lif(threshold: float = 1.0) -> nn.Module:
            return neuron.LIFNode(
                1.5,
                False,
                threshold,
                surrogate_function=surrogate.ATan(5.0),
                detach_reset=True,
                step_mode="m",
            )

        def delays(n: int, m: int) -> nn.Module:  # dilated, with learnable spacings, in the original
            return nn.Conv1d(n, m, 5, bias=False)

        self.blocks = [
            [[delays(6, 8), layer.BatchNorm1d(8, step_mode="m")], [lif(), layer.Dropout(0.4, step_mode="m")]],
            [[delays(8, 4)], [lif(1e9)]],
        ]
        self.model = nn.Sequential(*(module for block in self.blocks for part in block for module in part))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block[0][0](nn.functional.pad(x.permute(1, 2, 0), (4, 0))).permute(2, 0, 1)
            for norm in block[0][1:]:
                x = norm(x.unsqueeze(3)).squeeze(3)
            for module in block[1]:
                x = module(x)
        return x + self.blocks[-1][1][0].v  # spikes, of which there are none, and the membrane


MODELS = {
    "sew_resnet18": old_style(
        "sew_resnet:sew_resnet18", (3, 2, 3, 32, 32), "sew_resnet", cnf="ADD", num_classes=5
    ),
    "sew_resnet50": old_style(
        "sew_resnet:sew_resnet50", (2, 2, 3, 32, 32), "sew_resnet", cnf="ADD", num_classes=5, slow=True
    ),
    "spiking_resnet18": old_style(
        "spiking_resnet:spiking_resnet18", (3, 2, 3, 32, 32), "spiking_resnet", num_classes=5, slow=True
    ),
    "spiking_vgg11_bn": old_style(
        "spiking_vgg:spiking_vgg11_bn", (3, 2, 3, 32, 32), "spiking_vgg", num_classes=5, slow=True
    ),
    "plif_dvs_gesture": old_style(
        "parametric_lif_net:DVSGestureNet",
        (3, 2, 2, 128, 128),
        "plif_net",
        2,
        spiking_neuron=neuron.ParametricLIFNode,
    ),
    "plif_mnist": old_style(
        "parametric_lif_net:MNISTNet", (3, 2, 1, 28, 28), "plif_net", 4, spiking_neuron=neuron.LIFNode
    ),
    "spikformer": new_style(
        "spikformer:Spikformer",
        (3, 2, 3, 16, 16),
        "spikformer",
        T=3,
        img_size_h=16,
        img_size_w=16,
        patch_size=4,
        num_classes=5,
        embed_dims=32,
        num_heads=4,
        depths=2,
        mlp_ratio=2.0,
    ),
    "qkformer": new_style(
        "qkformer:QKFormer",
        (3, 2, 3, 64, 64),
        "qkformer",
        T=3,
        num_classes=5,
        embed_dims=64,
        num_heads=(2, 4, 4),
        depths=(1, 1, 1),
        mlp_ratio=2.0,
    ),
    "spike_driven_transformer": new_style(
        "spike_driven_transformer:SpikeDrivenTransformer",
        (3, 2, 3, 32, 32),
        "spike_driven_transformer",
        T=3,
        num_classes=5,
        embed_dims=32,
        num_heads=4,
        depths=2,
        mlp_ratio=2.0,
    ),
    "maxformer": new_style(
        "maxformer:MaxFormer",
        (3, 2, 3, 64, 64),
        "max_former",
        T=3,
        num_classes=5,
        embed_dims=128,
        depths=(1, 1, 1),
        mlp_ratio=2.0,
    ),
    "maxformer_cifar": new_style(
        "maxformer:MaxFormer",
        (3, 2, 3, 32, 32),
        "max_former",
        T=3,
        num_classes=5,
        embed_dims=64,
        depths=(1, 1, 1),
        mlp_ratio=2.0,
        cifar=True,
    ),
    "max_resnet18": new_style(
        "ms_resnet:MaxResNet",
        (3, 2, 3, 32, 32),
        "max_former",
        T=3,
        num_classes=5,
        layers=(1, 1, 1),
        stage_channels=(8, 16, 32),
        base_channels=8,
        stem_kernel_size=3,
        stem_stride=1,
    ),
    "ms_resnet": new_style(
        "ms_resnet:MSResNet",
        (3, 2, 3, 32, 32),
        "ms_resnet",
        T=3,
        num_classes=5,
        layers=(1, 1, 1, 1),
        base_channels=8,
    ),
    "masnn": new_style(
        "masnn:MASNN",
        (10, 2, 2, 16, 16),
        "ma_snn",
        T=10,
        num_classes=5,
        input_size=(16, 16),
        channels=(8, 16, 16),
        fc_hidden=16,
    ),
    "att_ms_resnet": new_style(
        "masnn:AttMSResNet",
        (3, 2, 3, 32, 32),
        "ma_snn",
        T=3,
        num_classes=5,
        layers=(1, 1, 1, 1),
        base_channels=16,
    ),
    "legacy_spikformer": Model("spikformer", legacy_spikformer, (2, 3, 16, 16)),
    "legacy_sew": Model("sew_resnet", legacy_sew, (2, 3, 2, 16, 16)),
    "legacy_qkformer": Model("qkformer", legacy_qkformer, (2, 3, 4, 4)),
    "own_neuron": Model("ms_resnet", lambda: lively(ResNet_origin_18()), (2, 3, 8, 8)),
    "learnable_delays": Model("learnable_delays", lambda: lively(SnnDelays()), (7, 3, 6)),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model in evaluation mode and an input, the same every time."""
    torch.manual_seed(0)
    net = MODELS[name].build().eval()
    return net, torch.rand(MODELS[name].shape, generator=torch.Generator().manual_seed(1))
