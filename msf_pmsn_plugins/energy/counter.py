"""The counter: it stands under every tensor operation of a network and knows which layer is running."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .counts import Counts, NeuronSums, SynapseSums
from .layers import Unknown
from .products import PRODUCTS
from .rules import RULES, EnergyError, Work, measure
from .updates import UPDATES, family, neuron_update

aten = torch.ops.aten

# What multiplies has one of these words in its name; without a rule it is missed.
MULTIPLIES = re.compile(
    r"(^|_)([a-z0-9]*mm|v?dot|(add)?mv|conv(?!ert)[a-z0-9]*|(tri)?linear|matmul|einsum|attention|rnn|lstm|gru"
    r"|fft|(addc)?mul|addcdiv|addr|lerp|[cp]dist|(?<!embedding_)renorm)(_|$)"
    r"|_foreach_(norm|pow|div|addcdiv|lerp)|linalg_(?!vector_norm)"
)
# Packages of operations that multiply nothing else: torch's own, its wrappers and profilers, ours (neurons alone).
KNOWN = ("aten", "prim", "prims", "profiler", "_c10d_functional", "c10d", "fsdp", "msf_pmsn_plugins")
LINEAR = (aten.mm.default, aten.addmm.default)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
# Some of these are one operation and some are several, products among them: none is counted.
NOT_COUNTED = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.dropout._DropoutNd,
)


@contextmanager
def counting(
    net: nn.Module,
    samples: int | None = None,
    *,
    updates: Mapping[str, Any] | None = None,
    real: Sequence[str] = (),
    strict: bool = False,
) -> Iterator[Counts]:
    """Count what ``net`` does inside the block: synaptic operations and neuron updates of its forward passes.

    Products inside a neuron (a PSN's matrix) are covered by the formula of its update. Biases, torch's own norms,
    activation functions and dropout, pooling, upsampling and the additions of shortcuts are not counted, as in the
    papers. A product of single elements (a gate, a square, attention by hand) is one multiplication for each element
    of the result, whatever its factors; the squares of a norm or a variance are one for each element taken in.

    Args:
        net: any module; layers and neurons are found by the operations and the class names, not by framework.
        samples: how many samples run in the block; all figures are divided by it. None gives those of all that ran.
        updates: formulas of further neurons by class name, as in :data:`UPDATES`, or an :class:`Update` each.
        real: paths of layers whose input is real, though it may hold integers (pixels from 0 to 255).
        strict: raise at what cannot be counted. Otherwise ``counts.unknown`` lists it, with a warning at the end.

    Raises:
        EnergyError: a meta tensor; with ``strict``, an unknown operation or neuron.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"energy counts an nn.Module, got {type(net).__name__}")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise ValueError(
            f"samples, how many the block runs, must be an integer >= 1, or None, got {samples!r}"
        )
    counts = Counts(samples)
    counter = _Counter(net, counts, updates or {}, real, strict)
    handles = []
    for module in net.modules():
        handles.append(module.register_forward_pre_hook(counter.enter))
        handles.append(module.register_forward_hook(counter.leave, always_call=True))
    try:
        with counter:
            yield counts
    finally:
        for handle in handles:
            handle.remove()
    if counts.unknown:
        warnings.warn(f"not counted, so missing in all figures:\n{counts.unknown}", stacklevel=3)


class _Counter(TorchDispatchMode):
    """Sees every operation inside the block and books it on the module that is running."""

    def __init__(
        self, net: nn.Module, counts: Counts, updates: Mapping[str, Any], real: Sequence[str], strict: bool
    ) -> None:
        super().__init__()
        self.paths = {module: path for path, module in reversed(list(net.named_modules()))}
        wrong = set(real) - set(self.paths.values())
        if isinstance(real, str) or wrong:
            raise ValueError(f"real names layers of the net; not one of them: {sorted(wrong) or repr(real)}")
        self.counts, self.updates, self.real, self.strict = counts, {**UPDATES, **updates}, set(real), strict
        self.measure = measure(net, PRODUCTS)
        self.running: list[nn.Module] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in RULES and func is not torch.ops.prim.device.default:
            with self:  # inference mode leaves composites whole, such as linear
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if self.running and not _in_backward():
            self.count(func, args, kwargs, out)
        return out

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.running.pop()
        if self.is_neuron(module) and not _in_backward():
            tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            if tensors:
                self.count_neuron(module, tensors[0])

    def count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        module = self.running[-1]
        if self.is_neuron(module) or (func in PRODUCTS and isinstance(module, NOT_COUNTED)):
            return  # a neuron's formula counts
        path = self.paths[module]
        space, operation = func._schema.name.split("::")
        # A weight may be computed (quantized, say) and hold integers without being a parameter.
        weight = args[-1] if isinstance(module, nn.Linear) and func in LINEAR else None
        measured = self.measure(func, args, kwargs, out, weight)
        if measured is None:
            if MULTIPLIES.search(operation) or space not in KNOWN:
                self.miss(str(func), path, f"add a rule, energy.RULES[torch.ops.{func}] = ..")
            return
        work, operands = measured
        if func in PRODUCTS and not operands:
            return  # of parameters alone, or no product
        if path in self.real:
            work = Work(work.dense, work.dense)
            operands = [(x, None) for x, _ in operands]
        layer = path or type(module).__name__
        if not isinstance(module, WEIGHTED):
            layer = f"{layer}: {operation}"
        self.counts._synapses.setdefault(layer, SynapseSums()).add(work, operands)

    def count_neuron(self, module: nn.Module, s: Tensor) -> None:
        path, kind = self.paths[module], type(module).__name__
        try:
            update = neuron_update(module, len(s) if s.dim() else 1, self.updates)
        except EnergyError as error:
            if self.strict:
                raise EnergyError(f"{path or 'the net'}: {error}") from None
            self.miss(kind, path, str(error).split(": ", 1)[1])
            return
        assert update is not None
        sums = self.counts._neurons.setdefault((path or kind, kind), NeuronSums())
        sums.add(update, s.numel(), float(s.detach().double().sum()))

    def is_neuron(self, module: nn.Module) -> bool:
        return family(module, self.updates) is not None

    def miss(self, name: str, path: str, remedy: str) -> None:
        if self.strict:
            raise EnergyError(f"{path or 'the net'}: {name} has no rule, it cannot be counted: {remedy}")
        what = Unknown(name, path, 0, remedy)
        self.counts._unknown[what] = self.counts._unknown.get(what, 0) + 1


def _in_backward() -> bool:
    """Whether a backward pass runs: there a checkpointed forward may run again."""
    return torch._C._current_graph_task_id() != -1
