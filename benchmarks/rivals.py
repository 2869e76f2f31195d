"""What the neurons are compared with: the published forms, written anew from their equations, and the hosts' neurons.

Each rival is built for one shape and maps an input [T, B, C, *] to spikes of the same shape, or (``time_last``) an
input that was put into the layout (B, C, T) before the clock started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msf_pmsn_plugins.neurons import MSF, PMSN


class _Rectangle(torch.autograd.Function):
    """The published MSF firing: D comparisons, D windows of half-width 1/2."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, v_threshold: float, D: int) -> Tensor:
        ctx.save_for_backward(m)
        ctx.settings = v_threshold, D
        s = (m >= v_threshold).to(m.dtype)
        for d in range(1, D):
            s = s + (m >= v_threshold + d)
        return s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (m,) = ctx.saved_tensors
        v_threshold, D = ctx.settings
        slope = ((m - v_threshold).abs() < 0.5).to(m.dtype)
        for d in range(1, D):
            slope = slope + ((m - v_threshold - d).abs() < 0.5)
        return grads[0] * slope, None, None


class PublishedMSF(nn.Module):
    """MSF as published: a loop over time in torch, autograd through it. Inputs are taken apart with ``unbind``."""

    def forward(self, x_seq: Tensor) -> Tensor:
        m: Tensor | None = None
        keep, s_seq = None, []
        for x in x_seq.unbind(0):
            m = x if m is None else 0.25 * m * keep + x
            s = _Rectangle.apply(m, 1.0, 4)
            keep = (s.detach() == 0).to(x.dtype)
            s_seq.append(s)
        return torch.stack(s_seq)


class _Triangle(torch.autograd.Function):
    """The published reset of PMSN: floors of a cumulative sum; the gradient is elementwise."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        c = torch.cumsum(torch.relu(y), -1)
        whole = torch.floor(c)
        v = c.clone()
        v[..., 1:] -= whole[..., :-1]
        ctx.save_for_backward(v, y)
        return (v >= 1).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        v, y = ctx.saved_tensors
        return grads[0] * (1 - (v - 1).abs()).clamp(min=0) * (y > 0)


class PublishedPMSN(nn.Module):
    """PMSN as published: FFT convolution with the kernel of the whole sequence, then the cumulative-sum reset.

    Layout (B, C, T). ``serial_last`` keeps the convolution and walks the soma step by step.
    """

    def __init__(self, neuron: PMSN, serial_last: bool = False) -> None:
        super().__init__()
        self.neuron = neuron
        self.serial_last = serial_last

    def forward(self, u: Tensor) -> Tensor:
        n, steps = self.neuron, u.shape[-1]
        dt = torch.exp(n.log_dt)
        lam = torch.complex(-torch.exp(n.log_A_real), n.A_imag)
        b, c = torch.complex(n.VinvB_real, n.VinvB_imag), torch.complex(n.CV_real, n.CV_imag)
        at = lam * dt.unsqueeze(-1)
        b_bar = b * (torch.exp(at) - 1) / lam
        powers = torch.exp(at.unsqueeze(-1) * torch.arange(steps, device=u.device))
        kernel = torch.einsum("hn,hnl->hl", c * b_bar, powers).real
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * steps) * torch.fft.rfft(kernel, n=2 * steps), n=2 * steps)
        y = y[..., :steps] + u * n.D.unsqueeze(-1)
        if not self.serial_last:
            return _Triangle.apply(y)
        r, s_list = torch.zeros_like(y[..., 0]), []
        for now in y.unbind(-1):
            v = r + torch.relu(now)
            s_list.append(n.surrogate(v - 1))
            r = (v - torch.floor(v)).detach()
        return torch.stack(s_list, -1)


class SerialLIF(nn.Module):
    """LIF step by step in torch, as papers' speed figures time it."""

    def forward(self, x_seq: Tensor) -> Tensor:
        v, s_seq = torch.zeros_like(x_seq[0]), []
        for x in x_seq.unbind(0):
            m = 0.5 * v + x
            s = _Rectangle.apply(m, 1.0, 1)
            v = m * (1 - s.detach())
            s_seq.append(s)
        return torch.stack(s_seq)


class OracleLoop(nn.Module):
    """A loop over our own ``step``."""

    def __init__(self, neuron: MSF | PMSN) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x_seq: Tensor) -> Tensor:
        state, s_seq = self.neuron.initial_state(x_seq[0]), []
        for x in x_seq.unbind(0):
            s, state, _ = self.neuron.step(x, state)
            s_seq.append(s)
        return torch.stack(s_seq)


class Ours(nn.Module):
    """The neuron itself."""

    def __init__(self, neuron: MSF | PMSN) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.neuron(x_seq)[0]


class _Reset(nn.Module):
    """A SpikingJelly node, reset before every sequence."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, x_seq: Tensor) -> Tensor:
        if hasattr(self.node, "reset"):
            self.node.reset()
        return self.node(x_seq)


class _SnnTorchLoop(nn.Module):
    def __init__(self, leaky: nn.Module) -> None:
        super().__init__()
        self.leaky = leaky

    def forward(self, x_seq: Tensor) -> Tensor:
        mem, s_seq = torch.zeros_like(x_seq[0]), []
        for x in x_seq.unbind(0):
            s, mem = self.leaky(x, mem)
            s_seq.append(s)
        return torch.stack(s_seq)


class _StateLeaky(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_seq: Tensor) -> Tensor:
        out = self.layer(x_seq)
        return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True)
class Rival:
    """A name, what builds it for an input [T, B, C, *], and its own layout (a permutation of those axes)."""

    name: str
    build: Callable[[Tensor], nn.Module]
    time_last: bool = False
    same: bool = False  # computes the same function as ours: checked before it is timed
    largest: int = 2**40  # most elements it is timed on
    longest: int = 2**40  # most steps it is timed on
    positions: bool = True  # takes axes behind the channels


def _spikingjelly(name: str, **kwargs: Any) -> Callable[[Tensor], nn.Module]:
    def build(x_seq: Tensor) -> nn.Module:
        from spikingjelly.activation_based import neuron

        if name in ("PSN", "SlidingPSN"):
            extra = {"T": len(x_seq)} if name == "PSN" else {"k": 32, "step_mode": "m"}
            return _Reset(getattr(neuron, name)(**extra, **kwargs))
        return _Reset(getattr(neuron, name)(step_mode="m", **kwargs))

    return build


def _snntorch_leaky(x_seq: Tensor) -> nn.Module:
    import snntorch

    return _SnnTorchLoop(snntorch.Leaky(beta=0.25, reset_mechanism="zero"))


def _state_leaky(x_seq: Tensor) -> nn.Module:
    import snntorch

    return _StateLeaky(snntorch.StateLeaky(beta=0.5, channels=x_seq.shape[2]))


def msf_rivals() -> list[Rival]:
    """For MSF; the first is the published form."""
    return [
        Rival("published loop", lambda x: PublishedMSF(), same=True),
        Rival("SpikingJelly LIFNode", _spikingjelly("LIFNode", tau=4 / 3, decay_input=False)),
        Rival("SpikingJelly ILIFNode", _spikingjelly("ILIFNode")),
        Rival("snnTorch Leaky loop", _snntorch_leaky),
        Rival("our step loop", lambda x: OracleLoop(MSF()), same=True, longest=256),
        Rival("our torch backend", lambda x: Ours(MSF(backend="torch")), same=True),
    ]


def pmsn_rivals(neuron: PMSN) -> list[Rival]:
    """For PMSN, with the parameters of ``neuron``; the first is the published form."""
    import copy

    from msf_pmsn_plugins.neurons import MSN

    def torch_backend(x_seq: Tensor) -> nn.Module:
        ours = copy.deepcopy(neuron)
        ours.backend = "torch"
        return Ours(ours)

    return [
        Rival("published FFT", lambda x: PublishedPMSN(neuron), time_last=True, same=True),
        Rival(
            "published, serial soma",
            lambda x: PublishedPMSN(neuron, True),
            time_last=True,
            same=True,
            longest=1024,
        ),
        Rival("serial MSN", lambda x: OracleLoop(MSN(x.shape[2], 5)), longest=256),  # type: ignore[arg-type]
        Rival("SpikingJelly PSN", _spikingjelly("PSN"), longest=8192),
        Rival("SpikingJelly SlidingPSN", _spikingjelly("SlidingPSN"), longest=2048),
        Rival("snnTorch StateLeaky", _state_leaky, longest=1024, positions=False),
        Rival("our step loop", lambda x: OracleLoop(neuron), same=True, longest=64),
        Rival("our torch backend", torch_backend, same=True),
    ]
