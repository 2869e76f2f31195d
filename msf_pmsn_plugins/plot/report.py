"""Dead and hyperactive neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..neurons import Neuron
from ..tables import aligned
from .axes import GREY, RED, SKY, dress, subplots

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
    layers: dict[str, LayerActivity] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("layer", "neuron", "neurons", "spikes/step", "largest", "dead", "hyperactive")]
        for path, layer in self.layers.items():
            dead, hyperactive = _percent(layer.dead), _percent(layer.hyperactive)
            numbers = f"{layer.total.numel():,}", f"{float(layer.rate.mean()):.4f}", f"{layer.largest:g}"
            rows.append((path or "(root)", layer.kind, *numbers, f"{dead:.1f} %", f"{hyperactive:.1f} %"))
        foot = f"dead: never fired; hyperactive: fired in at least {100 * self.high:g} % of all steps"
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
            ax.text(101, row, f"{rate:.3g} spikes/step", va="center", fontsize="small")
        ax.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 100))
        ax.invert_yaxis()
        dress(ax, "share of neurons, %", "")
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize="small")
        return ax


def _percent(which: Tensor) -> float:
    return 100 * float(which.double().mean())


@contextmanager
def activity(net: nn.Module, high: float = 0.9) -> Iterator[Activity]:
    """Watch the neurons of a network: which never fire, which fire nearly always.

    Every neuron of ``net``, bare or held by a node, is counted in every forward pass inside the ``with`` block, whether
    it runs step by step or over whole sequences.

    Args:
        net: a network, or a single neuron or node.
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
    nodes = {path: m for path, m in net.named_modules() if isinstance(getattr(m, "neuron", None), Neuron)}
    inside = {id(node.neuron) for node in nodes.values()}
    bare = {path: m for path, m in net.named_modules() if isinstance(m, Neuron) and id(m) not in inside}
    if not nodes and not bare:
        raise ValueError("this network has no neuron of msf_pmsn_plugins that could be watched")
    report = Activity(high)

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            s = output[0] if isinstance(output, tuple) else output
            kind = type(getattr(module, "neuron", module)).__name__
            step_by_step = (
                getattr(module, "step_mode", "m") == "s" or getattr(module, "sequence", True) is False
            )
            layer = report.layers.setdefault(path, LayerActivity(kind, high))
            layer.add(s if step_by_step else s.flatten(0, 1))

        return hook

    handles = [module.register_forward_hook(watch(path)) for path, module in (nodes | bare).items()]
    try:
        yield report
    finally:
        for handle in handles:
            handle.remove()
