"""Over time: membranes and counts, rasters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .axes import BLACK, GREY, colors, dress, say_silent, subplots, whole_ticks
from .sources import checked_sequence, flat, record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def traces(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    layer: str | None = None,
    s_seq: Tensor | None = None,
    thresholds: Sequence[float] = (),
    lanes: Sequence[int] = (0,),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Membranes before reset over their spike counts, step by step.

    Args:
        source: a neuron of ours or of a framework, a network of such, or membranes [T, *] in volts.
        x_seq: the input of a neuron or network, [T, N, *].
        layer: path of the layer in a network; None where there is only one.
        s_seq: the counts that belong to membranes given as a tensor, in their shape; None draws the membranes alone.
        thresholds: lines to draw for membranes given as a tensor, volts; a neuron knows its own.
        lanes: which elements of one step [N, *], counted flat; each has a colour of its own.
        axes: two axes (one, if there are no counts).

    Returns:
        the axes of the membranes and, if there are counts, those of the counts.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> above, below = plot.traces(neurons.MSF(), torch.randn(40, 1, 2).mul(2), lanes=[0, 1])
        >>> below.get_ylabel()
        'count'
    """
    if isinstance(source, Tensor):
        if x_seq is not None:
            raise ValueError(
                "x_seq is the input of a neuron; membranes given as a tensor take s_seq=, their counts"
            )
        m_seq = checked_sequence(source, "source")
    else:
        if s_seq is not None or len(thresholds):
            raise ValueError("a neuron makes its own counts and knows its thresholds: give x_seq alone")
        recorded = record(source, x_seq, layer, membrane=True)
        assert recorded.m_seq is not None
        m_seq, s_seq, thresholds = recorded.m_seq, recorded.s_seq, recorded.thresholds
    if s_seq is not None and s_seq.shape != m_seq.shape:
        raise ValueError(f"counts {tuple(s_seq.shape)} and membranes {tuple(m_seq.shape)} differ in shape")
    rows = 1 if s_seq is None else 2
    drawn = subplots(axes, rows, 1, (7, 1.4 + 1.2 * rows), sharex=True, gridspec_kw=_heights(rows))
    for color, lane in zip(colors(len(lanes)), lanes, strict=True):
        drawn[0].plot(flat(m_seq)[:, lane], color=color, linewidth=1.3, label=f"element {lane}")
        if s_seq is not None:
            drawn[1].step(range(len(s_seq)), flat(s_seq)[:, lane], where="mid", color=color, linewidth=1.3)
    for d, theta in enumerate(thresholds):
        drawn[0].axhline(
            theta, color=GREY, linestyle=":", linewidth=1, label=None if d else "thresholds", zorder=1
        )
    dress(drawn[0], "" if rows == 2 else "time, steps", "membrane, V")
    whole_ticks(drawn[0], "x")
    if s_seq is not None:
        dress(drawn[1], "time, steps", "count")
        whole_ticks(drawn[1])
        say_silent(drawn[1], flat(s_seq)[:, list(lanes)])
    if len(lanes) > 1 or len(thresholds):
        drawn[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize="small")
    return drawn


def _heights(rows: int) -> dict[str, Any]:
    return {"height_ratios": (2, 1)} if rows == 2 else {}


def raster(
    source: Any,
    x_seq: Tensor | None = None,
    *,
    layer: str | None = None,
    size: float | None = None,
    largest: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Which neuron fires when, and how often: the area and the darkness of a dot are its count.

    Args:
        source: spikes [T, *], counts of any size; a neuron of ours or of a framework; or a network of such. All
            elements of one step are drawn, so give one sample: ``s_seq[:, 0]``, ``x_seq[:, :1]``.
        x_seq: the input of a neuron or network, [T, N, *].
        layer: path of the layer in a network; None where there is only one.
        size: diameter of the dot of the largest count, points; None fits the rows.
        largest: the count of the darkest dot, to compare pictures; None is the largest there is.
        ax: where to draw.

    Raises:
        ValueError: spikes that are negative or not finite; no such layer, or several and none named.

    Examples:
        >>> from msf_pmsn_plugins import plot
        >>> ax = plot.raster(torch.tensor([[0, 1], [4, 0]]))
        >>> ax.collections[0].get_offsets().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    if not isinstance(source, Tensor):
        source = record(source, x_seq, layer).s_seq
    elif x_seq is not None:
        raise ValueError("x_seq is the input of a neuron; spikes given as a tensor take none")
    counts = flat(checked_sequence(source, "source"))
    if not (torch.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError("spikes must be finite and not negative")
    (ax,) = subplots(ax, 1, 1, (7, 3))
    units = counts.shape[1]
    largest = max(float(counts.max()), largest or 0.0)
    if size is None:
        height = ax.bbox.height * 72 / ax.figure.dpi
        size = min(8.0, max(1.5, 1.1 * height / units))
    t, unit = counts.nonzero(as_tuple=True)
    value = counts[t, unit]
    whole = bool((value == value.round()).all())
    many = largest > 1 or not whole
    shades = {"c": value, **_dark(largest, whole and largest <= 10)} if many else {"color": BLACK}
    area = size**2 * value / max(largest, 1.0)
    dots = ax.scatter(t, unit, s=area, linewidths=0, marker="o", **shades)
    ax.set(xlim=(-0.5, len(counts) - 0.5), ylim=(-0.5, units - 0.5))
    dress(ax, "time, steps", "neuron")
    ax.grid(visible=False)
    whole_ticks(ax)
    say_silent(ax, counts)
    if many:
        ax.figure.colorbar(
            dots,
            ax=ax,
            label="count",
            pad=0.01,
            ticks=range(1, int(largest) + 1) if whole and largest <= 10 else None,
        )
    return ax


def _dark(largest: float, few: bool) -> dict[str, Any]:
    """Colours from viridis' green to its darkest end, so that every count is seen on white; a step each if ``few``."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

    count = int(largest) if few else 256
    cmap = ListedColormap(colormaps["viridis"](torch.linspace(0.75, 0, count).numpy()))
    edges = torch.arange(0.5, largest + 1).tolist()
    return {"cmap": cmap, "norm": BoundaryNorm(edges, count) if few else Normalize(0.0, largest)}
