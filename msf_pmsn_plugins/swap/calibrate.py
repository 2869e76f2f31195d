"""After a swap: start near the original, and change T or thresholds without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..neurons import MSF, PMSN, Neuron
from ..neurons.nodes import is_node
from ..tables import Table
from .running import arguments, output_of, rest, undisturbed
from .spec import SwapError, applies, require_built

__all__ = ["Calibration", "Norm", "Rate", "firing_rates", "match_norms", "match_rates"] + [
    "set_steps",
    "set_thresholds",
]

THRESHOLDS: dict[type, tuple[str, ...]] = {
    MSF: ("D", "v_threshold", "threshold_step", "thresholds"),
    PMSN: ("v_threshold",),
}
STEPS = ("T", "time_step", "time_steps", "timestep", "timesteps", "total_timestep", "num_steps", "_time_step")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rate:
    """A neuron's mean output: wanted, before and after, and the first threshold that gives it, in volts."""

    neuron: str
    wanted: float
    before: float
    after: float
    threshold: float


@dataclass(frozen=True)
class Norm:
    """How far the input of a batch norm had moved from its stored statistics, averaged over channels."""

    norm: str
    shift: float
    """Of the mean, in stored standard deviations."""
    spread: float
    """The new standard deviation over the stored one."""


class Calibration(Table[Any]):
    """What a calibration did, a :class:`Rate` or :class:`Norm` for each place; prints as a table."""


def firing_rates(model: nn.Module, batches: Iterable[Any], paths: Iterable[str]) -> dict[str, float]:
    """Mean output of neurons over elements, steps and batches, in evaluation mode; nothing is changed.

    Args:
        batches: inputs, each what ``model`` takes; a tuple is its arguments.
        paths: of the neurons: ``[site.path for site in plan.sites if site.verdict == "ok"]``.

    Raises:
        ValueError: no batch, or a path whose neuron no batch reaches.
        TypeError: a model that is none.
    """
    require_built(model)
    modules = {path: model.get_submodule(path) for path in paths}
    sums = {path: torch.zeros(2, dtype=torch.float64) for path in modules}

    def add(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            s = output_of(output)
            sums[path] += torch.tensor([float(s.sum(dtype=torch.float64)), s.numel()], dtype=torch.float64)

        return hook

    hooks = [module.register_forward_hook(add(path)) for path, module in modules.items()]
    try:
        _run(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [path for path, (_, count) in sums.items() if not count]
    if silent:
        raise ValueError(f"no batch reaches {', '.join(silent)}")
    return {path: float(total / count) for path, (total, count) in sums.items()}


def match_rates(
    model: nn.Module,
    batches: Iterable[Any],
    rates: Mapping[str, float],
    *,
    largest_factor: float = 16.0,
    progress: Progress | None = None,
) -> Calibration:
    """Set the first threshold of swapped neurons so that their mean output is that of the neurons before them.

    One neuron after the other, in the order of the forward pass, each on what the ones before it now send: a pass over
    the batches and a search for each. D and the spacing of thresholds stay. Where neurons of a layer have thresholds of
    their own, their mean is searched and their ratios stay.

    Args:
        batches: inputs, the same as for :func:`firing_rates`.
        rates: what :func:`firing_rates` of the original model returned.
        largest_factor: thresholds move between their value divided and multiplied by this.
        progress: called with (number, how many, path) before each neuron.

    Returns:
        a :class:`Rate` for each neuron; ``print`` it. What no threshold in the range gives shows as a difference.

    Raises:
        SwapError: a path without a neuron of ours, or with one whose thresholds are an explicit list.
        ValueError: no batch, or a path that no batch reaches.
        TypeError: a model that is none.
    """
    require_built(model)
    batches = list(batches)
    nodes = {path: _node(model, path) for path in rates}
    rows = Calibration()
    for number, path in enumerate(_order(model, batches, rates)):
        if progress is not None:
            progress(number, len(rates), path)
        module, node = model.get_submodule(path), nodes[path]
        calls = _inputs(model, batches, module)
        shares: Any = 1.0
        first = _copied(_get(node, "v_threshold"))
        if isinstance(first, Tensor) and first.numel() > 1:
            first, shares = first.mean(), first / first.mean()
        start = float(first)

        def rate(
            threshold: float,
            module: nn.Module = module,
            node: Any = node,
            calls: Any = calls,
            shares: Any = shares,
        ) -> float:
            _set(node, "v_threshold", threshold * shares)
            return _replay(module, calls)

        before = rate(start)
        best = _search(rate, rates[path], start, before, largest_factor)
        rows.append(Rate(path, rates[path], before, rate(best), best))
    return rows


def match_norms(model: nn.Module, batches: Iterable[Any]) -> Calibration:
    """Estimate the running statistics of all batch norms anew, as the mean over the batches.

    After it every norm hands on, in evaluation too, the mean and spread that its bias and weight say, as it did in the
    original. Nothing else is changed, and nothing but the norms runs in training mode.

    Returns:
        a :class:`Norm` for each; ``print`` it.

    Raises:
        ValueError: no batch norm with running statistics, or no batch.
        TypeError: a model that is none.
    """
    require_built(model)
    norms: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None
    }
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm with running statistics")
    with undisturbed(model):
        old = {path: _statistics(norm) for path, norm in norms.items()}
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        _forward(model, batches, training=norms.values())
        new = {path: _statistics(norm) for path, norm in norms.items()}
        counts = {path: _clone(norm.num_batches_tracked) for path, norm in norms.items()}
    rows = Calibration()
    for path, norm in norms.items():
        (mean, var), (new_mean, new_var) = old[path], new[path]
        norm.running_mean.copy_(new_mean)
        norm.running_var.copy_(new_var)
        if counts[path] is not None:
            norm.num_batches_tracked.copy_(counts[path])
        stored = (var + norm.eps).sqrt()
        shift = ((new_mean - mean).abs() / stored).mean()
        rows.append(Norm(path, float(shift), float(((new_var + norm.eps).sqrt() / stored).mean())))
    return rows


def set_thresholds(model: nn.Module, where: str = "re:.*", **settings: Any) -> list[str]:
    """Change the thresholds of the swapped neurons of a model, without training; returns the paths changed.

    Args:
        where: a path, or ``"re:<regular expression>"`` for whole paths.
        settings: ``D``, ``v_threshold``, ``threshold_step``, ``thresholds`` (a list, or None to go back to even
            spacing) for MSF; ``v_threshold`` for PMSN; ``scale`` multiplies the first threshold of either.

    Raises:
        SwapError: no neuron of ours there, or none that has such a setting.
        TypeError, ValueError: a model that is none, an unknown setting, or a value that the neuron refuses; nothing is
            changed then.
    """
    require_built(model)
    if not settings or settings.keys() - {*THRESHOLDS[MSF], "scale"}:
        known = ", ".join((*THRESHOLDS[MSF], "scale"))
        raise TypeError(f"set_thresholds takes {known}; got {', '.join(settings) or 'nothing'}")
    nodes = {path: node for path, node in _nodes(model) if applies(where, path, node)}
    taking = {
        path: (node, has)
        for path, node in nodes.items()
        if settings.keys() <= {*(has := _thresholds(node)), "scale"}
    }
    if not taking:
        why = "a PMSN has v_threshold and scale only" if nodes else "print the plan for the paths"
        raise SwapError(f"no swapped neuron matches {where!r} and has {', '.join(settings)}: {why}")
    old = [
        (node, {name: _copied(_get(node, name)) for name in has if name != "thresholds"})
        for node, has in taking.values()
    ]
    lists = [(node, getattr(_held(node), "_list", None)) for node, _ in taking.values()]
    try:
        for node, _ in taking.values():
            for name, value in settings.items():
                if name == "scale":
                    _set(node, "v_threshold", _copied(_get(node, "v_threshold")) * float(value))
                else:
                    _set(node, name, value)
            if hasattr(node, "sync_settings"):
                node.sync_settings(torch.get_default_dtype())
            _held(node)._check()
    except Exception:
        for node, thresholds in lists:
            if getattr(_held(node), "_list", None) != thresholds:
                _set(node, "thresholds", thresholds)
        for node, values in old:
            for name, value in values.items():
                if getattr(_held(node), "_list", None) is None or name == "threshold_step":
                    _set(node, name, value)
        raise
    return list(taking)


def set_steps(
    model: nn.Module, T: int, example_input: Any = None, *, dt_scale: float | None = None
) -> list[str]:
    """Change the number of time steps of a trained model; returns what was set.

    Sets every whole number called ``T``, ``time_steps`` and the like that a module of the model keeps: models that
    repeat their input T times read it. A model without one follows its input [T, N, *]: there is nothing to set.

    Args:
        T: the new number of steps.
        example_input: run once without gradients; if the model cannot do it with this T (a layer whose weights belong
            to one T), all is put back and SwapError raised.
        dt_scale: for data at another sampling rate, a factor on the learned step size of every PMSN: half the step,
            twice the steps.

    Raises:
        SwapError: the model does not run with this T; or ``dt_scale`` for a model without PMSN.
        ValueError: T is no positive whole number.
        TypeError: a model that is none.
    """
    require_built(model)
    if isinstance(T, bool) or not isinstance(T, int) or T < 1:
        raise ValueError(f"T must be a positive whole number, got {T!r}")
    changed: list[tuple[str, Any, str, Any]] = []
    for path, module in model.named_modules():
        for name in STEPS:
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                changed.append((path, module, name, value))
    pmsns = [(path, node) for path, node in _nodes(model) if isinstance(_held(node), PMSN)]
    if dt_scale is not None and not pmsns:
        raise SwapError("dt_scale belongs to PMSN, and this model has none")
    scales = [
        (path, _held(node), "dt_scale", _held(node).dt_scale) for path, node in pmsns if dt_scale is not None
    ]
    for _, module, name, _ in changed:
        setattr(module, name, T)
    for _, held, name, _ in scales:
        setattr(held, name, dt_scale)
    if example_input is not None:
        try:
            _run(model, [example_input])
        except Exception as error:
            for _, owner, name, value in changed + scales:
                setattr(owner, name, value)
            raise SwapError(f"{type(model).__name__} does not run with T = {T}: {error}") from error
    return [f"{path}.{name}".lstrip(".") for path, _, name, _ in changed + scales]


# Running --------------------------------------------------------------------------------------------------------------


def _forward(model: nn.Module, batches: Iterable[Any], training: Iterable[nn.Module] = ()) -> None:
    """Every batch from rest, without gradients, in evaluation mode but for ``training``; inside :func:`undisturbed`."""
    model.eval()
    for module in training:
        module.train()
    some = False
    with torch.no_grad():
        for batch in batches:
            rest(model)
            model(*arguments(batch))
            some = True
    if not some:
        raise ValueError("no batch: give at least one input")


def _run(model: nn.Module, batches: Iterable[Any]) -> None:
    with undisturbed(model):
        _forward(model, batches)


def _order(model: nn.Module, batches: Sequence[Any], paths: Iterable[str]) -> list[str]:
    """The paths in the order of their first call."""
    order: dict[str, None] = {}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda m, a, path=path: order.setdefault(path))
        for path in paths
    ]
    try:
        _run(model, batches[:1])
    finally:
        for hook in hooks:
            hook.remove()
    missing = [path for path in paths if path not in order]
    if missing:
        raise ValueError(f"no batch reaches {', '.join(missing)}")
    return list(order)


def _inputs(model: nn.Module, batches: Iterable[Any], module: nn.Module) -> list[list[Tensor]]:
    """What reaches one neuron: its inputs, call by call, for every batch."""
    found: list[list[Tensor]] = []
    for batch in batches:
        calls: list[Tensor] = []
        found.append(calls)
        hook = module.register_forward_pre_hook(
            lambda m, args, calls=calls: calls.append(args[0].detach().clone())
        )
        try:
            _run(model, [batch])
        finally:
            hook.remove()
    return found


def _replay(module: nn.Module, batches: Iterable[Sequence[Tensor]]) -> float:
    """Mean output of one neuron on recorded inputs, from rest for every batch."""
    total, count = 0.0, 0
    with undisturbed(module), torch.no_grad():
        module.eval()
        for calls in batches:
            rest(module)
            for x in calls:
                s = output_of(module(x))
                total, count = total + float(s.sum(dtype=torch.float64)), count + s.numel()
    return total / max(count, 1)


def _search(
    rate: Callable[[float], float], wanted: float, start: float, before: float, factor: float, steps: int = 24
) -> float:
    """The threshold whose rate comes nearest to ``wanted``, by bisection of its logarithm: rates fall with it."""
    if before == wanted:
        return start
    low, high = (start, start * factor) if before > wanted else (start / factor, start)
    best, error = start, abs(before - wanted)
    for _ in range(steps):
        middle = math.sqrt(low * high)
        found = rate(middle)
        if abs(found - wanted) < error:
            best, error = middle, abs(found - wanted)
        if found == wanted:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    return best


def _clone(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.clone()


def _statistics(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean.clone(), norm.running_var.clone()


# Our neurons and their hosts' nodes -----------------------------------------------------------------------------------


def _nodes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Our neurons: a host's node around one, or a bare one, by path."""
    inside = set()
    for path, module in model.named_modules():
        if is_node(module):
            inside.add(module.neuron)
            yield path, module
        elif isinstance(module, Neuron) and module not in inside:
            yield path, module


def _node(model: nn.Module, path: str) -> Any:
    """The one node at or inside a site."""
    found = [node for _, node in _nodes(model.get_submodule(path))]
    if len(found) != 1:
        raise SwapError(
            f"{path} holds {len(found)} neurons of this package, not one: calibrate the swapped model"
        )
    if getattr(_held(found[0]), "_list", None) is not None:
        raise SwapError(
            f"{path} has an explicit list of thresholds, which no single number can scale: leave it out"
        )
    return found[0]


def _thresholds(node: Any) -> tuple[str, ...]:
    """The settings of its thresholds that a node has."""
    return next((names for kind, names in THRESHOLDS.items() if isinstance(_held(node), kind)), ())


def _held(node: Any) -> Any:
    return node if isinstance(node, Neuron) else node.neuron


def _owner(node: Any, name: str) -> Any:
    """Who keeps a setting: a node that hands it over at every call, or the held neuron."""
    return node if name in vars(node) or hasattr(type(node), name) else _held(node)


def _get(node: Any, name: str) -> Any:
    return getattr(_owner(node, name), name)


def _copied(value: Any) -> Any:
    """A number, or a tensor as it is now."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def _set(node: Any, name: str, value: Any) -> None:
    if name in ("D", "v_threshold") and getattr(_held(node), "_list", None) is not None:
        raise SwapError(f"this MSF has an explicit list of thresholds: give thresholds=[..], not {name}")
    owner = _owner(node, name)
    if isinstance(present := getattr(owner, name), Tensor):  # learned
        with torch.no_grad():
            present.copy_(torch.as_tensor(value))
    else:
        setattr(owner, name, value)
