"""All steps of MSF as one op of ``torch.library``: shapes, autograd, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import backends
from ...resets import RESETS
from ...settings import MSFSettings, MSFValues, asks, flatten, restore, schema
from ...surrogate import FireFunction, Surrogate
from ...tensors import MSFGrads, MSFParameters, Slopes, state_dtype
from ..autograd import (
    NoSecondDerivative,
    batched,
    loop_vmap,
    marks_one_call,
    no_autograd,
    no_dispatch,
    saved_tensors,
    transformed,
)
from ..layout import GradientLayout, as_steps_of, laid_as, memory_order, permuted
from ..slopes import FEW, in_parts, slopes_at

__all__ = ["msf"]


@torch.library.custom_op(
    "msf_pmsn_plugins::msf",
    mutates_args=(),
    schema=f"(Tensor x_seq, Tensor v, Tensor? rate_tensor, Tensor? threshold, Tensor? reset, Tensor? lengths, "
    f"{schema(MSFSettings)}, str backend) -> (Tensor, Tensor, Tensor)",
)
def _msf_op(
    x_seq: Tensor,
    v: Tensor,
    rate: Tensor | None,
    threshold: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    *flat: Any,
) -> Any:
    *values, backend = flat
    settings = restore(MSFSettings, values)
    return backends.load(backend, "msf").msf_forward(
        x_seq, v, MSFParameters(rate, threshold, reset), lengths, settings
    )


@_msf_op.register_fake
def _(x_seq: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep, _backend = others
    dtype = torch.uint8 if keep == "code" else v.dtype
    kept = x_seq.new_empty(0, dtype=dtype) if keep == "none" else torch.empty_like(x_seq, dtype=dtype)
    return torch.empty_like(x_seq), kept, torch.empty_like(v)


@torch.library.custom_op(
    "msf_pmsn_plugins::msf_backward",
    mutates_args=(),
    schema=f"(Tensor? gs_seq, Tensor? gm_seq, Tensor? gv, Tensor x_seq, Tensor kept, Tensor v, "
    f"Tensor? rate_tensor, Tensor? threshold, Tensor? reset, Tensor? lengths, Tensor? total, Tensor? first, "
    f"{schema(MSFSettings)}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _msf_backward_op(*args: Any) -> Any:
    *tensors_and_values, backend = args
    settings = restore(MSFSettings, tensors_and_values[12:])
    gx, gv, grads = _call_backward(*tensors_and_values[:12], settings, backend)
    gx = laid_as(gx, tensors_and_values[4])
    return gx, gv, *(gv.new_empty(0) if g is None else g for g in grads)


def _call_backward(*args: Any) -> tuple[Tensor, Tensor, MSFParameters]:
    gs, gm, gv, x_seq, kept, v, rate, threshold, reset, lengths, total, first, settings, backend = args
    return backends.load(backend, "msf").msf_backward(
        MSFGrads(gs, gm, gv),
        x_seq,
        kept,
        v,
        MSFParameters(rate, threshold, reset),
        lengths,
        None if total is None else Slopes(total, first),
        settings,
    )


@_msf_backward_op.register_fake
def _(gs: Any, gm: Any, gv: Any, x_seq: Tensor, kept: Tensor, v: Tensor, *others: Any) -> Any:
    gx = torch.empty_like(kept, dtype=x_seq.dtype)
    return (
        gx,
        torch.empty_like(v),
        *(v.new_empty(0) if parameter is None else torch.empty_like(parameter) for parameter in others[:3]),
    )


for _op in (_msf_op, _msf_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _MSFFunction(torch.autograd.Function):
    """Autograd for the op: ``register_autograd`` alone fails under torch.func.grad and lies under jvp."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor,
        v: Tensor,
        rate: Tensor | None,
        threshold: Tensor | None,
        reset: Tensor | None,
        lengths: Tensor | None,
        call: tuple[Any, ...],
    ) -> Any:
        settings, backend, _surrogate = call
        if no_dispatch(x_seq, v, rate, threshold, reset, lengths):
            forward = backends.load(backend, "msf").msf_forward
            return forward(x_seq, v, MSFParameters(rate, threshold, reset), lengths, settings)
        return _msf_op(x_seq, v, rate, threshold, reset, lengths, *flatten(settings), backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *_, ctx.call = inputs
        _save(ctx, inputs, output)

    @staticmethod
    def backward(
        ctx: Any, gs_seq: Tensor | None, gm_seq: Tensor | None, gv: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return *_differentiate(ctx, gs_seq, gm_seq, gv), None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward needs; of the others only the shapes."""
    x, v, rate, threshold, reset, lengths, (settings, *_) = inputs
    wants_v = rate is not None or settings.reset_delay or reset is not None
    kept_x, kept_v = None if rate is None else x, v if wants_v else None
    ctx.dtype = x.dtype
    ctx.save_for_backward(kept_x, output[1], kept_v, rate, threshold, reset, lengths)
    if settings.keep != "membrane":
        ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, gs_seq: Tensor | None, gm_seq: Tensor | None, gv: Tensor | None, single: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients to the input, the state and the three parameters; of a ``single`` step all are without time."""
    x_seq, kept, v, *parameters, lengths = saved_tensors(ctx)
    settings, backend, surrogate = ctx.call
    gm_seq = gm_seq if settings.keep == "membrane" else None
    given = gs_seq if gs_seq is not None else gm_seq if gm_seq is not None else gv
    if given is None:
        return (None,) * 5
    if single:
        x_seq, kept, gs_seq, gm_seq = (
            None if part is None else part.unsqueeze(0) for part in (x_seq, kept, gs_seq, gm_seq)
        )
    if v is None:
        v = given.new_empty((), dtype=state_dtype(ctx.dtype)).expand(kept.shape[1:])
    if x_seq is None:
        x_seq = given.new_empty((), dtype=ctx.dtype).expand(kept.shape) if gs_seq is None else gs_seq
    slopes: Slopes | tuple[None, None] = (None, None)
    if surrogate is not None:
        slopes = _slopes(kept, MSFParameters(*parameters), settings, surrogate)
    tensors = (gs_seq, gm_seq, gv, x_seq, kept, v, *parameters, lengths, *slopes)
    if no_autograd() and no_dispatch(*tensors) and not batched(gs_seq, gm_seq, gv):
        gx, gv, made = _call_backward(*tensors, settings, backend)
    else:
        gx, gv, *made = _MSFBackward.apply(*tensors, (settings, backend))
    grads = [None if p is None else g for p, g in zip(parameters, made, strict=True)]
    if single:  # lies as its membrane
        return gx.squeeze(0), gv, *grads
    return as_steps_of(gx, gs_seq if gs_seq is not None else gm_seq), gv, *grads


class _MSFDirect(torch.autograd.Function):
    """The same in the old form, which torch calls at a third of the cost, where nothing transforms the call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _MSFFunction.forward(*inputs)
        _MSFFunction.setup_context(ctx, inputs, output)
        return output

    backward = _MSFFunction.backward


class _MSFStep(torch.autograd.Function):
    """A single step [N, *], for a backend that is called without torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _one_step(*inputs)
        ctx.call = inputs[-1]
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(
        ctx: Any, gs: Tensor | None, gm: Tensor | None, gv: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return *_differentiate(ctx, gs, gm, gv, single=True), None, None


class Single:
    """Steps [N, *] of one shape, contiguous and without tensors of parameters, by a backend that has a way for them."""

    def __init__(self, call: Call, kernel: Any) -> None:
        self.settings, self.backend, self.surrogate = call
        self.kernel = kernel

    def __deepcopy__(self, memo: Any) -> bool:
        return False  # of a module that torch copies by its attributes: the addresses are ours

    @classmethod
    def of(cls, x: Tensor, call: Call) -> Single | None:
        """For steps like ``x`` if the backend has it."""
        settings, backend, _surrogate = call
        kind = getattr(backends.load(backend, "msf"), "MSFSingle", None)
        if kind is None or x.numel() == 0:
            return None
        return cls(call, kind(settings, tuple(x.shape), x.dtype))

    def __call__(self, x: Tensor, v: Tensor, membrane: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Counts, the membrane if asked for and the next state."""
        if not torch.is_grad_enabled():
            s, m, v = self.kernel.forward(x, v)
            return s, m if membrane else None, v
        if membrane:
            return _MSFSingle.apply(x, v, self, True)
        s, v = _MSFSingle.apply(x, v, self, False)
        return s, None, v

    def differentiate(self, grads: MSFGrads, kept: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients to the input and the state."""
        slopes: Slopes | tuple[None, None] = (None, None)
        if self.surrogate is not None:
            slopes = _slopes(kept.unsqueeze(0), MSFParameters(), self.settings, self.surrogate)
        if no_autograd() and no_dispatch(*grads, kept, v, *slopes) and not batched(*grads):
            return self.kernel.backward(grads, kept, v, *slopes)
        if v is None:
            given = next(g for g in grads if g is not None)
            v = given.new_empty(()).expand(kept.shape)
        kept, sequences = kept.unsqueeze(0), [None if g is None else g.unsqueeze(0) for g in grads[:2]]
        nothing = (None,) * 4
        gx, gv, *_ = _MSFBackward.apply(
            *sequences, grads.v, kept, kept, v, *nothing, *slopes, (self.settings, self.backend)
        )
        return gx.squeeze(0), gv


class _MSFSingle(torch.autograd.Function):
    """A call of :class:`Single`; what is no output is kept all the same, and passes the hooks of saved tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, single: Single, membrane: bool) -> Any:
        s, kept, v_last = single.kernel.forward(x, v)
        ctx.single = single
        ctx.save_for_backward(kept, v if single.settings.reset_delay else None)
        ctx.set_materialize_grads(False)
        return (s, kept, v_last) if membrane else (s, v_last)

    @staticmethod
    def backward(ctx: Any, gs: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        *gm, gv = others
        if gs is None and gv is None and not any(g is not None for g in gm):
            return None, None, None, None
        gx, gv = ctx.single.differentiate(MSFGrads(gs, gm[0] if gm else None, gv), *saved_tensors(ctx))
        return gx, gv, None, None


def _one_step(
    x: Tensor,
    v: Tensor,
    rate: Tensor | None,
    threshold: Tensor | None,
    reset: Tensor | None,
    lengths: None,
    call: Call,
) -> tuple[Tensor, Tensor, Tensor]:
    settings, backend, _surrogate = call
    parameters = MSFParameters(rate, threshold, reset)
    s_seq, kept, v = backends.load(backend, "msf").msf_forward(x.unsqueeze(0), v, parameters, None, settings)
    # Detached, they are no views, which could not be changed in place.
    return s_seq.squeeze(0).detach(), kept.squeeze(0).detach() if settings.keep != "none" else kept, v


class _MSFBackward(NoSecondDerivative):
    # Named one by one: torch.compile would put its context among *args.
    @staticmethod
    def forward(
        gs: Tensor | None,
        gm: Tensor | None,
        gv: Tensor | None,
        x_seq: Tensor,
        kept: Tensor,
        v: Tensor,
        rate: Tensor | None,
        threshold: Tensor | None,
        reset: Tensor | None,
        lengths: Tensor | None,
        total: Tensor | None,
        first: Tensor | None,
        call: tuple[MSFSettings, str],
    ) -> Any:
        settings, backend = call
        tensors = (gs, gm, gv, x_seq, kept, v, rate, threshold, reset, lengths, total, first)
        return _msf_backward_op(*tensors, *flatten(settings), backend)


def _compiled(
    x_seq: Tensor,
    v: Tensor,
    rate: Tensor | None,
    threshold: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
    *flat: Any,
) -> Any:
    """The Function with a call that is flat, as the graph of a compiler wants it."""
    *values, backend, surrogate, width = flat
    call = restore(MSFSettings, values), backend, Surrogate(surrogate, width) if surrogate else None
    return _MSFFunction.apply(x_seq, v, rate, threshold, reset, lengths, call)


_mark_compiled = marks_one_call(_compiled)


def _slopes(
    kept: Tensor, parameters: MSFParameters, settings: MSFSettings, surrogate: FireFunction
) -> Slopes:
    """What a surrogate without a name gives at all membranes."""
    thresholds = MSFValues(settings, parameters).thresholds
    attached = RESETS[settings.reset_mode].looks_at_first and not settings.detach_reset
    looks_at_first = attached and len(thresholds) > 1
    if kept.numel() <= FEW:
        slope, *others = slopes_at(surrogate, kept, thresholds)
        return Slopes(sum(others, slope), slope if looks_at_first else None)
    total, first = torch.empty_like(kept), torch.empty_like(kept) if looks_at_first else None
    tensors = (kept, total) if first is None else (kept, total, first)
    for m, *made in in_parts(*tensors, by_step=parameters.threshold is not None):
        slopes = iter(slopes_at(surrogate, m, thresholds))
        made[-1].copy_(next(slopes))
        if first is not None:
            made[0].copy_(made[-1])
        for slope in slopes:
            made[0].add_(slope)
    return Slopes(total, first)


def _keep(settings: MSFSettings, parameters: MSFParameters, membrane: bool) -> str:
    """What the forward leaves for the backward: nothing, one byte an element, or membranes."""
    if membrane:
        return "membrane"
    if not torch.is_grad_enabled():
        return "none"
    # A byte holds in how many windows of the rectangle the membrane lies, and whether it fired.
    detached = settings.detach_reset or settings.reset_mode == "none"
    fits = settings.surrogate == "rectangular" and detached and len(settings.thresholds) <= 127
    return "code" if fits and parameters == (None, None, None) else "membrane"


def msf(
    x_seq: Tensor,
    v: Tensor,
    settings: MSFSettings,
    parameters: MSFParameters = MSFParameters(),  # noqa: B008  # immutable
    *,
    surrogate: FireFunction | None = None,
    lengths: Tensor | None = None,
    membrane: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor]:
    """All steps of MSF at once: a loop of :func:`~msf_pmsn_plugins.neurons.msf.msf_step`, as one op.

    Args:
        x_seq: input currents [T, N, *], of any float dtype.
        v: state [N, *], float64 for a float64 ``x_seq``, else float32: the membrane after its reset, or before it
            with a delayed one.
        settings: see :class:`~msf_pmsn_plugins.settings.MSFSettings`; ``keep`` is chosen here.
        parameters: what is a tensor that broadcasts against one step [N, *], and may be learned.
        surrogate: a step ``u -> [u >= 0]`` with a gradient of its own, in place of the one that the settings name.
        lengths: valid steps of each sample, int64 [N]; later ones emit 0 and leave the state as it is.
        membrane: return the membranes. Without them, training with the rectangle keeps one byte an element.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        counts [T, N, *] in the dtype of ``x_seq``; in that of ``v`` membranes before reset [T, N, *] or None, and the
        last state [N, *].
    """
    call = plan(x_seq, settings, parameters, surrogate, membrane, backend)
    return run(x_seq, v, parameters, lengths, call, membrane)


# Settings, the backend that runs them, where slopes come from.
Call = tuple[MSFSettings, str, FireFunction | None]


def plan(
    x: Tensor,
    settings: MSFSettings,
    parameters: MSFParameters,
    surrogate: FireFunction | None,
    membrane: bool,
    backend: str,
) -> Call:
    """What :func:`msf` decides before it computes; the same for all inputs on a device and in one grad mode."""
    if settings.reset_delay and not settings.detach_reset:
        raise ValueError("a delayed reset passes no gradient: set detach_reset=True or reset_delay=False")
    surrogate = getattr(surrogate, "for_kernels", surrogate)
    if isinstance(surrogate, Surrogate):
        settings, surrogate = settings.but(surrogate=surrogate.name, width=surrogate.width), None
    backend = backends.resolve(backend, x, "msf", asks(settings, parameters))
    if surrogate is None and not backends.knows(backend, "msf", f"surrogate {settings.surrogate!r}"):
        surrogate = Surrogate(settings.surrogate, settings.width)
    if surrogate is not None:
        settings = settings.but(surrogate="")
    return settings.but(keep=_keep(settings, parameters, membrane)), backend, surrogate


def run_step(
    x: Tensor, v: Tensor, parameters: MSFParameters, call: Call, membrane: bool
) -> tuple[Tensor, Tensor | None, Tensor] | None:
    """:func:`run` for a single step [N, *], if nobody would miss torch's dispatcher; else None."""
    if not x.is_contiguous() or not no_dispatch(x, v, *parameters):
        return None
    function: Any = _MSFStep.apply if torch.is_grad_enabled() else _one_step
    s, m, v = function(x, v, *parameters, None, call)
    return s, m if membrane else None, v


def run(
    x_seq: Tensor,
    v: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    call: Call,
    membrane: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """:func:`msf` after its plan."""
    order = memory_order(x_seq, 2)
    if order is not None:
        return _run_in_order(order, x_seq, v, parameters, lengths, call, membrane)
    function: Any = _MSFFunction.apply if transformed() else _MSFDirect.apply
    if torch.compiler.is_compiling():
        function = _run_compiled
    elif no_autograd():  # of a single step in a stream, autograd's bookkeeping would be a third
        function = _MSFFunction.forward
    s_seq, m_seq, v = function(x_seq, v, *parameters, lengths, call)
    return s_seq, m_seq if membrane else None, v


def _run_compiled(*tensors_and_call: Any) -> Any:
    *tensors, (settings, backend, surrogate) = (
        tensors_and_call  # no surrogate but one with a name is compiled
    )
    named = ("", 0.0) if surrogate is None else (surrogate.name, surrogate.width)
    _mark_compiled()
    return _compiled(*tensors, *flatten(settings), backend, *named)


def _run_in_order(
    order: tuple[int, ...],
    x_seq: Tensor,
    v: Tensor,
    parameters: MSFParameters,
    lengths: Tensor | None,
    call: Call,
    membrane: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """:func:`run` with the axes in the order of memory."""
    layout = None if no_autograd() or transformed() else GradientLayout()
    x_seq = x_seq if layout is None else layout.input(x_seq)
    parameters = MSFParameters(*(_along(p, order) for p in parameters))
    s_seq, m_seq, v = run(permuted(x_seq, order), permuted(v, order), parameters, lengths, call, membrane)
    s_seq, v = permuted(s_seq, order, back=True), permuted(v, order, back=True)
    s_seq = s_seq if layout is None else layout.output(s_seq)
    return s_seq, None if m_seq is None else permuted(m_seq, order, back=True), v


def _along(parameter: Tensor | None, order: tuple[int, ...]) -> Tensor | None:
    """A tensor that broadcasts against one step, against one step in another order of axes."""
    if parameter is None or parameter.dim() == 0:
        return parameter
    missing = len(order) - 1 - parameter.dim()
    return permuted(parameter.reshape(*[1] * missing, *parameter.shape), order)
