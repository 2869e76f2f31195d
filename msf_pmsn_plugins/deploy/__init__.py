"""Run a network of MSF neurons on binary spikes, with the same results, or say why that cannot be.

MSF emits counts 0..D; neuromorphic hardware sends 0 or 1. Here every count is written as binary *planes*: unary,
``s = sum_d [s > d]`` (D planes), or its bits, ``s = sum_k 2^k b_k`` (about log2 D planes)::

    net = deploy.to_binary(model, example_input, form="channels")   # D channels for one
    net = deploy.to_binary(model, example_input, form="substeps")   # D sub-steps for one
    net = deploy.to_binary(model, example_input, form="bits")       # as many sub-steps as D has bits
    print(net.report)                                               # what every layer is given

The planes of a neuron run side by side through everything that only moves spikes, until a layer with weights sums
them. That sum has another order than the model's, so every sum must be exact in floating point: the weights are
multiples of a power of two, small enough together. :func:`round_weights` makes them so.
"""

from __future__ import annotations

from ..tables import Table
from .binary import BinaryNetwork, to_binary
from .fold import fold_batchnorm
from .planes import FORMS, collect, expand, plane_weights
from .report import DeployError, Layer, Rounded
from .weights import round_weights

__all__ = [
    "FORMS",
    "BinaryNetwork",
    "DeployError",
    "Layer",
    "Rounded",
    "Table",
    "collect",
    "expand",
    "fold_batchnorm",
    "plane_weights",
    "round_weights",
    "to_binary",
]
