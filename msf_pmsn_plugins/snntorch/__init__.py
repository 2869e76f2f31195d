"""MSF and PMSN as snnTorch neurons, for snnTorch 1.0.0 and 0.9.4.

A node holds a framework-neutral neuron (``.neuron``) and only translates conventions: constructor words, hidden or
passed state, return arity, the moment of the reset. ``threshold``, ``beta``, ``reset_mechanism`` and ``spike_grad`` are
kept in the neuron alone; the node shows them under snnTorch's names and takes new values by assignment.
"""

from ..words import install

try:
    import snntorch
except ImportError as error:
    raise ImportError(
        f"msf_pmsn_plugins.snntorch cannot import snnTorch ({error}): {install('snntorch')}"
    ) from error

from .base import SnnTorchNeuron
from .neurons import MSF, PMSN, ParallelIF
from .patch import patched
from .states import detach, reset
from .training import BPTT, RTRL, TBPTT, any_spike

for _public in (MSF, PMSN, ParallelIF, SnnTorchNeuron):
    _public.__module__ = __name__  # where pickles look for them

__all__ = [
    "BPTT",
    "MSF",
    "PMSN",
    "RTRL",
    "TBPTT",
    "ParallelIF",
    "SnnTorchNeuron",
    "any_spike",
    "detach",
    "patched",
    "reset",
]
