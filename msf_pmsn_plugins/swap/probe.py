"""Run a model to see what reaches its neurons, and leave it as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .running import arguments, rest, seeds_kept, undisturbed

__all__ = ["Call", "Probe", "Run", "grow", "probe", "record"]


# Layers whose output says by its rank where the channels are; BatchNorm1d takes [N, C] and [N, C, L].
CONVOLUTIONS = (
    ((nn.Conv1d, nn.ConvTranspose1d), 3),
    ((nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d), 4),
    ((nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d), 5),
)


@dataclass
class Call:
    """One call of a site: its input, the widths of the weight layers around it, and what it emitted."""

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    before: int | None
    before_dims: int | None  # axes of one step of what the layer before puts out, where it is a convolution
    order: int
    after: int | None = None
    pooled: str | None = None  # the max-pool that takes this output
    done: bool = False


@dataclass
class Run:
    """One forward pass: the calls of every site by path, and the shapes of the model's outputs."""

    calls: dict[str, list[Call]]
    outputs: list[tuple[int, ...]] = field(default_factory=list)

    def first(self, path: str) -> Call | None:
        calls = self.calls.get(path, [])
        return calls[0] if calls else None


@dataclass
class Probe:
    """The example, and an input of other sizes: ``grown`` says by how much each of its first two axes is longer."""

    example: Run
    other: Run | None = None
    grown: dict[int, int] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()  # of the example's largest input


def probe(model: nn.Module, sites: dict[str, nn.Module], example_input: Any, sequences: bool) -> Probe:
    """Run the example, then an input of other sizes as far as the model takes one.

    Args:
        sites: the neurons, by path.
        sequences: whether some neuron takes sequences, so that the input may have an axis of time beside the batch.
    """
    inputs = arguments(example_input)
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    sizes = max((tuple(x.shape) for x in tensors), key=len, default=())
    with seeds_kept(model, tensors):
        example = record(model, sites, inputs)
        calls = {path: len(found) for path, found in example.calls.items()}
        # [T, N, *] or [N, T, *]; [N, *] where the model repeats or steps by itself; T alone may be fixed.
        for grown in ({0: 1, 1: 2}, {0: 1}, {1: 2}):
            for space in (True, False):
                other = grow(inputs, grown, space)
                if other is None:
                    continue
                try:
                    run = record(model, sites, other)
                except Exception:  # the model does not take these sizes
                    continue
                steps = any(len(run.calls[path]) != n for path, n in calls.items())
                if 1 in grown and not (sequences or steps):
                    continue  # nothing here depends on a time axis: axis 1 is no batch
                return Probe(example, run, grown, sizes)
        return Probe(example, sizes=sizes)


def grow(inputs: tuple[Any, ...], grown: dict[int, int], space: bool) -> tuple[Any, ...] | None:
    """The inputs with the axes ``grown`` longer, and with ``space`` twice the height and width (strides still fit).

    None where no tensor is large enough to grow.
    """
    lead = 1 if grown == {0: 1} else 2
    changed = 0

    def one(x: Tensor) -> Tensor:
        nonlocal changed
        if x.dim() < max(grown) + 1:
            return x
        changed += 1
        size = [n + grown.get(i, 0) for i, n in enumerate(x.shape)]
        if space:
            size[lead + 1 :] = [2 * n for n in size[lead + 1 :]]
        y = x.new_zeros(size)
        return y.uniform_() if x.is_floating_point() else y

    other = pytree.tree_map_only(Tensor, one, inputs)
    return other if changed else None


def record(model: nn.Module, sites: dict[str, nn.Module], inputs: tuple[Any, ...]) -> Run:
    """One forward pass in evaluation mode, without gradients, from fresh states."""
    by_module: dict[nn.Module, list[Call]] = {m: [] for m in sites.values()}
    width: list[int | None] = [None, None]
    waiting: list[Call] = []
    emitted: list[tuple[Tensor, Call]] = []  # the last output of a site

    def at_site(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if x is not None:
            order = sum(map(len, by_module.values()))
            call = Call(tuple(x.shape), x.device, x.dtype, width[0], width[1], order)
            by_module[module].append(call)
            waiting.append(call)

    def after_site(module: nn.Module, args: Any, output: Any) -> None:
        s = output[0] if isinstance(output, tuple) else output
        if by_module[module] and isinstance(s, Tensor):
            by_module[module][-1].done = True
            emitted[:] = [(s, by_module[module][-1])]

    def before_layer(module: nn.Module, args: Any) -> None:
        into = _width(module, "in_channels", "in_features", "num_features")
        if into is not None:
            for call in waiting:
                call.after = into
            waiting.clear()
        if "MaxPool" in type(module).__name__ and args and emitted and args[0] is emitted[0][0]:
            emitted[0][1].pooled = type(module).__name__

    def after_layer(module: nn.Module, args: Any, output: Any) -> None:
        out = _width(module, "out_channels", "out_features", "num_features")
        if out is not None:
            width[:] = out, next((n for kinds, n in CONVOLUTIONS if isinstance(module, kinds)), None)

    hooks = [m.register_forward_pre_hook(at_site, with_kwargs=True) for m in by_module]
    hooks += [m.register_forward_hook(after_site) for m in by_module]
    for module in model.modules():
        if module not in by_module:
            hooks.append(module.register_forward_pre_hook(before_layer))
            hooks.append(module.register_forward_hook(after_layer))
    try:
        with torch.no_grad(), undisturbed(model):
            model.eval()
            rest(model)
            outputs = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    shapes = [tuple(y.shape) for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor)]
    return Run({path: by_module[m] for path, m in sites.items()}, shapes)


def _width(module: nn.Module, *names: str) -> int | None:
    return next((n for n in (getattr(module, name, None) for name in names) if isinstance(n, int)), None)
