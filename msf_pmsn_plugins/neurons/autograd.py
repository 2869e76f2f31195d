"""What the neurons need of torch's machinery: autograd, dispatch, vmap."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode, _push_mode

__all__ = [
    "NoSecondDerivative",
    "Recomputation",
    "batched",
    "guarded",
    "loop_vmap",
    "marks_one_call",
    "no_autograd",
    "no_dispatch",
    "packed_by_hooks",
    "recomputation",
    "refuse_export",
    "saved_tensors",
    "transformed",
    "uncounted",
    "undisturbed",
    "usable",
]


class NoSecondDerivative(torch.autograd.Function):
    """The backward of a neuron as a function of its own: a second derivative raises instead of being zero."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "a spiking neuron has no second derivative: its gradient comes from a surrogate. Differentiate once, or "
            "use a loop of step() with a surrogate callable that is differentiable twice"
        )


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What a neuron kept for its backward; where that is gone, an error that names the reset that was forgotten."""
    if torch.compiler.is_compiling():
        return ctx.saved_tensors
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise RuntimeError(
            "backward() has freed what this neuron kept: its state carries the graph of an earlier call. Bring the net "
            "to rest between batches (SpikingJelly: functional.reset_net(net); snnTorch: "
            "msf_pmsn_plugins.snntorch.reset(net)), or cut the graph there (functional.detach_net(net), "
            "msf_pmsn_plugins.snntorch.detach(net)). To go through one graph twice: backward(retain_graph=True)"
        ) from error


def packed_by_hooks() -> bool:
    """True where what autograd keeps goes through hooks, as under checkpointing; torch before 2.8 cannot tell."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None


class _Guarded(torch.autograd.Function):
    """The identity of all that a call returns, which knows whether a backward pass has freed what lies behind it."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(tensors[0])
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)  # views could not be changed in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        saved_tensors(ctx)
        return grads


def guarded(s: Tensor, state: tuple[Tensor, ...], m: Tensor | None) -> Any:
    """Spikes, state and membranes of a loop of torch's own operations, behind which a forgotten reset is named.

    Backends name it themselves.
    """
    if transformed() or not any(part.requires_grad for part in state):
        return s, state, m
    given = (*state, s) if m is None else (*state, s, m)
    parts = _Guarded.apply(*given)
    n = len(state)
    return parts[n], parts[:n], None if m is None else parts[n + 1]


class Recomputation:
    """One forward pass that ``torch.utils.checkpoint`` makes again; it is told from others by identity."""


def recomputation(exact: str = "") -> Recomputation | None:
    """The forward pass that ``torch.utils.checkpoint`` makes again during this backward pass, or None.

    ``exact`` names a module that, between it and us, brings back the states that the first time started from.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return None
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name == exact:
            return None
        if name == "torch.utils.checkpoint":
            # Kept in the frame and with it: an id of the frame would come back for another one.
            return frame.f_locals.setdefault("_msf_pmsn_plugins_recomputation", Recomputation())
        frame = frame.f_back  # type: ignore[assignment]
    return None


def refuse_export(node: str, sequences: str) -> None:
    """Raise where torch.export or an ONNX exporter would make a program of a call whose state ``node`` keeps inside.

    ``sequences`` says in the host's words how whole sequences start at rest. Torch
    before 2.9 cannot always tell an export from a compilation: there it may pass.
    """
    if torch.compiler.is_compiling():
        exporting = _is_exporting()
    else:  # the older ONNX exporter; other tracers of TorchScript, such as fvcore's, are welcome
        exporting = torch._C._is_tracing() and torch.onnx.is_in_onnx_export()
    if exporting:
        raise RuntimeError(
            f"{node} keeps its state inside, and an exported program has no memory: it would start every call from the "
            "state that the node has now. Export one step with the states in and out, "
            f"msf_pmsn_plugins.export.Streaming(net), or whole sequences from rest: {sequences}"
        )


# New in torch 2.7.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def usable(value: Any) -> Any:
    """``value``; of a tensor that inference mode left, and autograd refuses, a copy."""
    if torch.compiler.is_compiling() or not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value


def transformed() -> bool:
    """True where torch compiles, traces or transforms what is called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


def no_autograd() -> bool:
    """True where no derivative of any kind can be asked for: an op may then be called without its Function."""
    return not (torch.is_grad_enabled() or transformed())


def no_dispatch(*tensors: Tensor | None) -> bool:
    """True where nobody would see the call of an op: a backend may then be called without torch's dispatcher.

    Modes (counters, fake tensors), profilers, transforms and subclasses of Tensor must go on seeing it.
    """
    return not (
        transformed()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled()
    ) and _PLAIN.issuperset(map(type, tensors))


def batched(*grads: Tensor | None) -> bool:
    """True where torch asks for the gradients of several outputs at once, by ``is_grads_batched`` or ``vectorize``.

    That is an older vmap than that of torch.func, which :func:`transformed` does not see: there the op, not a backend,
    takes one after the other.
    """
    return any(g is not None and _is_batched(g) for g in grads)


_is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


@contextmanager
def uncounted() -> Iterator[None]:
    """Out of sight of counters and profilers, for what is no operation of the model; fake tensors stay fake."""
    compiling = torch.compiler.is_compiling()
    stack = [] if compiling else _get_current_dispatch_mode_stack()
    # Torch's own modes have a key and lie below all others.
    popped = [_pop_mode() for mode in stack if getattr(mode, "_mode_key", None) is None]
    try:
        yield
    finally:
        for mode in reversed(popped):
            _push_mode(mode)


def undisturbed(*tensors: Any) -> bool:
    """:func:`no_dispatch` for plain contiguous tensors on the CPU, of which nothing is known: else False."""
    if torch.compiler.is_compiling():
        return False
    for t in tensors:
        if type(t) is not Tensor or not (t.is_cpu and t.is_contiguous()) or t.is_neg() or t.is_conj():
            return False
        if t.is_inference() and not torch.is_inference_mode_enabled():  # autograd would refuse it
            return False
    return no_dispatch()


def marks_one_call(function: Callable[..., Any]) -> Callable[[], bool]:
    """What, called where torch.compile traces, makes it leave ``function`` in its graph as one call.

    Behind the tracer autograd and vmap take such a function apart, as in eager mode.
    """

    def mark() -> bool:
        torch.compiler.allow_in_graph(function)  # at import this would load the compiler, which takes seconds
        return True

    mark._dynamo_marked_constant = True  # type: ignore[attr-defined]  # run by the tracer, as is
    return mark


_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def loop_vmap(op: Any) -> Callable[..., tuple[Any, Any]]:
    """A vmap rule for a custom op: one call per sample of the mapped axis, results stacked in front."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        calls = []
        for i in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)  # a list of numbers has a list of Nones for its axis
            calls.append(op(*(a.select(axis, i) if isinstance(axis, int) else a for a, axis in pairs)))
        outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
        return outputs, tuple(0 for _ in outputs)

    return rule
