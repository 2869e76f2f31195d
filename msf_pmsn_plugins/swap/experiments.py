"""Learn by experiments on a copy how a neuron steps, what it keeps and emits, and whether two neurons agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attached import without_hooks
from .running import output_of, rest, undisturbed

__all__ = ["Observed", "Same", "copy_at_rest", "observe", "same", "unit_of"]


def copy_at_rest(module: nn.Module) -> nn.Module:
    """A copy of ``module`` at rest, without hooks. Raises ValueError where it cannot be copied."""
    with undisturbed(module):
        rest(module)
        for part in module.modules():  # what a training step left there has a graph, which cannot be copied
            for box in (vars(part), part._buffers):
                graphs = {k: x for k, x in box.items() if isinstance(x, Tensor) and x.grad_fn is not None}
                box.update({k: x.detach() for k, x in graphs.items()})
        try:
            return without_hooks(copy.deepcopy(module))
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
    """What experiments with a neuron showed.

    The axes along which earlier input changes later output; T, if it takes [T*B, *] and unfolds that itself; whether a
    call goes on where the last one ended; the spacing of its outputs (None: they are not multiples of one number).
    """

    time_dims: tuple[int, ...]
    unfolds: int | None
    keeps_state: bool
    unit: float | None
    largest: float


def observe(module: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Observed:
    """Try a neuron on random input of ``shape``: every call is made on a fresh copy, in evaluation mode.

    Raises:
        ValueError: it cannot be copied, or does not take the input.
    """
    pristine = copy_at_rest(module).eval()
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
            # A state far below, or below without a spike.
            for before in (-8 * x.abs(), 0.6 * torch.ones_like(x)):
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
    unfolds = _unfolds(pristine, (shape[0], *size[1:]), device, dtype)
    return Observed(tuple(sorted(mixing)), unfolds, keeps, *unit_of(outputs))


def _unfolds(
    pristine: nn.Module, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> int | None:
    """T of a neuron that takes [T*B, *] for T steps of B samples: its row 0 reaches the rows B, 2B ..  and no other."""
    reached: set[int] = set()
    # A row of few numbers shows an influence seldom; with few spikes, that cut, and with many.
    for seed in range(8 if math.prod(shape[1:]) >= 64 else 64):
        x = _draw(shape, seed, device, dtype) * (0.2, 1.0)[seed % 2]
        changed = x.clone()
        changed[0] += _draw(shape[1:], seed + 9, device, dtype)
        try:
            with torch.no_grad():
                y, z = (output_of(copy.deepcopy(pristine)(given)) for given in (x, changed))
        except Exception:  # it takes no input of these sizes
            return None
        if y.shape != x.shape:
            return None
        reached |= set((y != z).flatten(1).any(1).nonzero().flatten().tolist()) if y.dim() > 1 else set()
    rows = reached - {0}
    batch = min(rows, default=1)
    if batch == 1 or shape[0] % batch or any(row % batch for row in rows):
        return None
    return shape[0] // batch


def unit_of(outputs: Sequence[Tensor]) -> tuple[float | None, float]:
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
    shape = handy(copy_at_rest(old), shape, device, dtype)
    for lattice in (False, True):
        results = []
        for module in (old, new):
            copied = copy_at_rest(module).train(training)
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
        if not gs and training:  # in evaluation some hosts pass no gradient
            gs = [torch.zeros_like(g) for g in gs_new]
        equal = y.shape == y_new.shape and torch.equal(y, y_new)
        pairs = list(zip(gs, gs_new, strict=False))
        bits = equal and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
        near = equal and all(a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-5) for a, b in pairs)
        found.append((equal, bits, near))
    (spikes, bits, near), (ties, _, _) = found
    return Same(spikes, bits, near, ties)
