"""What goes back: gradients over lags, slopes over membranes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..neurons.nodes import held_by
from ..surrogate import FireFunction, Surrogate
from ..surrogate import summed_slope as _summed_slope
from ..tensors import floating
from .axes import GREY, dress, next_color, subplots, whole_ticks
from .sources import checked_sequence, flat, held_neuron, kind_of, spikes_of, thresholds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def gradient_by_lag(
    neuron: Any,
    x_seq: Tensor,
    *,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How far back the gradient reaches: its size at the input ``lag`` steps before the last output.

    The size is the root mean square over all elements of ``d sum(s[T-1]) / d x[T-1-lag]``. Lags without any gradient
    are left out: the axis is logarithmic. Draw several neurons into one ``ax`` to compare them.

    Args:
        neuron: a neuron, or any callable from [T, N, *] to spikes [T, N, *], such as a network (at rest: its nodes keep
            their states).
        x_seq: the input, [T, N, *].
        label, color: of this neuron; None takes the name of its class, the next colour.
        ax: where to draw.

    Raises:
        ValueError: no gradient arrives at the input.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> x_seq = torch.randn(60, 32, 8).mul(2)
        >>> ax = plot.gradient_by_lag(neurons.MSF(), x_seq)
        >>> ax = plot.gradient_by_lag(neurons.PMSN(8), x_seq, ax=ax)
    """
    x = floating(checked_sequence(x_seq, "x_seq")).detach().clone().requires_grad_()
    if held_by(neuron) is not None:
        held_neuron(neuron)
    with torch.enable_grad():
        last = spikes_of(neuron, x)[-1].sum()
        gradient = torch.autograd.grad(last, x, allow_unused=True)[0] if last.requires_grad else None
    if gradient is None or not gradient.any():
        raise ValueError(
            "no gradient arrives at the input: its surrogate is zero at all membranes of the last step"
        )
    size = flat(gradient).square().mean(1).sqrt().flip(0)
    (ax,) = subplots(ax, 1, 1, (7, 3))
    lag = size.nonzero().squeeze(1)
    kind = kind_of(neuron)
    name = kind if label is None else label
    ax.plot(
        lag,
        size[lag],
        color=next_color(ax, color, kind),
        linewidth=1.6,
        marker="o",
        markersize=2.5,
        label=name,
    )
    ax.set_yscale("log")
    dress(ax, "lag, steps", "gradient, rms")
    whole_ticks(ax, "x")
    ax.legend(frameon=False, fontsize="small")
    return ax


def summed_slope(
    source: Any,
    surrogate: str | Surrogate | FireFunction | None = None,
    *,
    label: str | None = None,
    color: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The slope that a neuron passes back, over its membrane, beside the derivative of ReLU.

    The slope is :func:`msf_pmsn_plugins.surrogate.summed_slope`, one surrogate for each threshold. For burst spikes of
    PMSN see :data:`msf_pmsn_plugins.neurons.pmsn.BURSTS`: they have another slope and are refused.

    Args:
        source: a neuron, or thresholds in volts.
        surrogate: the surrogate of thresholds given as numbers: a name, an object or a callable.
        label, color: of this line; None takes the surrogate's name, the next colour.
        ax: where to draw; a second line there leaves ReLU as it is.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.summed_slope(neurons.MSF(D=4))
        >>> ax = plot.summed_slope([1, 2, 3, 4], "atan", ax=ax)
        >>> [line.get_label() for line in ax.lines]
        ["ReLU's derivative", 'rectangular, width 0.5', 'atan, width 2']
    """
    if isinstance(source, list | tuple):
        if surrogate is None:
            raise ValueError("thresholds alone have no slope: give a surrogate")
        thresholds = [float(theta) for theta in source]
        surrogate = Surrogate(surrogate) if isinstance(surrogate, str) else surrogate
    else:
        if surrogate is not None:
            raise ValueError("a neuron has a surrogate of its own: give thresholds to draw another one")
        held = held_neuron(source)
        if getattr(held, "burst", False):
            raise ValueError("with burst spikes the slope repeats itself at every threshold: set burst=False")
        thresholds, surrogate = list(thresholds_of(held)), held.surrogate
        if not thresholds:
            raise ValueError(
                "each neuron has thresholds of its own here: give the list of one, and a surrogate"
            )
    assert surrogate is not None
    low, high = min(0.0, thresholds[0] - 1.5), thresholds[-1] + 1.5
    # between round numbers, where windows meet: there the rectangle is 0 at single points
    u = low + (torch.arange(4000, dtype=torch.float64) + 0.5) * ((high - low) / 4000)
    (ax,) = subplots(ax, 1, 1, (7, 3))
    if not ax.lines:
        style: dict[str, Any] = {
            "color": GREY,
            "linewidth": 2.5,
            "linestyle": "-",
            "label": "ReLU's derivative",
        }
        ax.step([min(low, -0.5), 0.0, high], [0.0, 0.0, 1.0], where="pre", **style)
        shown = len(thresholds) <= 16
        ax.set_xticks([0.0, *thresholds] if shown else [0.0, thresholds[0], thresholds[-1]])
    name = getattr(surrogate, "name", type(surrogate).__name__)
    width = getattr(surrogate, "width", None)
    text = name if width is None else f"{name}, width {width:.3g}"
    slopes = _summed_slope(u, thresholds, surrogate)
    ax.plot(u, slopes, color=next_color(ax, color), linewidth=1.5, label=label or text)
    dress(ax, "membrane, V (ticks: thresholds)", "slope, count per V")
    ax.legend(frameon=False, fontsize="small")
    return ax
