"""Run the swapped model once before anybody relies on the plan, and say where it does not do what it should."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .edits import make
from .learned import untied
from .plans import Plan
from .probe import Probe, Run, record
from .running import arguments, seeds_kept, takes_nothing, undisturbed
from .site import SWAPPED, Site
from .spec import SwapError

__all__ = ["rehearse"]


def rehearse(plan: Plan, example_input: Any, seen: Probe) -> None:
    """Swap, run, and put everything back; refuse the sites after which the model is not what it was."""
    built = _built(plan)
    todo = [s for s in plan.sites if s.verdict in SWAPPED]
    if not todo:
        return
    for site in todo:
        site.warnings += _of_the_ties(plan, site, built)
        node: Any = built[site.module]
        if getattr(node, "carries", False) and not node.init_hidden and _hands_out_copies(site.module):
            site.refuse(
                "fails when swapped",
                "torch hands out a copy of what a neuron with a backward hook returns, and the mem of the new neuron "
                "carries a state that a copy has not: remove the hook, set init_hidden=True, or keep this site with "
                "rules={path: swap.Keep()}",
            )
    todo = [site for site in todo if site.verdict in SWAPPED]
    inputs = arguments(example_input)
    run, failure = Run({}), None
    with seeds_kept(plan.model, inputs), _unknown_to_hosts(plan, todo), undisturbed(plan.model):
        make([*plan.replaced(todo, built), *plan.beside(todo, built)])  # undisturbed takes them back
        root = plan.root(todo, built)
        try:
            record(root, {s.path: built[s.module] for s in todo}, inputs, again=True, run=run)
        except Exception as error:
            failure = error
    same = failure is None and run.structure == seen.example.structure
    for site in todo:
        _compare(site, seen.example, run, same)
    if failure is not None and not plan.unresolved:
        _blame(todo, run, failure)
    elif run.outputs and seen.example.finite and not run.finite and not plan.unresolved:
        todo[-1].refuse(
            "not finite",
            "after the swap the model's output is NaN or infinite, and before it was not: take a smaller D, or keep "
            "the neuron whose counts something behind it cannot take with rules={path: swap.Keep()}",
        )
    old = {id(p) for p in plan.model.parameters()}
    new = {id(p): p for node in built.values() for p in node.parameters() if p.requires_grad}
    plan.new_parameters = sum(p.numel() for key, p in new.items() if key not in old)


def _hands_out_copies(module: nn.Module) -> bool:
    """Whether torch wraps what a call returns, for a full backward hook."""
    return bool(module._backward_pre_hooks) or bool(module._backward_hooks and module._is_full_backward_hook)


def _of_the_ties(plan: Plan, site: Site, built: dict[nn.Module, nn.Module]) -> list[str]:
    """What it shares with others now, and will not."""
    assert site.host is not None
    return [
        f"its {word} is one Parameter with {', '.join(others)} and becomes one of its own: if they are to learn as "
        "one, keep this site with rules={path: swap.Keep()}"
        for word, others in untied(plan.model, site.host, site.module, built).items()
    ]


@contextmanager
def _unknown_to_hosts(plan: Plan, todo: list[Site]) -> Iterator[None]:
    """A model may reset itself in its forward pass, and its host would remember the new neurons."""
    try:
        try:
            plan.forget(todo)
            yield
        finally:
            plan.forget(todo)
    finally:
        plan.forget(todo)  # again: an interrupt may have stopped the first


def _built(plan: Plan) -> dict[nn.Module, nn.Module]:
    """The new neurons; a site whose neuron cannot be built is refused."""
    with torch.random.fork_rng(devices=[]):
        while True:
            try:
                return plan.build()
            except SwapError as error:
                site = next(
                    s for s in plan.sites if s.verdict in SWAPPED and str(error).startswith(f"{s.name}: ")
                )
                site.refuse("unsupported dynamics", str(error).removeprefix(f"{site.name}: "))


def _compare(site: Site, before: Run, after: Run, same: bool) -> None:
    """One site in the run of the model as it is, and in that of the swapped one, which returned the ``same``."""
    old, new = before.first(site.path), after.first(site.path)
    if old is None or new is None or new.emitted is None:
        return
    if old.emitted != new.emitted and same:
        site.warnings.append(f"it returns {_kind(new.emitted)} where {site.old} returns {_kind(old.emitted)}")
    elif old.emitted != new.emitted:
        site.refuse(
            "another output",
            f"it returns {_kind(new.emitted)} where {site.old} returns {_kind(old.emitted)}, and the model was "
            "written for that: change what the model does with it, or keep this site with "
            "rules={path: swap.Keep()}",
        )
    elif old.finite and not new.finite:
        site.refuse(
            "not finite", "after the swap it emits NaN or infinity: keep it with rules={path: swap.Keep()}"
        )
    elif site.path in before.reset and site.path in after.carried:
        site.refuse("never reset", _how_to_reset(site))


def _how_to_reset(site: Site) -> str:
    names = [
        name
        for name in dir(type(site.module))
        if "reset" in name
        and not name.startswith("_")
        and name != site.rule.reset
        and takes_nothing(getattr(site.module, name))
    ]
    known = [name for name in names if not hasattr(nn.Module, name) and name not in ("reset", "reset_mem")]
    text = f"the model puts the state of {site.old} back in every pass, and would not reach the new neuron: "
    if known:
        text += f"give it that method with rules={{path: swap.Rule(reset={known[0]!r})}}, "
    if site.step_mode == "m":
        text += "let it forget its state after every call with rules={path: swap.Rule(keeps_state=False)}, "
    return text + "or keep this site with swap.Keep()"


def _blame(todo: list[Site], run: Run, failure: Exception) -> None:
    """Refuse the site in which, or right behind which, the swapped model failed."""
    calls = run.ordered()
    path, call = calls[-1] if calls else (todo[0].path, None)
    site = next(s for s in todo if s.path == path)
    where = "in it" if call is not None and call.emitted is None else "behind it"
    lines = str(failure).splitlines() or [""]
    site.refuse(
        "fails when swapped",
        f"the swapped model fails {where} ({type(failure).__name__}: {lines[0]}), and the model as it is does not: "
        "keep this site with rules={path: swap.Keep()}, or name another target for it",
    )


def _kind(emitted: Any) -> str:
    if isinstance(emitted, tuple) and emitted and all(isinstance(n, int) for n in emitted):
        return f"a tensor {list(emitted)}"
    if isinstance(emitted, tuple):
        return f"({', '.join(map(_kind, emitted))})"
    return type(emitted).__name__
