"""The frameworks whose neurons we replace, and what an engine such as the swap asks of one.

A host is a module with these public names, by :func:`load`; it imports its framework, which nothing else does:

    NODES           our node for each target of a swap: {"msf": .., "pmsn": ..}
    WORDS           the host's words for constructor arguments that are called otherwise in SpikingJelly
    is_stock        whether a module's class is the framework's own, not a subclass or a copy
    is_readout      whether a neuron integrates without firing
    site_charges    the charges that a subclass or a copy may have, as constructor arguments of our MSF node
    site_settings   what every target takes over from a neuron, as constructor arguments
    site_dynamics   all that MSF keeps of a neuron under ``dynamics="site"``, as constructor arguments
    as_stock        the framework's own neuron in place of one of our nodes, and what is lost by that
    reset_net       bring the neurons of a model to rest, as its users do
    after_swap      forget what the framework caches about the modules of a model

Each raises ValueError, with the reason, where it has no answer.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["HOSTS", "load"]

# The import name of a framework -> the module that knows its neurons.
HOSTS = {
    "spikingjelly": "msf_pmsn_plugins.spikingjelly.host",
    "snntorch": "msf_pmsn_plugins.snntorch.host",
}


def load(name: str) -> ModuleType:
    """The host module of a framework; raises ImportError, naming the extra, where the framework is missing."""
    return importlib.import_module(HOSTS[name])
