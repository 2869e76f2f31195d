"""MSF and PMSN as SpikingJelly nodes, for SpikingJelly 2.0.0 and 0.0.0.0.14.

A node holds a framework-neutral neuron and only translates conventions: memories, step modes, the host's words and
surrogate objects. :mod:`.tools` makes SpikingJelly's own utilities right for integer spikes, :mod:`.host` is what the
swap asks of it.
"""

from .version import FUNCTIONAL  # first: it says what to install where SpikingJelly is missing

# isort: split
from .base import SpikingJellyNode
from .nodes import MSFNode, ParallelIFNode, PMSNNode, register

for _public in (MSFNode, PMSNNode, ParallelIFNode, SpikingJellyNode):
    _public.__module__ = __name__  # where pickles and SpikingJelly's registry look for them

__all__ = ["MSFNode", "PMSNNode", "ParallelIFNode", "SpikingJellyNode", "register"]
