"""Check a swapped model by running it: a wrong swap is finite, has gradients and the right keys, and is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ..neurons.nodes import takes_sequences
from ..words import teaching_call
from . import checks
from .back import nodes
from .checks import Check, Runner
from .plans import Plan
from .probe import probe
from .running import arguments, seeds_kept, undisturbed
from .spec import SwapError, require_built

__all__ = ["Check", "Report", "verify"]


@dataclass
class Report:
    """What :func:`swap.verify` found."""

    checks: list[Check] = field(default_factory=list)
    passes: int = 0
    """How many times the model was run."""

    @property
    def ok(self) -> bool:
        """Nothing failed and nothing stayed unclear."""
        return all(check.status in ("pass", "skip") for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "ok": self.ok,
            "passes": self.passes,
            "checks": [asdict(check) for check in self.checks],
        }

    def __getitem__(self, name: str) -> Check:
        return next(check for check in self.checks if check.name == name)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{c.name.ljust(width)}  {c.status:7}  {c.detail}".rstrip() for c in self.checks]
        return "\n".join([*lines, "the swap holds" if self.ok else "THE SWAP DOES NOT HOLD"])


@teaching_call("swap.verify")
def verify(
    model: nn.Module,
    example_input: Any,
    *,
    plan: Plan | None = None,
    time_dim: int | str | None = "auto",
    passes: int = 25,
    progress: bool | None = None,
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
        passes: how many forward passes it may take, at least 20; with more, samples are exchanged more often.
        progress: show a progress bar on stderr; None shows one if stderr is a terminal.
        raise_on_failure: raise SwapError, with the report as its text, unless everything holds.

    Raises:
        SwapError: no neuron of ours in the model, or see ``raise_on_failure``.
        ValueError: fewer than 20 passes.
        TypeError: a model that is none, or a word that it does not take.
    """
    require_built(model)
    if passes < 20:
        raise ValueError(f"passes must be at least 20, got {passes}: the checks need them")
    found = nodes(model)
    if not found:
        raise SwapError(f"{type(model).__name__} has no neuron of msf_pmsn_plugins to verify")
    inputs = arguments(example_input)
    bar = _Bar(passes, sys.stderr.isatty() if progress is None else progress)
    report = Report()
    with seeds_kept(model, inputs), undisturbed(model), bar.counting(model):
        torch.manual_seed(0)  # inside seeds_kept: the caller's generators come back
        time, batch = _axes(model, found, inputs, plan, time_dim)
        run = Runner(model, found, inputs, time, batch)
        report.checks.append(checks.example(run))
        if report.ok:
            report.checks += [checks.other_batch(run), checks.other_t(run), checks.other_size(run)]
            report.checks.append(checks.gradients(run))
            report.checks.append(checks.reset_twice(run))
            report.checks.append(checks.isolation(run, passes - bar.done))
        report.passes = bar.done
    report.checks.append(checks.keys_kept(model, plan))
    if raise_on_failure and not report.ok:
        raise SwapError(str(report))
    return report


class _Bar:
    """Counts the forward passes of a model, and shows them."""

    def __init__(self, total: int, shown: bool) -> None:
        self.done, self._total, self._shown = 0, total, shown

    @contextmanager
    def counting(self, model: nn.Module) -> Iterator[None]:
        """Count inside :func:`undisturbed`, which takes the hook off again."""
        if not isinstance(model, torch.jit.ScriptModule):
            model.register_forward_pre_hook(self._count)
        try:
            yield
        finally:
            if self._shown:
                print(file=sys.stderr)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.done += 1
        if self._shown:
            part = min(30, 30 * self.done // self._total)
            bar = "#" * part + "." * (30 - part)
            print(f"\rverify [{bar}] {self.done} forward passes", end="", file=sys.stderr, flush=True)


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
    sequences = any(takes_sequences(node) for node in found.values())
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
