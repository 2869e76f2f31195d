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
    emitted: Any = None  # its output with shapes in the place of tensors; None where it did not return
    finite: bool = True
    is_output: bool = False  # of the model


@dataclass
class Run:
    """One forward pass: the calls of every site by path, and the model's outputs.

    Where the model was run once more: ``reset`` are the sites whose state it put back in between, ``carried`` those
    that went on from where they were.
    """

    calls: dict[str, list[Call]]
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    structure: Any = None  # the outputs with shapes in the place of tensors
    finite: bool = True
    reset: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)

    def first(self, path: str) -> Call | None:
        calls = self.calls.get(path, [])
        return calls[0] if calls else None

    def ordered(self) -> list[tuple[str, Call]]:
        """All calls in the order in which they came."""
        found = [(path, call) for path, calls in self.calls.items() for call in calls]
        return sorted(found, key=lambda item: item[1].order)


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
    with seeds_kept(model, inputs):
        example = record(model, sites, inputs, again=True)
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


def record(
    model: nn.Module,
    sites: dict[str, nn.Module],
    inputs: tuple[Any, ...],
    again: bool = False,
    run: Run | None = None,
) -> Run:
    """One forward pass in evaluation mode, without gradients, from fresh states.

    Args:
        again: run the model once more, without a reset in between, to see which sites it resets itself.
        run: filled as it goes, for what is known where the model fails.
    """
    run = Run({}) if run is None else run
    with torch.no_grad(), undisturbed(model):
        model.eval()
        rest(model)
        recorder = _Recorder(model, sites, run)
        recorder.see(model(*inputs))
        if again:
            recorder.watch_states()
            try:
                model(*inputs)
            except Exception:  # some models run once only
                return run
            recorder.compare_states()
    return run


class _Recorder:
    """Hooks on a model, which fill a :class:`Run`; inside ``undisturbed``, which takes them off."""

    def __init__(self, model: nn.Module, sites: dict[str, nn.Module], run: Run) -> None:
        self.run = run
        self.sites = sites
        self.calls: dict[nn.Module, list[Call]] = {m: [] for m in sites.values()}
        run.calls |= {path: self.calls[m] for path, m in sites.items()}
        self.width: tuple[int | None, int | None] = (None, None)  # of the last weight layer, and its axes
        self.waiting: list[Call] = []
        self.last: tuple[Tensor, Call] | None = None  # output of a site
        self.emitted: dict[Tensor, Call] = {}
        self.ends: dict[nn.Module, Any] = {}  # states after the first pass
        # At the first call of each pass.
        self.starts: dict[nn.Module, list[Any]] = {m: [] for m in self.calls}
        self.passes = 1
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks, and holds no neuron that could be replaced
            if module in self.calls:
                module.register_forward_pre_hook(self.at_site, with_kwargs=True)
                module.register_forward_hook(self.after_site)
            else:
                module.register_forward_pre_hook(self.before_layer)
                module.register_forward_hook(self.after_layer)

    def at_site(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self.starts[module]) < self.passes:
            self.starts[module].append(state_of(module))
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if x is not None and self.passes == 1:
            order = sum(map(len, self.calls.values()))
            call = Call(tuple(x.shape), x.device, x.dtype, *self.width, order)
            self.calls[module].append(call)
            self.waiting.append(call)

    def after_site(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.calls[module] or self.passes > 1:
            return
        call = self.calls[module][-1]
        call.emitted = pytree.tree_map_only(Tensor, lambda y: tuple(y.shape), output)
        tensors = [y for y in pytree.tree_leaves(output) if isinstance(y, Tensor)]
        call.finite = _finite(tensors)
        self.emitted |= dict.fromkeys(tensors[:1], call)
        if tensors:
            self.last = tensors[0], call

    def before_layer(self, module: nn.Module, args: Any) -> None:
        into = _width(module, "in_channels", "in_features", "num_features")
        if into is not None:
            for call in self.waiting:
                call.after = into
            self.waiting.clear()
        if "MaxPool" in type(module).__name__ and args and self.last is not None and args[0] is self.last[0]:
            self.last[1].pooled = type(module).__name__

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        out = _width(module, "out_channels", "out_features", "num_features")
        if out is not None:
            self.width = out, next((n for kinds, n in CONVOLUTIONS if isinstance(module, kinds)), None)

    def see(self, outputs: Any) -> None:
        """The end of a pass: what the model returned."""
        tensors = [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor)]
        self.run.outputs = [tuple(y.shape) for y in tensors]
        self.run.structure = pytree.tree_map_only(Tensor, lambda y: tuple(y.shape), outputs)
        self.run.finite = _finite(tensors)
        for y in tensors:
            if y in self.emitted:
                self.emitted[y].is_output = True
        if self.waiting:  # no weight layer takes it
            self.waiting[-1].is_output = True
        self.waiting.clear()
        self.emitted.clear()
        self.last = None

    def watch_states(self) -> None:
        self.ends = {module: state_of(module) for module in self.calls}
        self.passes = 2

    def compare_states(self) -> None:
        """Did the second pass find each site as the first did, though the first had left it otherwise?"""
        for path, module in self.sites.items():
            starts = self.starts[module]
            if len(starts) == 2 and not same_state(*starts):
                self.run.carried.add(path)
            elif len(starts) == 2 and not same_state(starts[0], self.ends[module]):
                self.run.reset.add(path)


def state_of(module: Any) -> dict[str, Any]:
    """Numbers and tensors that a neuron holds besides its parameters."""
    inner = getattr(module, "node", module)
    boxes = [vars(inner), inner._buffers, getattr(inner, "_memories", {})]
    values = {name: value for box in boxes for name, value in box.items() if name != "training"}
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in values.items()
        if isinstance(value, Tensor | int | float) and not isinstance(value, nn.Parameter)
    }


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two states hold the same numbers, in the same form."""
    return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)


def _equal(v: Any, w: Any) -> bool:
    if isinstance(v, Tensor) and isinstance(w, Tensor):
        return v.shape == w.shape and (v.is_meta or torch.equal(v, w))
    return type(v) is type(w) and v == w


def _finite(tensors: list[Tensor]) -> bool:
    return all(y.is_meta or not y.is_floating_point() or bool(y.isfinite().all()) for y in tensors)


def _width(module: nn.Module, *names: str) -> int | None:
    return next((n for n in (getattr(module, name, None) for name in names) if isinstance(n, int)), None)
