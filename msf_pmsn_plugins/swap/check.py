"""Check a swapped model by running it: a wrong swap is finite, has gradients and the right keys, and is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .back import host_of, nodes
from .plans import SWAPPED, Plan
from .probe import arguments, probe, rest, seeds_kept, undisturbed
from .sites import load
from .spec import SwapError

__all__ = ["Check", "Report", "verify"]


@dataclass
class Check:
    """One check: ``status`` is ``"pass"``, ``"fail"``, ``"skip"`` (it does not apply) or ``"unclear"``."""

    name: str
    status: str
    detail: str = ""


@dataclass
class Report:
    """What :func:`swap.verify` found."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed and nothing stayed unclear."""
        return all(check.status in ("pass", "skip") for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{c.name.ljust(width)}  {c.status:7}  {c.detail}".rstrip() for c in self.checks]
        return "\n".join([*lines, "the swap holds" if self.ok else "THE SWAP DOES NOT HOLD"])


class _Inside(Exception):
    """A forward pass failed inside one of our neurons."""


@dataclass
class _Seen:
    """One forward pass: the first input of every node of ours, and the model's output tensors."""

    shapes: dict[str, tuple[int, ...]]
    outputs: list[Tensor]


def verify(
    model: nn.Module,
    example_input: Any,
    *,
    plan: Plan | None = None,
    time_dim: int | str | None = "auto",
    seeds: int = 3,
    raise_on_failure: bool = False,
) -> Report:
    """Run a swapped model in ways that wrong swaps do not survive. The model is left as it was.

    The checks: another batch size, another T and, where the model takes it, another height and width; samples do not
    reach one another, while a sample's own output does move (the control), over several seeds; two runs with a reset
    between them are equal; gradients reach every parameter of the new neurons; with ``plan``, all other keys of the
    state dict are as before.

    Args:
        model: a model with MSF or PMSN neurons.
        example_input: as for :func:`swap.plan`; its first two axes hold time and batch.
        plan: the plan that was applied.
        time_dim: the axis of time in the example input, None where it has none; ``"auto"`` takes the plan's, or the
            axis that the model's output does not follow, or 0 if it follows both.
        seeds: how many times samples are exchanged.
        raise_on_failure: raise SwapError, with the report as its text, unless everything holds.

    Raises:
        SwapError: no neuron of ours in the model, or see ``raise_on_failure``.
    """
    found = nodes(model)
    if not found:
        raise SwapError(f"{type(model).__name__} has no MSF or PMSN neuron to verify")
    inputs = arguments(example_input)
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    report = Report()
    with seeds_kept(model, tensors), _own_generators():
        time, batch = _axes(model, found, inputs, plan, time_dim)
        run = _Runner(model, found, inputs, time, batch)
        report.checks.append(run.example())
        if report.ok:
            report.checks += [run.other_batch(), run.other_t(), run.other_size()]
            report.checks += [run.isolation(seeds), run.reset_twice(), run.gradients()]
        report.checks.append(_keys(model, plan))
    if raise_on_failure and not report.ok:
        raise SwapError(str(report))
    return report


@contextmanager
def _own_generators() -> Iterator[None]:
    torch.manual_seed(0)  # inside seeds_kept: the caller's generators come back
    yield


def _axes(
    model: nn.Module,
    found: dict[str, nn.Module],
    inputs: tuple[Any, ...],
    plan: Plan | None,
    time_dim: int | str | None,
) -> tuple[int | None, int]:
    """The axes of time and batch in the input."""
    if time_dim != "auto":
        time = None if time_dim is None else int(time_dim)
        return time, 0 if time is None else 1 - time
    if plan is not None:
        return plan.layout.time, plan.layout.batch
    sequences = any(_sequence(node) for node in found.values())
    try:
        seen = probe(model, found, inputs, sequences)
    except Exception:
        return (0, 1) if sequences else (None, 0)
    if seen.other is None:
        return (0, 1) if sequences else (None, 0)
    pairs = zip(seen.example.outputs, seen.other.outputs, strict=False)
    changes = {n - m for old, new in pairs for m, n in zip(old, new, strict=False)}
    if seen.grown == {0: 1}:
        return (None, 0) if 1 in changes else (0, 1)
    if seen.grown == {0: 1, 1: 2} and 1 in changes and 2 not in changes:
        return 1, 0
    return 0, 1


def _sequence(node: Any) -> bool:
    return node.step_mode == "m" if hasattr(node, "step_mode") else bool(getattr(node, "sequence", False))


class _Runner:
    def __init__(
        self,
        model: nn.Module,
        found: dict[str, nn.Module],
        inputs: tuple[Any, ...],
        time: int | None,
        batch: int,
    ) -> None:
        self.model, self.found, self.inputs, self.time, self.batch = model, found, inputs, time, batch
        self.first = _Seen({}, [])
        self.out_batch: list[int | None] = []  # the batch axis of every output

    def _forward(self, inputs: tuple[Any, ...]) -> _Seen:
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
                raise _Inside(f"{inside[-1] or '(the model)'}: {error}") from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        return _Seen(shapes, [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor)])

    def _evaluate(self, inputs: tuple[Any, ...]) -> _Seen:
        """In evaluation mode, without gradients, from rest, leaving no trace."""
        with torch.no_grad(), undisturbed(self.model):
            self.model.eval()
            rest(self.model)
            _at_rest(self.found)
            return self._forward(inputs)

    def example(self) -> Check:
        try:
            self.first = self._evaluate(self.inputs)
        except _Inside as error:
            return Check("runs", "fail", str(error))
        if not all(bool(y.isfinite().all()) for y in self.first.outputs if y.is_floating_point()):
            return Check("runs", "fail", "the output is not finite")
        uncalled = [p for p in self.found if p not in self.first.shapes]
        return Check("runs", "pass", f"not called: {', '.join(uncalled)}" if uncalled else "")

    def _varied(self, name: str, inputs: tuple[Any, ...] | None, what: str) -> Check | _Seen:
        if inputs is None:
            return Check(name, "skip", f"the input has no {what}")
        try:
            return self._evaluate(inputs)
        except _Inside as error:
            return Check(name, "fail", str(error))
        except Exception as error:  # the model's own layers do not take it
            return Check(name, "skip", f"the model takes no other {what}: {_line(error)}")

    def _time_of(self, path: str, seen: _Seen) -> int:
        return seen.shapes[path][0]

    def _sequences(self, seen: _Seen) -> list[str]:
        both = self.first.shapes.keys() & seen.shapes.keys()
        return [p for p in self.found if p in both and _sequence(self.found[p])]

    def other_batch(self) -> Check:
        name = "other batch size"
        grown = self._sized({self.batch: 2})
        seen = self._varied(name, grown, "batch")
        if isinstance(seen, Check):
            return seen
        pairs = list(zip(self.first.outputs, seen.outputs, strict=False))
        self.out_batch = [
            next((i for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=False)) if n != m), None)
            for a, b in pairs
        ]
        wrong = [p for p in self._sequences(seen) if self._time_of(p, seen) != self._time_of(p, self.first)]
        if wrong:
            return Check(
                name, "fail", f"time of the neuron follows the batch of the input: {', '.join(wrong)}"
            )
        return Check(name, "pass")

    def other_t(self) -> Check:
        name = "other T"
        if self.time is None:
            return Check(name, "skip", "the input has no time axis")
        seen = self._varied(name, self._sized({self.time: 1}), "T")
        if isinstance(seen, Check):
            return seen
        wrong = [
            p
            for p in self._sequences(seen)
            if self._time_of(p, seen) == self._time_of(p, self.first)
            and seen.shapes[p] != self.first.shapes[p]
        ]
        if wrong:
            return Check(
                name, "fail", f"time of the neuron does not follow T of the input: {', '.join(wrong)}"
            )
        return Check(name, "pass")

    def other_size(self) -> Check:
        name = "other height and width"
        lead = 1 if self.time is None else 2
        seen = self._varied(name, self._sized({}, from_axis=lead + 1), "height and width")
        return seen if isinstance(seen, Check) else Check(name, "pass")

    def _sized(self, grown: dict[int, int], from_axis: int | None = None) -> tuple[Any, ...] | None:
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

    def isolation(self, seeds: int) -> Check:
        name = "samples stay apart"
        moved = 0
        for step, scale in enumerate((1.0, 4.0, 16.0)):
            for seed in range(seeds):
                try:
                    result = self._exchange(scale, 8.0 if (step + seed) % 2 else 1.0)
                except _Inside as error:
                    return Check(name, "fail", str(error))
                if result is None:
                    return Check(name, "skip", "the output has no batch axis")
                own, others = result
                if others > 0:
                    return Check(
                        name, "fail", f"exchanging one sample moved the output of another by {others:.3g}"
                    )
                moved += own > 0
        if moved:
            detail = f"{moved} of {3 * seeds} exchanges moved the sample's own output, none another's"
            return Check(name, "pass", detail)
        return Check(
            name, "unclear", "no output moved at all: the network is silent; give an input it answers"
        )

    def _exchange(self, scale: float, louder: float) -> tuple[float, float] | None:
        """Exchange one sample for a ``louder`` one; by how much its own output moved, and that of the others."""

        def two(x: Tensor) -> Tensor:  # at least two samples
            if x.dim() <= self.batch:
                return x
            size = list(x.shape)
            size[self.batch] = max(2, size[self.batch])
            return _like(x, size) * (scale if x.is_floating_point() else 1)

        inputs = pytree.tree_map_only(Tensor, two, self.inputs)

        def exchanged(x: Tensor) -> Tensor:
            if x.dim() <= self.batch:
                return x
            y = x.clone()
            part = y.select(self.batch, 0)
            part.copy_(_like(part, part.shape) * (louder if x.is_floating_point() else 1))
            return y

        other = pytree.tree_map_only(Tensor, exchanged, inputs)
        with torch.no_grad(), undisturbed(self.model):
            self._settle(inputs)
            results = []
            for given in (inputs, other):
                rest(self.model)
                _at_rest(self.found)
                results.append(self._forward(given).outputs)
        own = others = 0.0
        axes = [axis for axis in self.out_batch if axis is not None]
        if self.out_batch and not axes:
            return None
        for i, (y, z) in enumerate(zip(*results, strict=True)):
            axis = self.out_batch[i] if i < len(self.out_batch) else self._guess(y)
            if axis is None or y.dim() <= axis:
                continue
            delta = (y.double() - z.double()).abs().movedim(axis, 0)
            own = max(own, float(delta[0].max()) if delta[0].numel() else 0.0)
            limit = 1e-5 * float(y.abs().max()) if y.numel() else 0.0
            rest_of = float(delta[1:].max()) if delta[1:].numel() else 0.0
            others = max(others, rest_of if rest_of > limit else 0.0)
        return own, others

    def _guess(self, y: Tensor) -> int | None:
        return 1 if self.time is not None and y.dim() > 2 else 0 if y.dim() else None

    def _settle(self, inputs: tuple[Any, ...]) -> None:
        """Give norms the statistics of the input, so that a fresh network answers at all; then evaluation mode."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
        self.model.train()
        rest(self.model)
        _at_rest(self.found)
        try:
            self._forward(inputs)
        except _Inside:
            raise
        except Exception:  # a model that does not train on this input is checked as it is
            pass
        self.model.eval()

    def reset_twice(self) -> Check:
        name = "reset"
        hosts = {host for node in self.found.values() if (host := host_of(node)) is not None}

        def reset() -> None:
            for host in hosts:
                load(host).reset_net(self.model)

        with torch.no_grad(), undisturbed(self.model):
            self._settle(self.inputs)
            _at_rest(self.found)
            results = []
            for _ in range(2):
                reset()
                left = [
                    path for path, node in self.found.items() if getattr(node, "carried", None) is not None
                ]
                if left:
                    return Check(
                        name,
                        "fail",
                        f"the host's reset does not reach {', '.join(left)}: its cache may know the old neurons only "
                        "(functional.invalidate_reset_cache)",
                    )
                results.append(self._forward(self.inputs).outputs)
        if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
            return Check(name, "fail", "two runs with a reset between them differ")
        return Check(name, "pass", "two runs with a reset between them are equal")

    def gradients(self) -> Check:
        name = "gradients"
        called = {p: m for p, m in self.found.items() if p in self.first.shapes}
        ours = {f"{p}.{n}": q for p, m in called.items() for n, q in m.named_parameters() if q.requires_grad}
        others = [
            q for q in self.model.parameters() if q.requires_grad and all(q is not o for o in ours.values())
        ]
        watched = {**ours, **{f"other {i}": q for i, q in enumerate(others)}}
        if not watched:
            return Check(name, "skip", "the model has no parameters")
        silent: list[str] = []
        for scale in (1.0, 4.0, 16.0):
            with undisturbed(self.model), _without_zeros(others), torch.enable_grad():
                self.model.train()
                rest(self.model)
                _at_rest(self.found)
                inputs = pytree.tree_map_only(Tensor, _times(scale), self.inputs)
                try:
                    outputs = self._forward(inputs).outputs
                except _Inside as error:
                    return Check(name, "fail", str(error))
                except Exception as error:
                    return Check(name, "skip", f"the model does not train on this input: {_line(error)}")
                total = sum((y * torch.randn_like(y)).sum() for y in outputs if y.requires_grad)
                if not isinstance(total, Tensor):
                    return Check(name, "fail", "no output depends on any parameter")
                grads = dict(
                    zip(
                        watched,
                        torch.autograd.grad(total, list(watched.values()), allow_unused=True),
                        strict=True,
                    )
                )
            missing = [n for n in ours if grads[n] is None]
            if missing:
                return Check(name, "fail", f"no gradient reaches {', '.join(missing[:6])}")
            bad = [n for n, g in grads.items() if g is not None and not bool(g.isfinite().all())]
            if bad:
                return Check(name, "fail", f"gradients are not finite at {', '.join(bad[:6])}")
            silent = [n for n in ours if not bool(grads[n].any())]
            if not silent and any(g is not None and bool(g.any()) for g in grads.values()):
                reached = sum(grads[n] is not None for n in watched)
                rest_of = f"{reached - len(ours)} of {len(others)} others"
                return Check(
                    name, "pass", f"they reach all {len(ours)} parameters of the new neurons, {rest_of}"
                )
        return Check(name, "unclear", f"gradients are zero at {', '.join(silent[:6]) or 'all parameters'}")


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


@contextmanager
def _without_zeros(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Weights that are all zero, as at the end of a fresh residual branch, let nothing back: make them small."""
    zeros = [p for p in parameters if p.dim() and not p.is_meta and not bool(p.any())]
    with torch.no_grad():
        for p in zeros:
            p.normal_(std=0.1)
    try:
        yield
    finally:
        with torch.no_grad():
            for p in zeros:
                p.zero_()


def _times(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * scale if x.is_floating_point() else x


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _at_rest(found: dict[str, nn.Module]) -> None:
    for node in found.values():
        if hasattr(node, "carried"):
            node.carried = None  # type: ignore[assignment]


def _keys(model: nn.Module, plan: Plan | None) -> Check:
    """Whether what is not a swapped neuron kept its keys and shapes."""
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
