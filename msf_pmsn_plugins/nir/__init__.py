"""MSF, PMSN and ParallelIF in NIR, the intermediate representation that neuromorphic frameworks exchange.

NIR's primitives emit one spike a step, reset to a value and hold a real state. MSF with several thresholds, PMSN and
ParallelIF are not among them: here each has a node of its own (docs/nir.md names the fields), and a file with such a
node is readable with this package only. ``standard=True`` keeps to NIR's primitives and refuses what they cannot say.

::

    graph = export_to_nir(net, example_input)
    nir.write("net.nir", graph)
    net = import_from_nir(read("net.nir"), "snntorch")
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["export_to_nir", "import_from_nir", "read", "registered"]

# NIR's own packages are imported by the calls: this one is for everybody.


def export_to_nir(net: nn.Module, example_input: Tensor, *, standard: bool = False, dt: float = 1e-4) -> Any:
    """A network as a NIR graph, through ``nirtorch.torch_to_nir``; ``nir.write`` writes it to a file.

    ``net`` is made of linear, convolution, average pooling and flatten layers, additions of two results, and the
    neurons of this package, as nodes of either framework or bare; snnTorch's ``Leaky`` may stand beside them where it
    resets to zero. Dropout is left out. The state is not exported: an imported network is at rest.

    Args:
        net: its ``forward`` computes one time step, or a sequence with layers that take sequences.
        example_input: an input of ``net``; its shape alone matters. No neuron is run and no state changes.
        standard: NIR's primitives only: MSF with one threshold becomes ``nir.LIF`` (``nir.IF`` without leak).
        dt: the time step in seconds, by which ``nir.LIF`` counts its time constant.

    Returns:
        a ``nir.NIRGraph``.

    Raises:
        ValueError: a module, an operation or a setting that has no place in the graph, by name and with the reason.
    """
    from . import exporter

    return exporter.export_to_nir(net, example_input, standard=standard, dt=dt)


def import_from_nir(
    graph: Any,
    host: str = "snntorch",
    *,
    dt: float = 1e-4,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """A NIR graph as a network of a framework, through ``nirtorch.nir_to_torch``.

    ``nir.LIF`` and ``nir.IF`` become MSF with one threshold. NIR fires above its threshold and MSF at it, so the
    threshold is the next number above NIR's.

    Args:
        graph: a ``nir.NIRGraph``, or the path of a file, which :func:`read` reads. Around a cycle, the last edge takes
            one step: what a node fires reaches the one before it at the next step.
        host: a key of ``hosts.HOSTS``, ``"snntorch"`` or ``"spikingjelly"``: whose neurons and layers to build.
        dt: the time step in seconds of ``nir.LIF`` and ``nir.IF``.
        device, dtype: of the network.
        options: for every neuron, in the words of its framework: ``sequence=True``, ``step_mode="m"``, ``backend=..``.
            snnTorch's have ``init_hidden=True``.

    Returns:
        a ``torch.fx.GraphModule`` under nirtorch's convention: ``net(x)`` returns ``(output, state)``. The neurons keep
        their states as always in their framework, so ``state`` may be dropped, but for a graph with a cycle; reset them
        between batches.

    Raises:
        ValueError: an unknown host or node, or a node that this framework has nothing for, by name and with the reason.
    """
    from . import importer

    return importer.import_from_nir(graph, host, dt=dt, device=device, dtype=dtype, **options)


def registered() -> AbstractContextManager[None]:
    """Inside, ``nir.read`` and all that calls it know the nodes of this package; outside, NIR is as it was.

    NIR has no public way to add a node: this enters them in its private list.

    Raises:
        RuntimeError: a version of NIR that keeps its list elsewhere, or has a node of one of these names.
    """
    from . import files

    return files.registered()


def read(path: str | Path) -> Any:
    """The graph in a file that ``nir.write`` wrote, with nodes of NIR and of this package.

    Raises:
        ValueError: a file with nodes that neither knows.
    """
    from . import files

    return files.read(path)
