"""The single checks of :func:`swap.verify`. Each runs the model inside ``undisturbed``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..hosts import host_of_node, load
from ..neurons.nodes import takes_sequences
from .plans import Plan
from .running import rest, undisturbed
from .site import SWAPPED

__all__ = ["Check", "Runner"]

SCALES = (1.0, 4.0, 16.0)  # of the input: a fresh network may be silent


@dataclass
class Check:
    """One check: ``status`` is ``"pass"``, ``"fail"``, ``"skip"`` (it does not apply) or ``"unclear"``."""

    name: str
    status: str
    detail: str = ""


class InsideNeuron(Exception):
    """A forward pass failed inside one of our neurons."""


@dataclass
class Seen:
    """One forward pass: the first input of every node of ours, and the model's output tensors."""

    shapes: dict[str, tuple[int, ...]]
    outputs: list[Tensor]


class Runner:
    """Runs one model; ``first`` is what the example showed, ``out_batch`` the batch axis of every output."""

    def __init__(
        self,
        model: nn.Module,
        found: dict[str, nn.Module],
        inputs: tuple[Any, ...],
        time: int | None,
        batch: int,
    ) -> None:
        self.model, self.found, self.inputs, self.time, self.batch = model, found, inputs, time, batch
        self.first = Seen({}, [])
        self.out_batch: list[int | None] = []

    def forward(self, inputs: tuple[Any, ...]) -> Seen:
        """One pass; an error inside one of our nodes is told from one of the model's own."""
        shapes: dict[str, tuple[int, ...]] = {}
        inside: list[str] = []

        def enter(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                if x is not None:
                    shapes.setdefault(path, tuple(x.shape))
                inside.append(path)

            return hook

        hooks = [
            m.register_forward_pre_hook(enter(p), with_kwargs=True, prepend=True)
            for p, m in self.found.items()
        ]
        hooks += [m.register_forward_hook(lambda *_: inside.pop() and None) for m in self.found.values()]
        try:
            outputs = self.model(*inputs)
        except Exception as error:
            if inside:
                raise InsideNeuron(f"{inside[-1] or '(the model)'}: {error}") from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        return Seen(shapes, [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor)])

    def at_rest(self) -> None:
        rest(self.model)
        for node in self.found.values():
            if hasattr(node, "carried"):
                node.carried = None  # type: ignore[assignment]

    def evaluate(self, inputs: tuple[Any, ...]) -> Seen:
        """In evaluation mode, without gradients, from rest, leaving no trace."""
        with torch.no_grad(), undisturbed(self.model):
            self.model.eval()
            self.at_rest()
            return self.forward(inputs)

    def settle(self, inputs: tuple[Any, ...]) -> None:
        """Give norms the statistics of the input, so that a fresh network answers at all; then evaluation mode."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        self.model.train()
        self.at_rest()
        try:
            self.forward(inputs)
        except InsideNeuron:
            raise
        except Exception:  # a model that does not train on this input is checked as it is
            pass
        self.model.eval()

    def sized(self, grown: dict[int, int], from_axis: int | None = None) -> tuple[Any, ...] | None:
        """Random inputs like the example's, with some axes longer, or twice as long from ``from_axis`` on."""
        changed = 0

        def one(x: Tensor) -> Tensor:
            nonlocal changed
            size = [n + grown.get(i, 0) for i, n in enumerate(x.shape)]
            if from_axis is not None:
                size[from_axis:] = [2 * n for n in size[from_axis:]]
            changed += tuple(size) != tuple(x.shape)
            return _like(x, size)

        other = pytree.tree_map_only(Tensor, one, self.inputs)
        return other if changed else None

    def sequences(self, seen: Seen) -> list[str]:
        """The neurons that take sequences and were reached both times."""
        both = self.first.shapes.keys() & seen.shapes.keys()
        return [p for p in self.found if p in both and takes_sequences(self.found[p])]


def example(run: Runner) -> Check:
    """The example runs, and its output is finite."""
    try:
        run.first = run.evaluate(run.inputs)
    except InsideNeuron as error:
        return Check("runs", "fail", str(error))
    if not all(bool(y.isfinite().all()) for y in run.first.outputs if y.is_floating_point()):
        return Check("runs", "fail", "the output is not finite")
    uncalled = [p for p in run.found if p not in run.first.shapes]
    return Check("runs", "pass", f"not called: {', '.join(uncalled)}" if uncalled else "")


# Other sizes ----------------------------------------------------------------------------------------------------------


def _varied(run: Runner, name: str, inputs: tuple[Any, ...] | None, what: str) -> Check | Seen:
    if inputs is None:
        return Check(name, "skip", f"the input has no {what}")
    try:
        return run.evaluate(inputs)
    except InsideNeuron as error:
        return Check(name, "fail", str(error))
    except Exception as error:  # the model's own layers do not take it
        return Check(name, "skip", f"the model takes no other {what}: {_line(error)}")


def other_batch(run: Runner) -> Check:
    """With a larger batch, no neuron's time grows."""
    name = "other batch size"
    seen = _varied(run, name, run.sized({run.batch: 2}), "batch")
    if isinstance(seen, Check):
        return seen
    run.out_batch = [
        next((i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=False)) if n != m), None)
        for a, b in zip(run.first.outputs, seen.outputs, strict=False)
    ]
    wrong = [p for p in run.sequences(seen) if seen.shapes[p][0] != run.first.shapes[p][0]]
    if wrong:
        return Check(name, "fail", f"time of the neuron follows the batch of the input: {', '.join(wrong)}")
    return Check(name, "pass")


def other_t(run: Runner) -> Check:
    """With more steps, every neuron whose input changes has more steps."""
    name = "other T"
    if run.time is None:
        return Check(name, "skip", "the input has no time axis")
    seen = _varied(run, name, run.sized({run.time: 1}), "T")
    if isinstance(seen, Check):
        return seen
    before = run.first.shapes
    wrong = [
        p for p in run.sequences(seen) if seen.shapes[p][0] == before[p][0] and seen.shapes[p] != before[p]
    ]
    if wrong:
        return Check(name, "fail", f"time of the neuron does not follow T of the input: {', '.join(wrong)}")
    return Check(name, "pass")


def other_size(run: Runner) -> Check:
    """With twice the height and width it runs."""
    name = "other height and width"
    lead = 1 if run.time is None else 2
    seen = _varied(run, name, run.sized({}, from_axis=lead + 1), "height and width")
    return seen if isinstance(seen, Check) else Check(name, "pass")


# Samples --------------------------------------------------------------------------------------------------------------


def isolation(run: Runner, passes: int) -> Check:
    """Exchange one sample, in ``passes`` forward passes at most: only its own output may move, and does."""
    name = "samples stay apart"
    exchanged = moved = 0
    for number, scale in enumerate(SCALES):
        left = passes - exchanged - 2 * number  # settling, and the run before the exchanges, are passes too
        tries = left // (len(SCALES) - number) - 2
        if tries < 1:
            continue
        try:
            deltas = _exchanges(run, scale, tries)
        except InsideNeuron as error:
            return Check(name, "fail", str(error))
        if deltas is None:
            return Check(name, "skip", "the output has no batch axis")
        for own, others in deltas:
            exchanged += 1
            if others > 0:
                return Check(
                    name, "fail", f"exchanging one sample moved the output of another by {others:.3g}"
                )
            moved += own > 0
    if moved:
        detail = f"{moved} of {exchanged} exchanges moved the sample's own output, none another's"
        return Check(name, "pass", detail)
    return Check(name, "unclear", "no output moved at all: the network is silent; give an input it answers")


def _exchanges(run: Runner, scale: float, tries: int) -> list[tuple[float, float]] | None:
    """Exchange one sample for others; by how much its own output moved, and those of the others."""

    def two(x: Tensor) -> Tensor:  # at least two samples
        if x.dim() <= run.batch:
            return x
        size = list(x.shape)
        size[run.batch] = max(2, size[run.batch])
        return _like(x, size) * (scale if x.is_floating_point() else 1)

    def exchanged(louder: float) -> Callable[[Tensor], Tensor]:
        def one(x: Tensor) -> Tensor:
            if x.dim() <= run.batch:
                return x
            y = x.clone()
            part = y.select(run.batch, 0)
            part.copy_(_like(part, part.shape) * (louder if x.is_floating_point() else 1))
            return y

        return one

    if run.out_batch and all(axis is None for axis in run.out_batch):
        return None
    inputs = pytree.tree_map_only(Tensor, two, run.inputs)
    with torch.no_grad(), undisturbed(run.model):
        run.settle(inputs)
        run.at_rest()
        before = run.forward(inputs).outputs
        deltas = []
        for number in range(tries):
            other = pytree.tree_map_only(Tensor, exchanged(8.0 if number % 2 else 1.0), inputs)
            run.at_rest()
            deltas.append(_moved(run, before, run.forward(other).outputs))
    return deltas


def _moved(run: Runner, before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """By how much the first sample's output moved, and the largest move of the others."""
    own = others = 0.0
    for i, (y, z) in enumerate(zip(before, after, strict=True)):
        guess = 1 if run.time is not None and y.dim() > 2 else 0 if y.dim() else None
        axis = run.out_batch[i] if i < len(run.out_batch) else guess
        if axis is None or y.dim() <= axis:
            continue
        delta = (y.double() - z.double()).abs().movedim(axis, 0)
        own = max(own, float(delta[0].max()) if delta[0].numel() else 0.0)
        limit = 1e-5 * float(y.abs().max()) if y.numel() else 0.0
        rest_of = float(delta[1:].max()) if delta[1:].numel() else 0.0
        others = max(others, rest_of if rest_of > limit else 0.0)
    return own, others


# Reset and gradients --------------------------------------------------------------------------------------------------


def reset_twice(run: Runner) -> Check:
    """Two runs with the host's own reset before each are equal."""
    name = "reset"
    hosts = {host for node in run.found.values() if (host := host_of_node(node)) is not None}
    with torch.no_grad(), undisturbed(run.model):
        run.settle(run.inputs)
        results = []
        for _ in range(2):
            for host in hosts:
                load(host).reset_net(run.model)
            left = [path for path, node in run.found.items() if getattr(node, "carried", None) is not None]
            if left:
                return Check(
                    name,
                    "fail",
                    f"the host's reset does not reach {', '.join(left)}: its cache may know the old neurons only "
                    "(functional.invalidate_reset_cache)",
                )
            results.append(run.forward(run.inputs).outputs)
    if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
        return Check(name, "fail", "two runs with a reset between them differ")
    return Check(name, "pass", "two runs with a reset between them are equal")


def gradients(run: Runner) -> Check:
    """Gradients reach every parameter of the new neurons, and are finite."""
    name = "gradients"
    called = {p: m for p, m in run.found.items() if p in run.first.shapes}
    ours = {f"{p}.{n}": q for p, m in called.items() for n, q in m.named_parameters() if q.requires_grad}
    others = [q for q in run.model.parameters() if q.requires_grad and all(q is not o for o in ours.values())]
    watched = {**ours, **{f"other {i}": q for i, q in enumerate(others)}}
    if not watched:
        return Check(name, "skip", "the model has no parameters")
    silent: list[str] = []
    for scale in SCALES:
        try:
            grads = _gradients(run, scale, watched, others)
        except InsideNeuron as error:
            return Check(name, "fail", str(error))
        except Exception as error:
            return Check(name, "skip", f"the model does not train on this input: {_line(error)}")
        if grads is None:
            return Check(name, "fail", "no output depends on any parameter")
        missing = [n for n in ours if grads[n] is None]
        if missing:
            return Check(name, "fail", f"no gradient reaches {', '.join(missing[:6])}")
        found = {n: g for n, g in grads.items() if g is not None}
        bad = [n for n, g in found.items() if not bool(g.isfinite().all())]
        if bad:
            return Check(name, "fail", f"gradients are not finite at {', '.join(bad[:6])}")
        silent = [n for n in ours if not bool(found[n].any())]
        if not silent and any(bool(g.any()) for g in found.values()):
            reached = f"all {len(ours)} parameters of the new neurons"
            return Check(
                name, "pass", f"they reach {reached}, {len(found) - len(ours)} of {len(others)} others"
            )
    return Check(name, "unclear", f"gradients are zero at {', '.join(silent[:6]) or 'all parameters'}")


def _gradients(
    run: Runner, scale: float, watched: dict[str, nn.Parameter], others: list[nn.Parameter]
) -> dict[str, Tensor | None] | None:
    """Of a random sum of the outputs, in training mode; None where no output depends on a parameter."""
    with undisturbed(run.model), _without_zeros(others), torch.enable_grad():
        run.model.train()
        run.at_rest()
        inputs = pytree.tree_map_only(Tensor, lambda x: x * scale if x.is_floating_point() else x, run.inputs)
        outputs = run.forward(inputs).outputs
        total = sum((y * torch.randn_like(y)).sum() for y in outputs if y.requires_grad)
        if not isinstance(total, Tensor):
            return None
        found = torch.autograd.grad(total, list(watched.values()), allow_unused=True)
    return dict(zip(watched, found, strict=True))


@contextmanager
def _without_zeros(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Weights that are all zero, as at the end of a fresh residual branch, let nothing back: make them small."""
    zeros = [p for p in parameters if p.dim() and not p.is_meta and not bool(p.any())]
    try:
        try:
            with torch.no_grad():
                for p in zeros:
                    p.normal_(std=0.1)
            yield
        finally:
            _zero(zeros)
    finally:
        _zero(zeros)  # again: an interrupt may have stopped the first


def _zero(parameters: list[nn.Parameter]) -> None:
    with torch.no_grad():
        for p in parameters:
            p.zero_()


def _like(x: Tensor, size: Any) -> Tensor:
    """Random values of the kind that ``x`` holds."""
    if x.is_floating_point():
        spread = float(x.abs().max()) if x.numel() and not x.is_meta else 1.0
        y = torch.rand(tuple(size), dtype=torch.float32) * (spread or 1.0)
        if x.numel() and bool((x < 0).any()):
            y = 2 * y - (spread or 1.0)
        return y.to(x)
    low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
    if x.dtype == torch.bool:
        return (torch.rand(tuple(size)) < 0.5).to(x)
    return torch.randint(low, high + 1, tuple(size)).to(x)


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# Keys -----------------------------------------------------------------------------------------------------------------


def keys_kept(model: nn.Module, plan: Plan | None) -> Check:
    """What is not a swapped neuron kept its keys and shapes."""
    name = "state dict"
    now = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if plan is None or not plan.applied:
        return Check(name, "skip", "without its plan the keys from before the swap are not known")
    paths = [site.path for site in plan.sites if site.verdict in SWAPPED]

    def inside(key: str) -> bool:
        return any(key.startswith(f"{path}.") or not path for path in paths)

    before = {key: shape for key, shape in plan.keys.items() if not inside(key)}
    after = {key: shape for key, shape in now.items() if not inside(key)}
    if before != after:
        wrong = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        return Check(name, "fail", f"keys outside the neurons changed: {', '.join(wrong[:6])}")
    new = sum(inside(key) for key in now)
    return Check(name, "pass", f"{len(after)} keys as before, {new} of the new neurons")
