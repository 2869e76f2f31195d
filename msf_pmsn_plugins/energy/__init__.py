"""What a spiking network costs: synaptic operations, neuron updates, memory traffic, energy.

::

    with energy.counting(net, samples=16) as counts:
        net(x_seq)                      # a batch of 16 samples
    print(counts)                       # every layer: what it was given, what it cost
    print(counts.energy())              # the papers' convention, nJ a sample
    print(counts.compare(steps=4))      # the same net on integer hardware, beside quantized ANNs

A count k costs k accumulates: an input of integers is spikes, however large; any other input is real and costs
multiply-accumulates (MACs). The counter sees the tensor operations of any PyTorch module, whatever its framework.
"""

from __future__ import annotations

from .costs import FLOAT16, FLOAT32, SRAM_PJ_PER_BIT, Costs, integer
from .counter import counting
from .counts import Counts
from .layers import Neurons, Part, Synapses, Unknown
from .machines import Machine
from .rules import RULES, EnergyError, Spikes, Work, measure, spikes_of
from .sweep import plot
from .updates import UPDATES, Update, neuron_update

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "RULES",
    "SRAM_PJ_PER_BIT",
    "UPDATES",
    "Costs",
    "Counts",
    "EnergyError",
    "Machine",
    "Neurons",
    "Part",
    "Spikes",
    "Synapses",
    "Unknown",
    "Update",
    "Work",
    "counting",
    "integer",
    "measure",
    "neuron_update",
    "plot",
    "spikes_of",
]
