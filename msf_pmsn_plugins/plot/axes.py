"""Axes, their dress and their colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..words import install

if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY = "#000000", "#999999"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
# One colour for each neuron, in every picture that draws one line a neuron.
OF_NEURON = {
    **dict.fromkeys(("MSF", "MSFNode"), BLUE),
    **dict.fromkeys(("PMSN", "PMSNNode"), RED),
    **dict.fromkeys(("LIFNode", "ParametricLIFNode", "Leaky", "IFNode"), GREEN),
    **dict.fromkeys(("ParallelIF", "ParallelIFNode"), ORANGE),
    "MSN": PURPLE,
}


def pyplot() -> Any:
    """``matplotlib.pyplot``, or an ImportError that names the extra."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"msf_pmsn_plugins.plot cannot import matplotlib ({error}): {install('plot')}"
        ) from error
    return plt


def subplots(given: Any, rows: int, columns: int, size: tuple[float, float], **options: Any) -> list[Axes]:
    """The axes that were given, checked, or those of a new figure of ``size`` inches."""
    count = rows * columns
    if given is None:
        _figure, grid = pyplot().subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        return list(grid.flat)
    axes = [given] if hasattr(given, "plot") else list(given)
    if len(axes) != count:
        raise ValueError(f"this picture needs {count} axes, got {len(axes)}")
    return axes


def dress(ax: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, and the look of all pictures."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def whole_ticks(ax: Axes, axes: str = "xy") -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for name in axes:
        getattr(ax, f"{name}axis").set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def next_color(ax: Axes, color: str | None, kind: str = "") -> str:
    """``color``, or the neuron's own, or the first of ours that no line of these axes has."""
    used = {line.get_color() for line in ax.lines}
    own = OF_NEURON.get(kind)
    if color is None and own is not None and own not in used:
        return own
    return color or next((ours for ours in CYCLE if ours not in used), BLACK)


def colors(count: int) -> list[Any]:
    """As many colours, no two alike: ours, or of a longer scale where they do not suffice."""
    if count <= len(CYCLE):
        return list(CYCLE[:count])
    from matplotlib import colormaps

    return list(colormaps["turbo"](torch.linspace(0.02, 0.98, count).numpy()))


def say_silent(ax: Axes, s_seq: Tensor) -> None:
    """Say in the picture that nothing fired, where nothing did."""
    if not bool(s_seq.any()):
        steps = f"{len(s_seq)} step{'s' if len(s_seq) > 1 else ''}"
        text = f"silent: no spike in {steps}"  # above the flat line of the counts
        ax.text(0.5, 0.55, text, transform=ax.transAxes, ha="center", va="bottom")


def band(ax: Axes, x: Tensor, lanes: Tensor, color: str) -> None:
    """Shade from the 10th to the 90th percentile of ``lanes`` [lanes, x]."""
    if len(lanes) > 1:
        low, high = torch.quantile(lanes, torch.tensor([0.1, 0.9], dtype=lanes.dtype), dim=0)
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
