"""Dead and hyperactive neurons."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..neurons.nodes import takes_sequences
from ..tables import aligned
from .axes import GREY, RED, SKY, dress, subplots
from .sources import kind_of, record, spiking_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class LayerActivity:
    """What one layer fired: sums over all samples and steps that were seen, for each of its neurons."""

    kind: str
    high: float
    seen: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Spikes of each neuron, [*] of one step [N, *]."""
    active: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Steps in which each neuron fired at least once, [*]."""
    largest: float = 0.0
    """Largest count in one step."""

    def add(self, s_seq: Tensor) -> None:
        """Count ``s_seq`` [M, *], M samples and steps."""
        s_seq = s_seq.detach().to(torch.float64)
        total, active = (part.sum(0).cpu() for part in (s_seq, (s_seq > 0).double()))
        if self.seen and total.shape != self.total.shape:
            raise ValueError(
                f"this layer had {tuple(self.total.shape)} neurons before and has {tuple(total.shape)} now: its report "
                "needs inputs of one size"
            )
        self.total = self.total + total if self.seen else total
        self.active = self.active + active if self.seen else active
        self.seen += len(s_seq)
        self.largest = max(self.largest, float(s_seq.max()) if s_seq.numel() else 0.0)

    @property
    def rate(self) -> Tensor:
        """Spikes per step of each neuron, [*]."""
        return self.total / self.seen

    @property
    def dead(self) -> Tensor:
        """Neurons that never fired, bool [*]."""
        return self.active == 0

    @property
    def hyperactive(self) -> Tensor:
        """Neurons that fired in at least the share ``high`` of all steps, bool [*]."""
        return (self.active >= self.high * self.seen) & ~self.dead


@dataclass
class Activity:
    """The report of :func:`activity`: print it, plot it, or read ``layers``, by path in the network."""

    high: float
    net: nn.Module = field(repr=False)
    layers: dict[str, LayerActivity] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list, repr=False)

    def layer(self, path: str) -> LayerActivity:
        """The report on one layer, empty at first."""
        return self.layers.setdefault(path, LayerActivity(kind_of(self.net.get_submodule(path)), self.high))

    def __enter__(self) -> Activity:
        for path, module in spiking_layers(self.net).items():
            self._handles.append(module.register_forward_hook(partial(self._watch, path)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _watch(self, path: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        s = output[0] if isinstance(output, tuple) else output
        self.layer(path).add(s.flatten(0, 1) if takes_sequences(module) else s)

    def __str__(self) -> str:
        rows = [("layer", "neuron", "neurons", "spikes/step", "largest", "dead", "hyperactive")]
        for path, layer in self.layers.items():
            dead, hyperactive = _percent(layer.dead), _percent(layer.hyperactive)
            numbers = f"{layer.total.numel():,}", f"{float(layer.rate.mean()):.4f}", f"{layer.largest:g}"
            rows.append((path or "(root)", layer.kind, *numbers, f"{dead:.1f} %", f"{hyperactive:.1f} %"))
        silent = [path or "(root)" for path, layer in self.layers.items() if bool(layer.dead.all())]
        foot = f"dead: never fired; hyperactive: fired in at least {100 * self.high:g} % of all steps"
        foot += f"\nsilent, no neuron fired: {', '.join(silent)}" if silent else ""
        return f"{aligned(rows, right_from=2)}\n{foot}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Shares of dead, ordinary and hyperactive neurons, a bar for each layer, first layer on top."""
        if not self.layers:
            raise ValueError("no layer has fired yet: run the network inside the with block first")
        (ax,) = subplots(ax, 1, 1, (7, 1.2 + 0.4 * len(self.layers)))
        names = [f"{path or '(root)'} ({layer.kind})" for path, layer in self.layers.items()]
        dead = [_percent(layer.dead) for layer in self.layers.values()]
        hyper = [_percent(layer.hyperactive) for layer in self.layers.values()]
        left = [0.0] * len(names)
        ordinary = [100 - a - b for a, b in zip(dead, hyper, strict=True)]
        parts = (
            ("dead", dead, GREY, "//"),
            ("ordinary", ordinary, SKY, ""),
            ("hyperactive", hyper, RED, "xx"),
        )
        for label, shares, color, hatch in parts:
            style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5}
            ax.barh(range(len(names)), shares, left=left, height=0.65, label=label, **style)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        for row, layer in enumerate(self.layers.values()):
            rate = float(layer.rate.mean())
            text = "silent" if bool(layer.dead.all()) else f"{rate:.3g} spikes/step"
            ax.text(101, row, text, va="center", fontsize="small")
        ax.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
        ax.invert_yaxis()
        dress(ax, "share of neurons, %", "")
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small")
        return ax


def _percent(which: Tensor) -> float:
    return 100 * float(which.double().mean())


def activity(net: nn.Module, x_seq: Tensor | None = None, *, high: float = 0.9) -> Activity:
    """Which neurons of a network never fire, and which fire nearly always.

    Every spiking neuron of ``net`` is counted, of ours (bare or held by a node) or of a framework, whether it runs step
    by step or over whole sequences. Give the input, ``activity(net, x_seq)``: the network is run on it from rest and
    left as it was. Or watch passes of your own, ``with activity(net) as report:``.

    Args:
        net: a network, or a single neuron or node.
        x_seq: its input, [T, N, *]; None watches inside a ``with`` block.
        high: a neuron is hyperactive that fires in at least this share of all steps, in (0, 1].

    Raises:
        ValueError: no such neuron in ``net``.

    Examples:
        >>> from msf_pmsn_plugins import neurons, plot
        >>> neuron = neurons.MSF(D=2)
        >>> with plot.activity(neuron) as report:
        ...     _ = neuron(torch.tensor([[[0.0, 1.0, 3.0]], [[0.0, 0.0, 3.0]]]))
        >>> print(report)
        layer   neuron  neurons  spikes/step  largest    dead  hyperactive
        ------  ------  -------  -----------  -------  ------  -----------
        (root)  MSF           3       0.8333        2  33.3 %       33.3 %
        dead: never fired; hyperactive: fired in at least 90 % of all steps
        >>> ax = report.plot()
    """
    if not 0 < high <= 1:
        raise ValueError(f"high, a share of all steps, must lie in (0, 1], got {high!r}")
    if not spiking_layers(net):
        raise ValueError(
            "this network has no neuron, of this package or of a framework, that could be watched"
        )
    report = Activity(high, net)
    if x_seq is not None:
        for path in spiking_layers(net):
            s_seq = record(net, x_seq, path).s_seq
            report.layer(path).add(s_seq.flatten(0, 1) if s_seq.dim() > 1 else s_seq)
    return report
