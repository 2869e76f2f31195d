"""From a model to its binary network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from ..tables import Table
from .compare import cloned, difference, run_twice, same_results
from .model import Model
from .planes import plane_weights
from .report import DeployError, Layer
from .trace import Binary, Probe, duplicate, trace
from .weights import round_weights
from .writer import Writer


class BinaryNetwork(fx.GraphModule):
    """What :func:`to_binary` returns."""

    report: Table[Layer]
    """The layers with weights and the averages, in the order of the forward pass."""

    def __deepcopy__(self, memo: dict[int, Any]) -> BinaryNetwork:
        other = super().__deepcopy__(memo)
        assert isinstance(other, BinaryNetwork)
        other.report = copy.copy(self.report)
        return other


def to_binary(
    model: nn.Module,
    example_input: Any,
    form: str = "channels",
    binary: Binary = (),
    counts: Sequence[str] = (),
    exact: bool = True,
) -> BinaryNetwork:
    """The model, in evaluation mode, with every layer behind a neuron on 0 and 1; ``model`` stays as it is.

    Behind a neuron of D levels, spikes may be moved (reshape, flatten, permute, index, concatenate, pad, dropout in
    evaluation), pooled by maximum (unary forms), added to other spikes, and averaged over a power of two of elements;
    convolutions and linear layers sum them. What has no layer or neuron behind it is the readout and gets the counts.
    Anything else raises. Neurons of one level emit 0 and 1 already and are only reported. Layers with real-valued input
    stay as they are.

    Args:
        model: traceable by ``torch.fx``; modules without children and neurons need not be.
        example_input: an input like the real ones, or a tuple of several. Both networks are run on it twice, and
            compared.
        form: ``"channels"``: D times the input channels, each with the weights of its channel. ``"substeps"``: axis 0
            (time or batch) D times as long, the sub-steps of a step next to each other; their outputs are summed and
            the bias added once. ``"bits"``: the same with the bits of the counts, summed with powers of two.
        binary: further classes of modules (a framework's own neurons) that emit 0 and 1.
        counts: paths of modules, and names of other operations, that may have the counts themselves.
        exact: False also takes weights whose sums round. Given the same counts, a sum then differs from the model's
            by at most the ``bound`` of its layer in the report; a spike differs where a membrane lies that close to a
            threshold. What is compared on the example is the same network with rounded weights.

    Returns:
        The network; ``.report`` says what each layer is given. Outputs equal those of the model (``torch.equal``: only
        the sign of a zero may differ), for all inputs, where a convolution is computed as a sum of products; an
        algorithm that transforms the weights (Winograd, FFT) may round.

    Raises:
        DeployError: something that cannot be kept, with what to do about it.
    """
    plane_weights(1, form)
    if isinstance(counts, str):
        raise TypeError(f"counts is a list of names, got the string {counts!r}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise DeployError("the model has parameters without a size yet: run it once first")
    with torch.no_grad():
        traced = trace(duplicate(model).eval(), binary)
        probe = Probe(duplicate(traced), binary)
        probe.run(*cloned(inputs))
        writer = Writer(Model(traced, probe), form, counts, exact)
        writer.write()
        net = BinaryNetwork(writer.new.modules, writer.new.graph, type(traced).__name__)
        net.eval().requires_grad_(False).report = writer.report
        if not writer.inexact:
            _compare(model, net, writer, inputs)
    if writer.inexact:  # with weights whose sums are exact all else is seen to be the same
        rounded, _ = round_weights(model, max(2, writer.bits_that_fit()), only=writer.inexact)
        to_binary(rounded, example_input, form, binary, counts)
    return net


def _compare(model: nn.Module, net: BinaryNetwork, writer: Writer, inputs: tuple[Any, ...]) -> None:
    """Raise DeployError unless both give the same results in two calls."""
    expected, results = run_twice(model, inputs), run_twice(net, inputs)
    if not same_results(results, expected):
        first_call_is_equal = same_results(results[:1], expected[:1])
        raise DeployError(difference(writer.new, net, inputs, first_call_is_equal))
