"""Distributions of membranes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..neurons import MSF, PMSN
from .axes import BLUE, GREY, RED, dress, subplots
from .sources import kind_of, record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histogram(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    layer: str | None = None,
    without: str = "none",
    bins: int = 80,
    ax: Axes | None = None,
) -> Axes:
    """Distribution of the membrane before reset: as it is, and of MSF and PMSN with the reset taken away.

    Args:
        source: a neuron of ours or of a framework, a network of such, or a pair of membranes of any shape, volts: with
            and without reset.
        x_seq: the input of a neuron or network, [T, N, *].
        layer: path of the layer in a network; None where there is only one.
        without: the ``reset_mode`` that stands for no reset. ``"none"`` of MSF is the leaky integrator, that of PMSN
            the drive alone (the published ablation); ``"cumulative"`` of PMSN sums the drives up without end.
        bins: bars over the range of both.
        ax: where to draw.

    Raises:
        TypeError: a framework's neuron whose membrane cannot be seen.
        ValueError: a neuron without such a reset mode, no such layer, or membranes of which none is finite.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> ax = plot.histogram(neurons.PMSN(8), torch.randn(50, 4, 8), without="cumulative")
    """
    thresholds: Sequence[float] = ()
    if isinstance(source, tuple | list):
        if x_seq is not None:
            raise ValueError("x_seq is the input of a neuron; a pair of membranes takes none")
        parts = dict(zip(("with reset", "without reset"), source, strict=True))
    else:
        recorded = record(source, x_seq, layer, membrane=True)
        assert recorded.m_seq is not None
        thresholds = recorded.thresholds
        held = getattr(recorded.module, "neuron", recorded.module)
        parts = {f"{kind_of(held)}, with reset": recorded.m_seq}
        if isinstance(held, MSF | PMSN):
            parts = {
                f"with reset ({held.reset_mode})": recorded.m_seq,
                f"without reset ({without})": _free(held, recorded.x_seq, without),
            }
    values = [part.detach().to("cpu", torch.float64).flatten() for part in parts.values()]
    values = [part[torch.isfinite(part)] for part in values]
    if not all(len(part) for part in values):
        raise ValueError("no membrane is finite: there is nothing to count")
    low, high = (float(extreme(torch.cat(values))) for extreme in (torch.min, torch.max))
    edges = torch.linspace(low, max(high, low + 1e-6), bins + 1, dtype=torch.float64)
    (ax,) = subplots(ax, 1, 1, (7, 3))
    for part, label, color in zip(values, parts, (BLUE, RED), strict=False):
        density = torch.histogram(part, edges, density=True).hist
        ax.stairs(density, edges, fill=True, color=color, alpha=0.25)
        ax.stairs(density, edges, color=color, linewidth=1.3, label=label)
    for d, theta in enumerate(thresholds):
        ax.axvline(theta, color=GREY, linestyle=":", linewidth=1, label=None if d else "thresholds")
    dress(ax, "membrane before reset, V", "density, 1/V")
    ax.set_ylim(0, 1.12 * ax.dataLim.y1)  # no tick at the very top, where its number would be cut
    ax.legend(frameon=False)
    return ax


@torch.no_grad()
def _free(held: MSF | PMSN, x_seq: Tensor, without: str) -> Tensor:
    """Membranes with another reset."""
    before = held.reset_mode
    held.reset_mode = without
    try:
        m_seq = held.sequence(x_seq, membrane=True)[2]
    finally:
        held.reset_mode = before
    assert m_seq is not None
    return m_seq
