"""NeuroBench's metrics, under its names, for counts and for neurons other than snnTorch's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..energy import spikes_of
from .library import STATELESS_LAYERS, AccumulatedMetric, single_layer_MACs, workload
from .neurons import Watch

__all__ = ["ActivationSparsityByLayer", "MembraneUpdates", "NeuronOperations", "SynapticOperations"]


class Work(NamedTuple):
    """Operations of one call of a layer."""

    dense: int
    macs: int
    accumulates: int


def _reached(layer: Any, x: Tensor, live: Tensor) -> int:
    """The sum of ``x`` times fan-outs, through weights that are 1 or 0; exact, in double."""
    if isinstance(layer, nn.Linear):
        total = F.linear(x.flatten(0, -2).sum(0) if x.dim() > 1 else x, live.sum(0, keepdim=True))
    else:
        axes = len(layer.kernel_size) + 1
        total = layer._conv_forward(x.reshape(-1, *x.shape[-axes:]), live, None)
    return round(float(total.sum()))


@torch.no_grad()
def work_of(layer: nn.Module, inputs: tuple[Any, ...], real: bool = False) -> Work:
    """What one call of ``layer`` costs: zeros of input and weight are skipped, a count k is k accumulations."""
    if not isinstance(layer, STATELESS_LAYERS):
        x = inputs[0] if len(inputs) == 1 else inputs
        done, spiking = single_layer_MACs(x, layer)
        dense, _ = single_layer_MACs(x, layer, total=True)
        return Work(dense, 0 if spiking else done, done if spiking else 0)
    x, weight = inputs[0], layer.weight
    dense = _reached(
        layer, torch.ones_like(x, dtype=torch.double), torch.ones_like(weight, dtype=torch.double)
    )
    spikes = None if real else spikes_of(x)
    taken = (x != 0).double() if spikes is None else spikes.counts
    done = _reached(layer, taken, (weight != 0).double())
    return Work(dense, done, 0) if spikes is None else Work(dense, 0, done)


class SynapticOperations(workload.SynapticOperations):
    """Multiply-accumulates and accumulates of the layers with weights, a sample.

    NeuroBench's figures for real inputs and binary spikes. An input of counts is spikes too: a count k of fan-out f is
    k f accumulates, where NeuroBench books a whole call as MACs as soon as one count exceeds 1.
    """

    def __call__(self, model: Any, preds: Tensor, data: Any) -> dict[str, float]:
        real = getattr(model, "real", ())
        for hook in model.connection_hooks:
            for inputs in hook.inputs:
                hook.hook.remove()  # a recurrent cell is called to be counted
                work = work_of(hook.layer, inputs, hook.layer in real)
                hook.register_hook()
                self.total_synops += work.dense
                self.MAC += work.macs
                self.AC += work.accumulates
        self.total_samples += data[0].size(0)
        return self.compute()


def _watched(model: Any, metric: str) -> list[Watch]:
    hooks = model.activation_hooks
    if not all(isinstance(hook, Watch) for hook in hooks):
        raise TypeError(f"{metric} watches a msf_pmsn_plugins.neurobench.Model, got {type(model).__name__}")
    return hooks


class MembraneUpdates(workload.MembraneUpdates):
    """How many neurons change their state at a step, over all steps, a sample; of all neurons, in either step mode."""

    def __call__(self, model: Any, preds: Tensor, data: Any) -> float:
        for hook in _watched(model, "MembraneUpdates"):
            self.neuron_membrane_updates[type(hook.layer).__name__] += hook.updates
        self.total_samples += data[0].size(0)
        return self.compute()


class NeuronOperations(workload.NeuronOperations):
    """Operations of the updates of neurons, a sample: of those that change (effective), and of all (dense)."""

    def __call__(self, model: Any, preds: Tensor, data: Any) -> dict[str, float]:
        for hook in _watched(model, "NeuronOperations"):
            kind = type(hook.layer).__name__
            self.macs[kind] += hook.updates * hook.cost
            self.dense[kind] += hook.dense * hook.cost
        self.total_samples += data[0].size(0)
        return self.compute()


class ActivationSparsityByLayer(workload.ActivationSparsityByLayer):
    """The share of zeros in the output of each layer of neurons, by its path; NeuroBench's own fails in 2.3."""

    def __init__(self) -> None:
        AccumulatedMetric.__init__(self, requires_hooks=True)
        self.reset()
