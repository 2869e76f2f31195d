"""The same picture of several networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .axes import subplots
from .membranes import histogram
from .report import activity
from .sources import record
from .time import raster, traces

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def compare(
    nets: Mapping[str, Any],
    x_seq: Tensor,
    picture: Callable[..., Any] = raster,
    *,
    layer: str | Mapping[str, str] | None = None,
    **options: Any,
) -> list[Axes]:
    """The same picture of several neurons or networks side by side, on the same input and the same axes.

    Args:
        nets: name -> neuron of ours or of a framework, or network of such.
        x_seq: the input of each, [T, N, *].
        picture: :func:`raster`, :func:`traces`, :func:`histogram` or :func:`activity`.
        layer: path of the layer in networks; or name -> path, where they differ.
        options: for the picture.

    Returns:
        the axes, a column for each network.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> x_seq = torch.randn(40, 1, 8).mul(2)
        >>> left, right = plot.compare({"MSF": neurons.MSF(), "one level": neurons.MSF(D=1)}, x_seq)
        >>> left.get_title(), right.get_title()
        ('MSF', 'one level')
    """
    if picture not in (raster, traces, histogram, activity):
        raise ValueError("picture is one of plot.raster, plot.traces, plot.histogram, plot.activity")
    if not nets:
        raise ValueError("there is nothing to compare: nets maps names to neurons or networks")
    rows = 2 if picture is traces else 1
    shared = "row" if picture is not activity else False
    drawn = subplots(None, rows, len(nets), (4.5 * len(nets), 2.0 + 1.4 * rows), sharex="all", sharey=shared)
    paths = {name: layer.get(name) if isinstance(layer, Mapping) else layer for name in nets}
    if picture is raster:
        spikes = {name: record(net, x_seq, paths[name]).s_seq for name, net in nets.items()}
        options = {"largest": max(float(s_seq.max()) for s_seq in spikes.values()), **options}
    for column, (name, net) in enumerate(nets.items()):
        own = drawn[column :: len(nets)]
        if picture is raster:
            raster(spikes[name], ax=own[0], **options)
        elif picture is traces:
            traces(net, x_seq, layer=paths[name], axes=own, **options)
        elif picture is histogram:
            histogram(net, x_seq, layer=paths[name], ax=own[0], **options)
        else:
            activity(net, x_seq, **options).plot(own[0])
        own[0].set_title(name, fontsize="medium", pad=24 if picture is activity else None)  # over its legend
    return drawn
