"""Gain over frequency."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..charges import CHARGES
from ..neurons import MSF, PMSN
from ..neurons.computed import value_of
from .axes import band, dress, next_color, subplots
from .compartments import pick_channel, weights_of
from .sources import held_neuron, spikes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _charge_gains(held: MSF) -> tuple[Tensor, Tensor]:
    """Gain of the input and decay of the membrane in one step, float64 [channels]; [1] without channels."""
    charge = CHARGES[held.charge[0 if held.training else 1]]
    rates: dict[str, Any] = {"decay": held.decay, "tau": held.tau, "none": 0.0}
    rate = value_of(held, "w").sigmoid() if charge.rate == "w" else rates[charge.rate]
    rate = torch.as_tensor(rate, dtype=torch.float64, device="cpu").detach().reshape(-1)
    one, zero = torch.ones_like(rate), torch.zeros_like(rate)
    gain, decay = (charge.forward(x, v, rate, 0.0, held.input_scale) for x, v in ((one, zero), (zero, one)))
    return gain, decay


@torch.no_grad()
def _linear_response(held: Any, omega: Tensor, channel: int | None) -> Tensor:
    """Transfer function from the input to the membrane (MSF) or to the drive of the soma (PMSN), [channels, f]."""
    delay = torch.exp(-1j * omega)
    if isinstance(held, MSF):
        gain, decay = _charge_gains(held)
        return gain.unsqueeze(-1) / (1 - decay.unsqueeze(-1) * delay)
    a, w, d = (part.unsqueeze(-1) for part in weights_of(held, channel))
    modes = w / (1 - a * delay) + w.conj() / (1 - a.conj() * delay)
    return modes.sum(1) / 2 + d


def _batch_of_steps(held: Any, current: Tensor) -> Tensor:
    """``current`` [T, lanes] in every channel: the input [T, lanes, .., C, ..] that ``channel_dim`` asks for."""
    rates = held.decay_logit if isinstance(held, MSF) else held.D
    channels = len(rates) if rates is not None and rates.dim() else 1
    dims = held.channel_dim if isinstance(held.channel_dim, tuple | list) else (held.channel_dim,)
    shape = [1] * (dims[-1] if dims[-1] > 0 else -dims[0])
    shape[dims[-1] - 1 if dims[-1] > 0 else dims[-1]] = channels
    return current.reshape(*current.shape, *[1] * len(shape)).expand(*current.shape, *shape)


@torch.no_grad()
def _measured_response(
    source: Any, held: Any, amplitude: float, bias: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Frequencies, and the spikes' fundamental per amplitude of a sine as input, [channels, f]."""
    cycles = torch.logspace(0, math.log10(steps / 2 - 1), 40).round().unique()
    omega = 2 * math.pi * cycles / steps
    t = torch.arange(2 * steps).unsqueeze(1)
    current = bias + amplitude * torch.sin(omega * t)
    s_seq = spikes_of(source, _batch_of_steps(held, current))[
        steps:
    ].double()  # the first half is the transient
    s_seq = s_seq.reshape(steps, len(cycles), -1)
    wave = torch.exp(-1j * (omega * t[steps:]).double()).unsqueeze(-1)
    return cycles / steps, (s_seq * wave).sum(0).abs().T * (2 / (steps * amplitude))


def frequency_response(
    neuron: Any,
    *,
    channel: int | None = None,
    amplitude: float | None = None,
    bias: float = 0.0,
    steps: int = 512,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Gain of a neuron over frequency: which rhythms of its input it passes on.

    The line is exact: from the input to the membrane below threshold (MSF), or to the drive of the soma (PMSN). With
    ``amplitude`` dots are added, measured: the neuron is fed ``bias + amplitude sin``, and a dot is the amplitude of
    that frequency in its spikes, per ``amplitude``. Draw several neurons into one ``ax`` to compare them.

    Args:
        neuron: an MSF or PMSN.
        channel: one neuron of the layer; None is the mean of the gains over the layer, shaded from the 10th to the
            90th percentile.
        amplitude, bias: of the sine, in units of the input.
        steps: length of the measurement, after as many steps of run-in; at least 8.
        label, color: of this neuron; None takes the name of its class, the next colour.
        ax: where to draw.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.frequency_response(neurons.MSF(decay=0.9))
        >>> ax = plot.frequency_response(neurons.PMSN(16), amplitude=2.0, steps=64, ax=ax)
    """
    held = held_neuron(neuron, (MSF, PMSN))
    pick = (
        pick_channel(held, channel)
        if isinstance(held, PMSN)
        else slice(channel, None if channel is None else channel + 1)
    )
    if steps < 8 or (amplitude is not None and not amplitude > 0):
        raise ValueError(f"steps must be at least 8 and amplitude positive, got {steps} and {amplitude}")
    (ax,) = subplots(ax, 1, 1, (7, 3.2))
    color = next_color(ax, color, type(held).__name__)
    label = type(held).__name__ if label is None else label
    f = torch.logspace(-3.3, math.log10(0.5), 400, dtype=torch.float64)
    gain = _linear_response(held, 2 * math.pi * f, channel).abs()
    gain = gain if isinstance(held, PMSN) else gain[pick]
    band(ax, f, gain, color)
    ax.plot(f, gain.mean(0), color=color, linewidth=1.6, label=label)
    if amplitude is not None:
        at, spikes = _measured_response(neuron, held, amplitude, bias, steps)
        style: dict[str, Any] = {
            "linestyle": "none",
            "marker": "o",
            "markersize": 4,
            "markerfacecolor": "white",
        }
        ax.plot(at, spikes[pick].mean(0), color=color, label=f"{label}, its spikes", **style)
    ax.set(xscale="log", yscale="log")
    dress(ax, "frequency, cycles per step", "gain, output per unit input")
    ax.legend(frameon=False, fontsize="small")
    return ax
