"""Small models that build and call their neurons as published recipes do; written for these tests.

:data:`STANDINS` names them. The neurons of the first part are a copy of SpikingJelly's older interface as recipes
carry it along: classes for multi-step neurons, no ``step_mode``, known to no installed package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from msf_pmsn_plugins import swap

# A copy of the older interface ---------------------------------------------------------------------------------------


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, alpha):
        ctx.save_for_backward(u)
        ctx.alpha = alpha
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, *grads):
        (u,) = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * u).square()) * grads[0], None


class ATan(nn.Module):
    def __init__(self, alpha=2.0):
        super().__init__()
        self.alpha, self.spiking = alpha, True

    def forward(self, u):
        return _Step.apply(u, self.alpha)


class BaseNode(nn.Module):
    """One step; state in ``v``, reset by ``reset()``."""

    def __init__(
        self, v_threshold=1.0, v_reset=0.0, surrogate_function=None, detach_reset=False, backend="cupy"
    ):
        super().__init__()
        self.v_threshold, self.v_reset, self.detach_reset = v_threshold, v_reset, detach_reset
        self.surrogate_function = surrogate_function or ATan()
        self.backend = backend
        self._memories = {"v": 0.0 if v_reset is None else v_reset}
        self._memories_rv = dict(self._memories)

    def reset(self):
        self._memories.update(self._memories_rv)

    def charge(self, x, v):
        raise NotImplementedError

    def forward(self, x):
        m = self.charge(x, self._memories["v"])
        s = self.surrogate_function(m - self.v_threshold)
        f = s.detach() if self.detach_reset else s
        after = m - f * self.v_threshold if self.v_reset is None else (1.0 - f) * m + f * self.v_reset
        self._memories["v"] = after
        return s


class IFNode(BaseNode):
    def charge(self, x, v):
        return v + x


class LIFNode(BaseNode):
    def __init__(self, tau=2.0, decay_input=True, **kwargs):
        super().__init__(**kwargs)
        self.tau, self.decay_input = tau, decay_input

    def charge(self, x, v):
        at_zero = self.v_reset is None or self.v_reset == 0
        if self.decay_input:
            return v + (x - v) / self.tau if at_zero else v + (x - (v - self.v_reset)) / self.tau
        return v * (1.0 - 1.0 / self.tau) + x if at_zero else v - (v - self.v_reset) / self.tau + x


class ParametricLIFNode(BaseNode):
    def __init__(self, init_tau=2.0, decay_input=True, **kwargs):
        super().__init__(**kwargs)
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    def charge(self, x, v):
        q = self.w.sigmoid()
        return v + (x - v) * q if self.decay_input else v * (1.0 - q) + x


class _MultiStep:
    """[T, *] -> [T, *]."""

    def forward(self, x_seq):
        return torch.stack([super(_MultiStep, self).forward(x) for x in x_seq])


class MultiStepIFNode(_MultiStep, IFNode):
    pass


class MultiStepLIFNode(_MultiStep, LIFNode):
    pass


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    pass


class EIFNode(BaseNode):
    """Dynamics that MSF does not have."""

    def charge(self, x, v):
        return v + (x - v + torch.exp(torch.as_tensor(v) - 0.8)) / 2.0


class MultiStepEIFNode(_MultiStep, EIFNode):
    pass


class Each(nn.Module):
    """Layers without time on every step of [T, N, *]."""

    def __init__(self, *layers):
        super().__init__()
        self.module = nn.Sequential(*layers)

    def forward(self, x_seq):
        return self.module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


# Neurons of a recipe's own --------------------------------------------------------------------------------------------

THRESHOLD, DECAY = 0.5, 0.25  # module globals, as in MS-ResNet's code


class _Window(torch.autograd.Function):
    """Fires strictly above the threshold."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, *grads):
        (u,) = ctx.saved_tensors
        return grads[0] * (u.abs() < 0.5).to(u)


class mem_update(nn.Module):  # so it is called there
    """[T, N, *], state forgotten after every call; another decay than the charge's algebra is written in."""

    def forward(self, x_seq):
        m, s, out = None, None, []
        for x in x_seq:
            m = x if m is None else m * DECAY * (1 - s.detach()) + x
            s = _Window.apply(m - THRESHOLD)
            out.append(s)
        return torch.stack(out)


def window(u: Tensor) -> Tensor:
    return _Window.apply(u)


class OwnLIF(nn.Module):
    """[N, T, *]: time on axis 1; keeps its state until ``reset()``."""

    def __init__(self, tau=2.0, v_th=1.0):
        super().__init__()
        self.tau, self.v_th, self.v = tau, v_th, 0.0
        self.fire = ATan()

    def reset(self):
        self.v = 0.0

    def forward(self, x):
        out = []
        for t in range(x.shape[1]):
            m = self.v + (x[:, t] - self.v) / self.tau
            s = self.fire(m - self.v_th)
            self.v = torch.where(s.detach() > 0, 0.0, m)
            out.append(s)
        return torch.stack(out, 1)


class MultiSpike(nn.Module):
    """A stateless quantiser that emits 0, 1/D .. 1."""

    def __init__(self, D=4):
        super().__init__()
        self.D = D

    def forward(self, x):
        q = x.clamp(0, 1) * self.D
        return (q + (q.round() - q).detach()) / self.D


class NormedLIF(nn.Module):
    """[T, N, *]: emits counts 0..D divided by D."""

    def __init__(self, D=4):
        super().__init__()
        self.D = D

    def forward(self, x_seq):
        v, out = torch.zeros_like(x_seq[0]), []
        for x in x_seq:
            m = 0.25 * v + x
            s = m.clamp(0, self.D).floor()
            v = m - s
            out.append(s / self.D)
        return torch.stack(out)


# Recipes ------------------------------------------------------------------------------------------------------------


class Spikformer(nn.Module):
    """Stem [T, B, C, H, W]; tokens [T, B, N, C] (``last=True``, the CIFAR-10 file) or [T, B, C, N] (the others)."""

    def __init__(self, last=True, C=16, heads=2, make=MultiStepLIFNode, classes=5):
        super().__init__()
        lif = {"tau": 2.0, "detach_reset": True}
        self.last, self.heads, self.scale = last, heads, 0.125
        self.stem = Each(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.stem_lif = make(**lif)
        self.pool = nn.MaxPool2d(2)
        self.rpe = Each(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.rpe_lif = make(**lif)
        self.attn = SSA(C, heads, last, make, lif)
        self.mlp = MLP(C, 2 * C, last, make, lif)
        self.res_lif = make(**lif)  # never called
        self.head = nn.Linear(C, classes)

    def forward(self, x_seq):
        x = self.stem_lif(self.stem(x_seq))
        x = self.pool(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        x = self.rpe_lif(self.rpe(x)) + x
        x = x.flatten(3)
        x = x.transpose(2, 3) if self.last else x
        x = x + self.attn(x)
        x = x + self.mlp(x)
        return self.head(x.mean(2 if self.last else 3)).mean(0)


class Mix(nn.Module):
    """Linear and norm over the channels of tokens [T, B, N, C] or [T, B, C, N]."""

    def __init__(self, C_in, C_out, last):
        super().__init__()
        self.last = last
        self.linear = nn.Linear(C_in, C_out, bias=False) if last else nn.Conv1d(C_in, C_out, 1, bias=False)
        self.norm = nn.BatchNorm1d(C_out)
        nn.init.constant_(self.norm.weight, 2.0)  # so that attention answers

    def forward(self, x):
        y = self.linear(x.flatten(0, 1))
        y = self.norm(y.transpose(1, 2)).transpose(1, 2) if self.last else self.norm(y)
        return y.unflatten(0, x.shape[:2])


class SSA(nn.Module):
    """Spiking self-attention; ``folded`` hands [T*B, ...] to the neuron behind the projection."""

    def __init__(self, C, heads, last, make, lif, folded=False):
        super().__init__()
        self.num_heads, self.last, self.scale, self.folded = heads, last, 0.125, folded
        for name in "qkv":
            setattr(self, name, Mix(C, C, last))
            setattr(self, f"{name}_lif", make(**lif))
        self.attn_lif = make(**{**lif, "v_threshold": 0.5})
        self.proj = Mix(C, C, last)
        self.proj_lif = make(**lif)

    def split(self, x):  # -> [T, B, heads, N, C / heads]
        x = x if self.last else x.transpose(2, 3)
        return x.unflatten(3, (self.num_heads, -1)).transpose(2, 3)

    def forward(self, x):
        q, k, v = (self.split(getattr(self, f"{n}_lif")(getattr(self, n)(x))) for n in "qkv")
        y = (q @ (k.transpose(3, 4) @ v)) * self.scale
        y = y.transpose(2, 3).flatten(3)
        y = self.attn_lif(y if self.last else y.transpose(2, 3))
        y = self.proj(y)
        if self.folded:
            return self.proj_lif(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return self.proj_lif(y)


class MLP(nn.Module):
    def __init__(self, C, hidden, last, make, lif):
        super().__init__()
        self.fc1, self.fc1_lif = Mix(C, hidden, last), make(**lif)
        self.fc2, self.fc2_lif = Mix(hidden, C, last), make(**lif)

    def forward(self, x):
        return self.fc2_lif(self.fc2(self.fc1_lif(self.fc1(x))))


class QKFormer(nn.Module):
    """Token attention [T, B, heads, 1, N] without channels, then attention with a batch folded into time."""

    def __init__(self, C=16, heads=2, make=MultiStepLIFNode, classes=5):
        super().__init__()
        lif = {"tau": 2.0, "detach_reset": True}
        self.heads = heads
        self.stem, self.stem_lif = Each(nn.Conv2d(3, C, 3, 2, 1), nn.BatchNorm2d(C)), make(**lif)
        self.q, self.q_lif = Mix(C, C, False), make(**lif)
        self.attn_lif = make(**{**lif, "v_threshold": 0.5})
        self.attn = SSA(C, heads, False, make, lif, folded=True)
        self.head = nn.Linear(C, classes)

    def forward(self, x_seq):
        x = self.stem_lif(self.stem(x_seq)).flatten(3)
        q = self.q_lif(self.q(x)).unflatten(2, (self.heads, -1))
        gate = self.attn_lif(q.sum(3, keepdim=True))
        x = x + (gate * x.unflatten(2, (self.heads, -1))).flatten(2, 3)
        return self.head((x + self.attn(x)).mean(3)).mean(0)


class SpikeDriven(nn.Module):
    """Talking heads [T, B, heads, 1, C / heads]: channels on two axes, with one of size 1 between; head [T, B, C]."""

    def __init__(self, C=16, heads=2, make=MultiStepLIFNode, classes=5):
        super().__init__()
        lif = {"tau": 2.0, "detach_reset": True}
        self.heads = heads
        self.stem, self.stem_lif = Each(nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C)), make(**lif)
        self.kv, self.kv_lif = Each(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)), make(**lif)
        self.talking_heads_lif = make(**{**lif, "v_threshold": 0.5})
        self.attn_lif = make(**lif)  # never called
        self.proj = Each(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
        self.head_lif = make(**lif)
        self.head = nn.Linear(C, classes)

    def forward(self, x_seq):
        x = self.stem_lif(self.stem(x_seq))
        kv = self.kv_lif(self.kv(x))
        t, b, c, h, w = kv.shape
        tokens = (
            kv.flatten(3).transpose(2, 3).reshape(t, b, h * w, self.heads, c // self.heads).transpose(2, 3)
        )
        gate = self.talking_heads_lif(tokens.sum(3, keepdim=True))
        y = (tokens * gate).transpose(3, 4).reshape(t, b, c, h, w)
        return self.head(self.head_lif((x + self.proj(y)).flatten(3).mean(3))).mean(0)


class SEW(nn.Module):
    """Residual blocks that combine spikes; the stem's neuron feeds the first block."""

    class Block(nn.Module):
        def __init__(self, C, connect_f, make, lif):
            super().__init__()
            self.connect_f = connect_f
            self.conv1, self.sn1 = Each(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)), make(**lif)
            self.conv2, self.sn2 = Each(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)), make(**lif)

        def forward(self, x):
            y = self.sn2(self.conv2(self.sn1(self.conv1(x))))
            return {"ADD": x + y, "AND": x * y, "IAND": x * (1.0 - y)}[self.connect_f]

    def __init__(self, connect_f="ADD", C=8, make=MultiStepIFNode, classes=5, T=None):
        super().__init__()
        lif = {"detach_reset": True}
        self.T = T
        self.first = Each(nn.Conv2d(2, C, 3, padding=1), nn.BatchNorm2d(C))
        self.zeroth_sn, self.sn = make(**lif), make(**lif)
        self.second = Each(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
        self.layer1 = nn.Sequential(self.Block(C, connect_f, make, lif), self.Block(C, connect_f, make, lif))
        self.pool = Each(nn.AvgPool2d(2))
        self.fc = nn.Linear(C, classes)

    def forward(self, x):
        x_seq = x if self.T is None else x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x = self.sn(self.second(self.zeroth_sn(self.first(x_seq))))
        return self.fc(self.pool(self.layer1(x)).flatten(3).mean(3)).mean(0)


class MSResNet(nn.Module):
    """Neuron before convolution, the recipe's own: ``make()`` takes [T, N, C, H, W]."""

    def __init__(self, make=mem_update, C=8, classes=5):
        super().__init__()
        self.stem = Each(nn.Conv2d(2, C, 3, padding=1), nn.BatchNorm2d(C))
        self.mem1, self.conv1 = make(), Each(nn.Conv2d(C, 12, 3, padding=1), nn.BatchNorm2d(12))
        self.mem2, self.conv2 = make(), Each(nn.Conv2d(12, C, 3, padding=1), nn.BatchNorm2d(C))
        self.mem3, self.fc = make(), nn.Linear(C, classes)

    def forward(self, x_seq):
        x = self.stem(x_seq)
        x = x + self.conv2(self.mem2(self.conv1(self.mem1(x))))
        return self.fc(self.mem3(x).flatten(3).mean(3)).mean(0)


class BatchFirst(nn.Module):
    """[B, T, C, H, W] throughout."""

    def __init__(self, make=OwnLIF, C=8, classes=5):
        super().__init__()
        self.conv = Each(nn.Conv2d(2, C, 3, padding=1), nn.BatchNorm2d(C))
        self.lif1, self.mix, self.lif2 = make(), nn.Linear(C, 12), make()
        self.fc = nn.Linear(12, classes)
        with torch.no_grad():
            self.mix.weight *= 6  # so that the second neuron fires

    def forward(self, x):
        y = self.lif1(self.conv(x)).flatten(3).mean(3)
        return self.fc(self.lif2(self.mix(y))).mean(1)


class Stepping(nn.Module):
    """A Python loop over single steps; ``make()`` is a single-step neuron with its state inside."""

    def __init__(self, make=LIFNode, C=10, classes=5):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, C), make()
        self.fc2, self.lif2 = nn.Linear(C, classes), make()
        with torch.no_grad():
            self.fc1.weight *= 6  # so that neurons fire
            self.fc2.weight *= 6

    def forward(self, x_seq):
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x)))) for x in x_seq]).mean(0)


class Repeating(Stepping):
    """The same, stepping T times over one input [N, C]."""

    def __init__(self, make=LIFNode, T=4):
        super().__init__(make)
        self.T = T

    def forward(self, x):
        return super().forward(x.unsqueeze(0).expand(self.T, *x.shape))


class Quantised(nn.Module):
    """An ordinary network with activations that ``make()`` builds."""

    def __init__(self, make=MultiSpike):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), make(), nn.Linear(12, 12), make(), nn.Linear(12, 5))

    def forward(self, x):
        return self.net(x)


@dataclass(frozen=True)
class Standin:
    """A model, an input, and what a plan must be told; ``verdicts`` are those of MSF(D=1) and of PMSN, by path."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    msf: dict[str, str]
    pmsn: dict[str, Any]
    neuron_classes: Any = ()
    rules: dict[str, Any] = field(default_factory=dict)  # for D = 1 and for PMSN
    settles: dict[str, Any] = field(
        default_factory=dict
    )  # more rules, under which a PMSN plan has no open verdict


MEM_UPDATE = swap.Read(
    v_threshold=THRESHOLD,
    dynamics={
        "charge": "decay",
        "tau": 1 / (1 - DECAY),
        "v_reset": 0.0,
        "detach_reset": True,
        "surrogate_function": window,
    },
)
OWN_LIF = swap.Read(
    v_threshold=lambda m: m.v_th,
    dynamics=lambda m: {
        "charge": "lif_decay_input",
        "tau": m.tau,
        "v_reset": 0.0,
        "detach_reset": True,
        "surrogate_function": m.fire,
    },
)


def _all(verdict: str, paths: str) -> dict[str, str]:
    return dict.fromkeys(paths.split(), verdict)


FORMER = (
    "stem_lif rpe_lif attn.q_lif attn.k_lif attn.v_lif attn.attn_lif attn.proj_lif mlp.fc1_lif mlp.fc2_lif"
)
SEW_SITES = "zeroth_sn sn layer1.0.sn1 layer1.0.sn2 layer1.1.sn1 layer1.1.sn2"
QK = "stem_lif q_lif attn_lif attn.q_lif attn.k_lif attn.v_lif attn.attn_lif"
FOLDED = {"attn.proj_lif": "batch folded into time"}
IMAGE = (4, 2, 3, 8, 8)

STANDINS: dict[str, Standin] = {
    "spikformer_cifar10": Standin(
        lambda: Spikformer(last=True),
        IMAGE,
        _all("ok", FORMER) | {"res_lif": "never called"},
        dict.fromkeys(FORMER.split()[2:], 2) | {"stem_lif": 1, "rpe_lif": 1},
    ),
    "spikformer_imagenet": Standin(
        lambda: Spikformer(last=False),
        IMAGE,
        _all("ok", FORMER) | {"res_lif": "never called"},
        dict.fromkeys(FORMER.split(), 1),
    ),
    "qkformer": Standin(
        QKFormer,
        IMAGE,
        _all("ok", QK) | FOLDED,
        dict.fromkeys(QK.split(), 1) | {"attn_lif": "ambiguous", "attn.proj_lif": "batch folded into time"},
        rules={"attn.proj_lif": swap.Rule(folded="reproduce")},
        settles={"attn_lif": swap.Rule(channel_dim="shared"), "attn.proj_lif": swap.Rule(folded="fix")},
    ),
    "spike_driven": Standin(
        SpikeDriven,
        IMAGE,
        _all("ok", "stem_lif kv_lif talking_heads_lif head_lif") | {"attn_lif": "never called"},
        {"stem_lif": 1, "kv_lif": 1, "talking_heads_lif": (1, 2, 3), "head_lif": 1},
    ),
    "sew_add": Standin(SEW, (4, 2, 2, 8, 8), _all("ok", SEW_SITES), dict.fromkeys(SEW_SITES.split(), 1)),
    "sew_plif": Standin(
        lambda: SEW(make=MultiStepParametricLIFNode),
        (4, 2, 2, 8, 8),
        _all("ok", SEW_SITES),
        dict.fromkeys(SEW_SITES.split(), 1),
    ),
    "sew_static": Standin(
        lambda: SEW(T=4), (2, 2, 8, 8), _all("ok", SEW_SITES), dict.fromkeys(SEW_SITES.split(), 1)
    ),
    "ms_resnet": Standin(
        MSResNet,
        (4, 2, 2, 8, 8),
        _all("ok", "mem1 mem2 mem3"),
        {"mem1": 1, "mem2": 1, "mem3": 1},
        neuron_classes={mem_update: MEM_UPDATE},
    ),
    "batch_first": Standin(
        BatchFirst,
        (2, 4, 2, 8, 8),
        _all("ok", "lif1 lif2"),
        {"lif1": 1, "lif2": 1},
        neuron_classes={OwnLIF: OWN_LIF},
    ),
    "single_steps": Standin(Stepping, (4, 2, 6), _all("single-step", "lif1 lif2"), {"lif1": 1, "lif2": 1}),
    "single_steps_repeated": Standin(
        Repeating, (2, 6), _all("single-step", "lif1 lif2"), {"lif1": 1, "lif2": 1}
    ),
}


def build(name):
    """The stand-in's net with fixed weights, an input of its shape, and what is known of it."""
    torch.manual_seed(0)
    standin = STANDINS[name]
    x = torch.rand(standin.shape, generator=torch.Generator().manual_seed(1)) * 2
    return standin.build(), x, standin
