"""Distributions of membranes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..neurons import MSF, PMSN
from .axes import BLUE, GREY, RED, dress, subplots
from .sources import checked_sequence, held_neuron, membranes_and_spikes, thresholds_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def membrane_histogram(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    without: str = "none",
    bins: int = 80,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of the membrane before reset: as it is, and with the reset taken away.

    Args:
        source: an MSF or PMSN, or a pair of membranes of any shape, volts: with and without reset.
        x_seq: the input of a neuron, [T, N, *].
        without: the ``reset_mode`` that stands for no reset. ``"none"`` of MSF is the leaky integrator, that of PMSN
            the drive alone (the published ablation); ``"cumulative"`` of PMSN sums the drives up without end.
        bins: bars over the range of both.
        ax: where to draw.

    Raises:
        ValueError: a neuron without such a reset mode, or membranes of which none is finite.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.membrane_histogram(neurons.PMSN(8), torch.randn(50, 4, 8), without="cumulative")
    """
    thresholds: list[float] = []
    if isinstance(source, tuple | list):
        if x_seq is not None:
            raise ValueError("x_seq is the input of a neuron; a pair of membranes takes none")
        with_reset, free = source
        labels = ("with reset", "without reset")
    else:
        held = held_neuron(source, (MSF, PMSN))
        thresholds = thresholds_of(held)
        with_reset = membranes_and_spikes(source, checked_sequence(x_seq, "x_seq"))[0]
        labels = (f"with reset ({held.reset_mode})", f"without reset ({without})")
        before = held.reset_mode
        held.reset_mode = without
        try:
            with torch.no_grad():
                free = held.sequence(x_seq, membrane=True)[2]
        finally:
            held.reset_mode = before
    values = [part.detach().to("cpu", torch.float64).flatten() for part in (with_reset, free)]
    values = [part[torch.isfinite(part)] for part in values]
    if not all(len(part) for part in values):
        raise ValueError("no membrane is finite: there is nothing to count")
    low, high = (float(extreme(torch.cat(values))) for extreme in (torch.min, torch.max))
    edges = torch.linspace(low, max(high, low + 1e-6), bins + 1, dtype=torch.float64)
    (ax,) = subplots(ax, 1, 1, (7, 3))
    for part, label, color in zip(values, labels, (BLUE, RED), strict=True):
        density = torch.histogram(part, edges, density=True).hist
        ax.stairs(density, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(density, edges, color=color, linewidth=1.3, label=label)
    for d, theta in enumerate(thresholds):
        ax.axvline(theta, color=GREY, linestyle=":", linewidth=1, label=None if d else "thresholds")
    dress(ax, "membrane before reset, V", "density, 1/V")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax
