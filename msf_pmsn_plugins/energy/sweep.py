"""Accuracy against energy, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(curves: Mapping[str, Sequence[Sequence[Any]]], ax: Axes | None = None) -> Axes:
    """Accuracy against energy for sweeps.

    Args:
        curves: name -> points ``(energy in nJ, accuracy)``, with a label as third entry where one is wanted.
        ax: matplotlib axes; None makes new ones.

    Returns:
        The axes, energy on a logarithmic axis.

    Example::

        energy.plot({"MSF": [(1.2, 0.81, "D = 1"), (1.9, 0.88, "D = 4")], "LIF": [(1.1, 0.80)]})
    """
    from ..plot.axes import dress, next_color, subplots

    if not curves or any(len(point) not in (2, 3) for points in curves.values() for point in points):
        raise ValueError("curves maps a name to points (energy in nJ, accuracy) or (energy, accuracy, label)")
    (ax,) = subplots(ax, 1, 1, (6.0, 4.0))
    for name, points in curves.items():
        ordered = sorted(points, key=lambda point: point[0])
        energies, accuracies = ([point[i] for point in ordered] for i in (0, 1))
        ax.plot(energies, accuracies, "o-", color=next_color(ax, None), label=name)
        for x, y, *label in ordered:
            if label:
                ax.annotate(label[0], (x, y), textcoords="offset points", xytext=(6, -10), fontsize="small")
    ax.set_xscale("log")
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
    ax.margins(x=0.15, y=0.1)
    dress(ax, "energy per sample (nJ)", "accuracy")
    ax.legend(frameon=False)
    return ax
