"""PMSN's hidden compartments: what they pass on, and how their time constants are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..neurons import PMSN
from ..neurons.computed import value_of
from .axes import BLACK, CYCLE, GREY, band, colors, dress, subplots, whole_ticks
from .sources import held_neuron

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@torch.no_grad()
def _spectrum(held: PMSN) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per step and decay time in steps of each mode, float64 [channels, modes]."""
    log_dt, log_a, a_imag = (
        value_of(held, name).detach().to("cpu", torch.float64) for name in ("log_dt", "log_A_real", "A_imag")
    )
    dt = torch.exp(log_dt).unsqueeze(1) * held.dt_scale
    return a_imag.abs() * dt / (2 * math.pi), torch.exp(-log_a) / dt


def pick_channel(held: PMSN, channel: int | None) -> slice:
    """The channels to draw: one, or all."""
    channels = held.channels
    if channels is None:
        raise ValueError("this PMSN has no channels yet: pass channels=..., or run one forward pass first")
    if channel is None:
        return slice(None)
    if not 0 <= channel < channels:
        raise ValueError(f"channel must lie in 0..{channels - 1}, got {channel}")
    return slice(channel, channel + 1)


@torch.no_grad()
def weights_of(held: PMSN, channel: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Its ``a``, ``w`` and ``d`` in double precision, of the channels to draw."""
    pick = pick_channel(held, channel)
    e, w, d = (part.detach().cpu()[pick] for part in held.weights(torch.float64))
    return 1 + e, w, d


def impulse_response(
    neuron: Any, steps: int | None = None, *, channel: int | None = None, ax: Axes | None = None
) -> Axes:
    """What each hidden compartment of a PMSN passes to the soma after an input of 1: ``Re(w_n a_n^l)`` at lag l.

    The black line is their sum. The direct gain ``D``, which adds to it at lag 0 alone, is left out: it would dwarf the
    rest. Conjugate modes have the same response: of two lines that coincide the second is dashed.

    Args:
        neuron: a PMSN.
        steps: lags to draw; None is three times the median decay time, from 16 to 2000.
        channel: one neuron of the layer; None is the mean over the layer, shaded from its 10th to its 90th percentile
            for the sum.
        ax: where to draw.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.impulse_response(neurons.PMSN(16), 100)
        >>> [line.get_label() for line in ax.lines]
        ['compartment 1', 'compartment 2', 'compartment 3', 'compartment 4', 'sum']
    """
    held = held_neuron(neuron, (PMSN,))
    a, w, _d = weights_of(held, channel)
    if steps is None:
        decay_time = _spectrum(held)[1][pick_channel(held, channel)].median()
        steps = int(min(2000, max(16, 3 * float(decay_time))))
    lag = torch.arange(steps)
    response = (w.unsqueeze(-1) * a.unsqueeze(-1) ** lag).real  # [channels, modes, steps]
    total = response.sum(1)
    (ax,) = subplots(ax, 1, 1, (7, 3))
    palette = colors(response.shape[1]) if response.shape[1] > 6 else CYCLE
    for n, part in enumerate(response.mean(0)):
        twin = n >= response.shape[1] / 2 and not held.tied
        style: dict[str, Any] = {"linestyle": (0, (4, 4)), "linewidth": 1.8} if twin else {"linewidth": 1.8}
        ax.plot(lag, part, color=palette[n], label=f"compartment {n + 1}", **style)
    band(ax, lag, total, BLACK)
    ax.plot(lag, total.mean(0), color=BLACK, linewidth=1, label="sum")
    dress(ax, "lag, steps", "response, V per unit input")
    whole_ticks(ax, "x")
    ax.set_title("layer mean" if channel is None else f"neuron {channel}", fontsize="medium")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return ax


def modes(
    neuron: Any, *, channel: int | None = None, bins: int = 30, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Frequencies and decay times of the hidden compartments of a PMSN: how they are spread over the layer.

    Frequencies are ``abs(A_imag) dt / 2 pi``, in cycles per step; beyond 0.5 (hatched) they are aliased. Decay times
    are ``1 / (exp(log_A_real) dt)``, in steps. Bars of the compartments are stacked, a dashed line is the layer's mean.

    Args:
        neuron: a PMSN.
        channel: mark the compartments of this one neuron.
        bins: bars.
        axes: two axes.

    Returns:
        the axes of the frequencies and of the decay times.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> left, right = plot.modes(neurons.PMSN(64), channel=3)
        >>> left.get_xlabel()
        'frequency, cycles per step'
    """
    held = held_neuron(neuron, (PMSN,))
    pick = pick_channel(held, channel)
    drawn = subplots(axes, 1, 2, (8, 3), sharey=True)
    xlabels = ("frequency, cycles per step", "decay time, steps")
    for ax, values, xlabel in zip(drawn, _spectrum(held), xlabels, strict=True):
        moving = values[values > 0]
        if len(moving):
            low, high = moving.min() / 1.2, moving.max() * 1.2
            edges = torch.logspace(float(low.log10()), float(high.log10()), bins + 1, dtype=values.dtype)
            columns = [column[column > 0].numpy() for column in values.T]
            count = values.shape[1]
            palette = colors(count) if count > 6 else CYCLE[:count]
            labels = [f"compartment {n + 1}" for n in range(values.shape[1])]
            ax.hist(columns, bins=edges.tolist(), stacked=True, color=list(palette), label=labels, alpha=0.8)
            ax.set_xscale("log")
            mean = float(moving.mean())
            ax.axvline(mean, color=BLACK, linestyle="--", linewidth=1, label=f"layer mean {mean:.3g}")
        if len(moving) < values.numel():
            resting = values.numel() - len(moving)
            ax.text(0.02, 0.97, f"{resting} at 0", transform=ax.transAxes, va="top", fontsize="small")
        if channel is not None:
            own = values[pick].flatten()
            style: dict[str, Any] = {
                "marker": "^",
                "s": 60,
                "color": BLACK,
                "edgecolors": "white",
                "zorder": 3,
                "clip_on": False,
            }
            ax.scatter(own, [0.0] * len(own), label=f"neuron {channel}", **style)
        dress(ax, xlabel, "")
    if float(_spectrum(held)[0].max()) > 0.5:
        drawn[0].axvspan(
            0.5, drawn[0].get_xlim()[1], facecolor="none", edgecolor=GREY, hatch="///", linewidth=0
        )
    drawn[0].set_ylabel("compartments")
    whole_ticks(drawn[0], "y")
    handles, labels = drawn[1].get_legend_handles_labels()
    drawn[1].legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small"
    )
    drawn[0].legend(*_only_mean(drawn[0]), frameon=False, fontsize="small", loc="upper left")
    return drawn


def _only_mean(ax: Axes) -> tuple[list[Any], list[str]]:
    pairs = [pair for pair in zip(*ax.get_legend_handles_labels(), strict=True) if "mean" in pair[1]]
    return [handle for handle, _ in pairs], [label for _, label in pairs]
