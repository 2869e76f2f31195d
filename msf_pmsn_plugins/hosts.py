"""The frameworks whose neurons we replace, and what an engine such as the swap asks of one.

A host is a module with these public names, by :func:`load`; it imports its framework, which nothing else does:

    NODES           our node for each target of a swap: {"msf": .., "pmsn": ..}; it holds its neuron as ``neuron`` and
                    its state as ``carried``
    WORDS           the host's words for constructor arguments that are called otherwise in SpikingJelly
    is_stock        whether a module's class is the framework's own, not a subclass or a copy
    is_readout      whether a neuron integrates without firing
    site_charges    the charges that a subclass or a copy may have, as constructor arguments of our MSF node
    site_settings   what every target takes over from a neuron, as constructor arguments
    site_dynamics   all that MSF keeps of a neuron under ``dynamics="site"``, as constructor arguments
    learned         the numbers of a neuron, its own or of ours in its place, that are Parameters, by one word for both
    as_stock        the framework's own neuron in place of one of our nodes, and what is lost by that
    reset_net       bring the neurons of a model to rest, as its users do
    after_swap      forget what the framework caches about the modules of a model
    SEQUENCES       how the nodes are told to take whole sequences
    ADVICE          what whoever swapped must know of the new nodes, "" if nothing

Each function raises ValueError, with the reason, where it has no answer.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

from torch import nn

__all__ = ["HOSTS", "Host", "host_of_neuron", "host_of_node", "load", "name_of"]


@dataclass(frozen=True)
class Host:
    """A framework, as far as it can be known without importing it.

    Args:
        module: the module that knows its neurons; our nodes for it live in the same package.
        neurons: regular expression of the framework's modules that define neurons.
        copies: regular expression of class names by which copies of them, which live elsewhere, are known.
    """

    module: str
    neurons: str
    copies: str = r"(?!)"

    @property
    def package(self) -> str:
        """Where our nodes for it live."""
        return self.module.rpartition(".")[0]


# By the import name of the framework.
HOSTS: dict[str, Host] = {
    "spikingjelly": Host(
        "msf_pmsn_plugins.spikingjelly.host",
        r"spikingjelly\.(.+\.)?neuron(\..+)?",
        r"(MultiStep)?\w*(IF|LIF|LIAF|Izhikevich|General)Node|(Masked|Sliding)?PSN",
    ),
    "snntorch": Host("msf_pmsn_plugins.snntorch.host", r"snntorch\._neurons(\..+)?", r"SpikingNeuron"),
}


def load(name: str) -> ModuleType:
    """The host module of a framework; raises ImportError, naming the extra, where the framework is missing."""
    return importlib.import_module(HOSTS[name].module)


def name_of(host: ModuleType | None) -> str | None:
    """The framework that a host module stands for."""
    return next((name for name, known in HOSTS.items() if host and host.__name__ == known.module), None)


def host_of_neuron(module: nn.Module) -> str | None:
    """The framework whose own neuron ``module`` is: one of its classes, or of copies of them, is among the bases."""
    bases = [cls for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]
    for name, host in HOSTS.items():
        if any(re.fullmatch(host.neurons, cls.__module__) for cls in bases):
            return name
    for name, host in HOSTS.items():
        if any(re.fullmatch(host.copies, cls.__name__) for cls in bases):
            return name
    return None


def host_of_node(node: nn.Module) -> str | None:
    """The framework for which ``node`` is one of our nodes."""
    homes = [f"{cls.__module__}." for cls in type(node).__mro__]
    return next(
        (name for name, host in HOSTS.items() if any(home.startswith(f"{host.package}.") for home in homes)),
        None,
    )
