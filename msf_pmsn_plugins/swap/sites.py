"""Find the neurons of a model, and learn how to read them: by class, by class name, or by experiment on a copy."""

from __future__ import annotations

import copy
import itertools
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import neurons
from ..hosts import HOSTS, load
from .probe import output_of, rest, undisturbed
from .spec import Activation, Read, Reading

__all__ = [
    "Found",
    "Observed",
    "Same",
    "find",
    "is_ours",
    "levels",
    "like_neurons",
    "load",
    "observe",
    "same",
    "steps_of",
]

# Classes of copies that live elsewhere than in the framework, by the names along their bases.
VENDORED = {
    "spikingjelly": r"(MultiStep)?\w*(IF|LIF|LIAF|Izhikevich|General)Node|(Masked|Sliding)?PSN",
    "snntorch": r"SpikingNeuron",
}


@dataclass(frozen=True)
class Found:
    """A neuron and who can read it: ``role`` is ``"stock"``, ``"relative"``, ``"own"`` or ``"activation"``."""

    path: str
    module: nn.Module
    host: ModuleType
    role: str
    reading: Reading | None = None


def find(model: nn.Module, neuron_classes: Sequence[type] | Mapping[type, Reading]) -> Iterator[Found]:
    """Every neuron of ``model`` but ours, shared ones once per path."""
    registered = (
        dict(neuron_classes) if isinstance(neuron_classes, Mapping) else dict.fromkeys(neuron_classes, Read())
    )
    for path, module in model.named_modules(remove_duplicate=False):
        if is_ours(module):
            continue
        reading = next((registered[cls] for cls in type(module).__mro__ if cls in registered), None)
        framework = _framework(module)
        if reading is not None:
            role = "activation" if isinstance(reading, Activation) else "own"
            yield Found(path, module, load(framework or "spikingjelly"), role, reading)
        elif framework is not None:
            host = load(framework)
            yield Found(path, module, host, "stock" if host.is_stock(module) else "relative")


def is_ours(module: nn.Module) -> bool:
    """Whether ``module`` is, holds, or lies inside one of our neurons."""
    return isinstance(module, neurons.Neuron) or isinstance(getattr(module, "neuron", None), neurons.Neuron)


def _framework(module: nn.Module) -> str | None:
    """The framework whose neuron ``module`` is: one of its classes or of their copies is among the bases."""
    bases = [cls for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]
    for name in HOSTS:
        for cls in bases:
            home = cls.__module__.split(".")
            if home[0] == name and {"neuron", "_neurons"} & set(home):
                return name
    for name, pattern in VENDORED.items():
        if any(re.fullmatch(pattern, cls.__name__) for cls in bases):
            return name
    if hasattr(module, "v_threshold") and any(cls.__name__ == "BaseNode" for cls in bases):
        return "spikingjelly"
    return None


def like_neurons(model: nn.Module) -> list[str]:
    """Class names in ``model`` that sound like neurons, for a message."""
    leaves = (m for m in model.modules() if not any(m.children()) and not is_ours(m))
    names = {type(m).__name__ for m in leaves}
    return sorted(n for n in names if re.search(r"LIF|IF$|IFNode|[Ss]pik|[Nn]euron|mem_update|^[Ff]ire", n))


def steps_of(module: Any) -> str:
    """``"s"`` or ``"m"`` of a framework's neuron: its word, or, where it has none, that of its class's name."""
    supported = list(module.supported_step_mode()) if hasattr(module, "supported_step_mode") else []
    mode = supported[0] if len(supported) == 1 else getattr(module, "step_mode", None)
    if mode in ("s", "m"):
        return mode
    return "m" if any(cls.__name__.startswith("MultiStep") for cls in type(module).__mro__) else "s"


# Experiments on copies ------------------------------------------------------------------------------------------------


def twin(module: nn.Module) -> nn.Module:
    """A copy of ``module`` at rest. Raises ValueError where it cannot be copied."""
    with undisturbed(module):
        rest(module)
        for part in module.modules():  # what a training step left there has a graph, which cannot be copied
            for box in (vars(part), part._buffers):
                graphs = {k: x for k, x in box.items() if isinstance(x, Tensor) and x.grad_fn is not None}
                box.update({k: x.detach() for k, x in graphs.items()})
        try:
            return copy.deepcopy(module)
        except Exception as error:
            raise ValueError(
                f"{type(module).__name__} cannot be copied to look at it ({error}): reset the model first"
            ) from error


def _draw(shape: Sequence[int], seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * 2
    return x.to(device, dtype if dtype.is_floating_point else None)


def handy(
    module: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> tuple[int, ...]:
    """``shape`` with every axis 3 or 4 long, or no axis below 3, or as it is: the first that ``module`` takes.

    An axis of one would show nothing, and long ones would only take time.
    """
    for size in (tuple(min(max(n, 3), 4) for n in shape), tuple(max(n, 3) for n in shape)):
        try:
            with torch.no_grad():
                copy.deepcopy(module)(_draw(size, 0, device, dtype))
        except Exception:
            continue
        return size
    return tuple(shape)


@dataclass(frozen=True)
class Observed:
    """What experiments with a neuron showed: the axes along which earlier input changes later output, whether a call
    goes on where the last one ended, and the spacing of its outputs (None: they are not multiples of one number).
    """

    time_dims: tuple[int, ...]
    keeps_state: bool
    unit: float | None
    largest: float


def observe(module: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Observed:
    """Try a neuron on random input of ``shape``: every call is made on a fresh copy, in evaluation mode.

    Raises:
        ValueError: it cannot be copied, or does not take the input.
    """
    pristine = twin(module).eval()
    size = handy(pristine, shape, device, dtype)

    def run(*inputs: Tensor) -> list[Tensor]:
        fresh = copy.deepcopy(pristine)
        with torch.no_grad():
            return [output_of(fresh(x)) for x in inputs]

    mixing: set[int] = set()
    keeps, outputs = False, []
    try:
        for seed in range(3):
            x = _draw(size, seed, device, dtype)
            (y,) = run(x)
            outputs += [y, *run(4 * x)]
            for before in (
                -8 * x.abs(),
                0.6 * torch.ones_like(x),
            ):  # a state far below, or below without a spike
                keeps |= not torch.equal(y, run(before, x)[1])
            for axis in range(x.dim()):
                if x.shape[axis] > 1:
                    changed = x.clone()
                    changed.select(axis, 0).copy_(4 + _draw(x.select(axis, 0).shape, seed + 9, device, dtype))
                    later = slice(1, None)
                    (z,) = run(changed)
                    rest_of = tuple(later if i == axis else slice(None) for i in range(x.dim()))
                    if z.shape != x.shape or not torch.equal(z[rest_of], y[rest_of]):
                        mixing.add(axis)
    except Exception as error:
        raise ValueError(f"{type(module).__name__} does not run on random input {size}: {error}") from error
    return Observed(tuple(sorted(mixing)), keeps, *_unit(outputs))


def _unit(outputs: Sequence[Tensor]) -> tuple[float | None, float]:
    """The number that all outputs are multiples of, and the largest of them."""
    values = torch.cat([y.detach().double().flatten() for y in outputs]).unique()
    if values.numel() > 257 or not values.isfinite().all():
        return None, float("inf")
    sizes = values.abs()[values != 0]
    if not sizes.numel():
        return 1.0, 0.0
    unit = float(sizes.min())
    whole = (values / unit - (values / unit).round()).abs().max() < 1e-4
    return (unit if whole else None), float(values.max())


@dataclass(frozen=True)
class Same:
    """Whether two neurons agree: spikes of random input, gradients (to the bit, and nearly), and at ties."""

    spikes: bool
    gradients: bool
    near: bool
    ties: bool


def same(
    old: nn.Module,
    new: nn.Module,
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    calls: int,
    training: bool,
    threshold: float,
) -> Same:
    """Drive copies of two neurons with the same ``calls`` inputs of ``shape``, then with multiples of threshold/4."""
    found = []
    shape = handy(twin(old), shape, device, dtype)
    for lattice in (False, True):
        results = []
        for module in (old, new):
            copied = twin(module).train(training)
            inputs = [_draw(shape, seed, device, dtype) for seed in range(calls)]
            if lattice:
                steps = torch.arange(inputs[0].numel()) % 16 * (threshold / 4)
                inputs = [steps.roll(i).reshape(x.shape).to(x) for i, x in enumerate(inputs)]
            inputs = [x.requires_grad_() for x in inputs]
            outputs = torch.stack([output_of(copied(x)) for x in inputs])
            if outputs.requires_grad and not lattice:
                weights = _draw(outputs.shape, 99, device, outputs.dtype)
                grads = torch.autograd.grad((outputs * weights).sum(), inputs, allow_unused=True)
            else:
                grads = ()
            gs = [torch.zeros(()) if g is None else g for g in grads]
            results.append((outputs.detach(), gs))
        (y, gs), (y_new, gs_new) = results
        equal = y.shape == y_new.shape and torch.equal(y, y_new)
        pairs = list(zip(gs, gs_new, strict=False))
        bits = equal and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
        near = equal and all(a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-5) for a, b in pairs)
        found.append((equal, bits, near))
    (spikes, bits, near), (ties, _, _) = found
    return Same(spikes, bits, near, ties)


# Quantisers -----------------------------------------------------------------------------------------------------------


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def levels(module: nn.Module, device: torch.device) -> tuple[list[float], float, float]:
    """The float32 numbers at which a quantiser steps to q, 2q .. nq, and what a count is multiplied and divided by.

    Of ``nn.ReLU``: no numbers.

    Raises:
        ValueError: not element by element, not monotone, not 0 below 0, no multiples of one number.
    """
    pristine = twin(module).eval()
    name = type(module).__name__

    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            return output_of(pristine(x.to(device).unsqueeze(0))).squeeze(0)

    grid = torch.linspace(-8, 64, 9001)
    try:
        y = f(grid)
    except Exception as error:
        raise ValueError(f"{name} does not run on single numbers, so it is no activation: {error}") from error
    if isinstance(module, nn.ReLU) or torch.equal(y, grid.clamp(min=0).to(y)):
        return [], 1.0, 1.0
    top = float(f(torch.tensor([3e38])))
    if float(y[grid < 0].abs().max()) != 0 or bool((y.diff() < 0).any()):
        raise ValueError(f"{name} is no quantiser from 0 upward: it must be 0 below 0 and never fall")
    unit, largest = _unit([y, torch.tensor([top])])
    count = round(largest / unit) if unit else 0
    if unit is None or not 0 < count < 256:
        raise ValueError(f"{name} emits no multiples 0, q .. nq of one number (n < 256)")
    unit = float(y[y > 0].min())
    thresholds = []
    for level in range(1, count + 1):
        low, high = 0, 0x7F7FFFFF  # positive floats are ordered as their bits are
        while high - low > 1:
            middle = (low + high) // 2
            reached = float(f(torch.tensor([_float(middle)]))) >= (level - 0.5) * unit
            low, high = (low, middle) if reached else (middle, high)
        thresholds.append(_float(high))
    if float(f(torch.zeros(1))) != 0 or any(b <= a for a, b in itertools.pairwise(thresholds)):
        raise ValueError(f"{name} is no quantiser with {count} different steps above 0")
    counts = torch.arange(1.0, count + 1)
    emitted = torch.stack([f(torch.tensor([x]))[0] for x in thresholds]).cpu().float()
    for scale, divisor in ((unit, 1.0), (1.0, float(round(1 / unit)) if unit < 1 else 1.0)):
        if torch.equal(counts * scale / divisor, emitted):
            return thresholds, scale, divisor
    raise ValueError(f"{name} emits no exact multiples of {unit}")
