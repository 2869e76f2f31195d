"""What a node shows of the neuron that it holds: the neuron's own words, read and set through the node."""

from __future__ import annotations

from typing import Any

__all__ = ["ShowsMSF", "ShowsPMSN", "ShowsParallelIF", "of_neuron"]


def of_neuron(name: str, what: str, fixed: bool = False) -> property:
    """The attribute ``name`` of the neuron that a node holds, as a property; ``fixed``: chosen at construction."""

    def read(node: Any) -> Any:
        return getattr(node.neuron, name)

    def write(node: Any, value: Any) -> None:
        setattr(node.neuron, name, value)

    return property(read, None if fixed else write, doc=what)


class ShowsMSF:
    """For nodes that hold a MSF."""

    D = of_neuron("D", "The number of thresholds.")
    threshold_step = of_neuron("threshold_step", "The spacing of the thresholds, volts.")
    thresholds = of_neuron(
        "thresholds",
        "The thresholds in volts. Assign a list to replace ``D``, the first and the spacing, None to go back.",
    )


class ShowsPMSN:
    """For nodes that hold a PMSN."""

    channels = of_neuron("channels", "Size of the channel axis, None before it is known.", fixed=True)
    compartments = of_neuron("compartments", "The hidden compartments plus the soma.", fixed=True)
    channel_dim = of_neuron("channel_dim", "The channel axis in the per-step tensor, or several.")
    init = of_neuron("init", "The name of the published initialisation.", fixed=True)
    reset_mode = of_neuron("reset_mode", "How the soma resets.")
    burst = of_neuron("burst", "Whether spikes are counts, and where their surrogate is read.")
    coeff = of_neuron("coeff", "Factor on the drive of the soma.")
    residual = of_neuron("residual", '``"float"`` or ``"fixed"`` point.')
    tied = of_neuron("tied", "Whether conjugate modes share their parameters.", fixed=True)
    context = of_neuron("context", '``"local"`` or ``"global"``.')
    dt_scale = of_neuron("dt_scale", "Factor on the time steps.")


class ShowsParallelIF:
    """For nodes that hold a ParallelIF."""

    burst = of_neuron("burst", "Whether spikes are counts, and where their surrogate is read.")
