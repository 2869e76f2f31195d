"""Networks of our neurons in NeuroBench's harness.

::

    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import Footprint, ParameterCount
    from neurobench.metrics.workload import ActivationSparsity, ClassificationAccuracy
    from msf_pmsn_plugins import neurobench as nb

    model = nb.Model(net, run="sequence")
    metrics = [ClassificationAccuracy, ActivationSparsity, nb.SynapticOperations, nb.NeuronOperations]
    Benchmark(model, loader, [], [], [[ParameterCount, Footprint], metrics]).run()

:class:`Model` brings a network to rest before each batch and finds all of its neurons, ours and the frameworks'. The
metrics here carry the names of NeuroBench's, so results keep their names, and give its figures where it has them: for
binary spikes and for neurons of snnTorch. What they add is counts (a count k is k accumulations, where NeuroBench takes
the whole layer for multiplications) and neurons other than snnTorch's.
"""

from __future__ import annotations

from .metrics import ActivationSparsityByLayer, MembraneUpdates, NeuronOperations, SynapticOperations
from .model import RUNS, Model, Run
from .neurons import OPERATIONS, operations

__all__ = [
    "OPERATIONS",
    "RUNS",
    "ActivationSparsityByLayer",
    "MembraneUpdates",
    "Model",
    "NeuronOperations",
    "Run",
    "SynapticOperations",
    "operations",
]
