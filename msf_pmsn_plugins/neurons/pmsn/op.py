"""All steps of PMSN as one op of ``torch.library``: shapes, autograd, vmap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import backends
from ...settings import PMSNSettings, asks, flatten, restore, schema
from ...surrogate import FireFunction, Surrogate, slope_of
from ...tensors import PMSNGrads, PMSNState, PMSNWeights, Slopes
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
from ..layout import as_steps_of, laid_as
from ..slopes import in_parts
from .step import require_known, slope_argument

__all__ = ["pmsn"]


@torch.library.custom_op(
    "msf_pmsn_plugins::pmsn",
    mutates_args=(),
    schema=f"(Tensor x_seq, Tensor r, Tensor z, Tensor e, Tensor w, Tensor d, Tensor? lengths, "
    f"{schema(PMSNSettings)}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _pmsn_op(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    e: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    *flat: Any,
) -> Any:
    *values, backend = flat
    forward = backends.load(backend, "pmsn").pmsn_forward
    settings = restore(PMSNSettings, values)
    s_seq, y_seq, m_seq, state = forward(x_seq, PMSNState(r, z), PMSNWeights(e, w, d), lengths, settings)
    m_seq = m_seq.new_empty(0) if m_seq is y_seq else m_seq  # torch takes no output twice
    return s_seq, y_seq, m_seq, *state


@_pmsn_op.register_fake
def _(x_seq: Tensor, r: Tensor, z: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, keep_drive, keep_membrane, keep_residual, _state_grad, _backend = others
    y_seq, m_seq = (
        torch.empty_like(x_seq, dtype=r.dtype) if keep else r.new_empty(0)
        for keep in (keep_drive, keep_membrane)
    )
    r_last = r.new_empty((*x_seq.shape[:1], *r.shape) if keep_residual else r.shape)
    return torch.empty_like(x_seq), y_seq, m_seq, r_last, z.new_empty(z.shape)


@torch.library.custom_op(
    "msf_pmsn_plugins::pmsn_backward",
    mutates_args=(),
    schema=f"(Tensor? gs_seq, Tensor? gy_seq, Tensor? gm_seq, Tensor? gr, Tensor? gz, Tensor x_seq, Tensor y_seq, "
    f"Tensor r, Tensor z, Tensor e, Tensor w, Tensor d, Tensor? lengths, Tensor? slopes, "
    f"{schema(PMSNSettings)}, str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _pmsn_backward_op(*args: Any) -> Any:
    """Without ``state_grad`` the gradient of z, the largest tensor of short sequences, is empty."""
    *tensors_and_values, backend = args
    settings = restore(PMSNSettings, tensors_and_values[14:])
    gx, *others = _backward(*tensors_and_values[:14], settings, backend)
    return laid_as(gx, tensors_and_values[5]), *others


def _backward(*args: Any) -> Any:
    gs, gy, gm, gr, gz, x_seq, y_seq, r, z, e, w, d, lengths, total, settings, backend = args
    gx, state, weights = backends.load(backend, "pmsn").pmsn_backward(
        PMSNGrads(gs, gy, gm, gr, gz),
        x_seq,
        y_seq,
        PMSNState(r, z),
        PMSNWeights(e, w, d),
        lengths,
        None if total is None else Slopes(total),
        settings,
    )
    return gx, *state, *weights


@_pmsn_backward_op.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    x_seq, _y_seq, *inputs = args[5:12]
    gx, gr, gz, ge, gw, gd = (torch.empty_like(x_seq), *(p.new_empty(p.shape) for p in inputs))
    *_, state_grad, _backend = args
    return gx, gr, gz if state_grad else gz.new_empty(0), ge, gw, gd


for _op in (_pmsn_op, _pmsn_backward_op):
    _op.register_vmap(loop_vmap(_op))


class _PMSNFunction(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_seq: Tensor,
        r: Tensor,
        z: Tensor,
        e: Tensor,
        w: Tensor,
        d: Tensor,
        lengths: Tensor | None,
        call: tuple[Any, ...],
    ) -> Any:
        settings, backend, _surrogate = call
        if no_dispatch(x_seq, r, z, e, w, d, lengths):
            forward = backends.load(backend, "pmsn").pmsn_forward
            s_seq, y_seq, m_seq, state = forward(
                x_seq, PMSNState(r, z), PMSNWeights(e, w, d), lengths, settings
            )
            return s_seq, y_seq, m_seq, *state
        return _pmsn_op(x_seq, r, z, e, w, d, lengths, *flatten(settings), backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x_seq, r, z, e, w, d, lengths, ctx.call = inputs
        settings, _backend, surrogate = ctx.call
        _s_seq, y_seq, m_seq, r_last, _z = output
        ctx.save_for_backward(x_seq, y_seq, None if surrogate is None else m_seq, r, z, e, w, d, lengths)
        for kept, made in ((settings.keep_drive, y_seq), (settings.keep_membrane, m_seq)):
            if not kept:
                ctx.mark_non_differentiable(made)
        if settings.reset_mode != "cumulative":
            ctx.mark_non_differentiable(r_last)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any,
        gs_seq: Tensor | None,
        gy_seq: Tensor | None,
        gm_seq: Tensor | None,
        gr: Tensor | None,
        gz: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        x_seq, y_seq, m_seq, r, z, e, w, d, lengths = saved_tensors(ctx)
        settings, backend, surrogate = ctx.call
        settings = settings.but(state_grad=ctx.needs_input_grad[2])
        gz = None if gz is None else gz.resolve_conj()
        gy_seq = gy_seq if settings.keep_drive else None
        gm_seq = gm_seq if settings.keep_membrane else None
        if (
            settings.keep_residual and gr is not None
        ):  # mode "cumulative": the membranes, in units of the threshold
            gm_seq = gr / settings.v_threshold if gm_seq is None else gm_seq + gr / settings.v_threshold
            gr = None
        slopes = None
        if surrogate is not None and gs_seq is not None:
            slopes = torch.empty_like(m_seq)
            for m, part in in_parts(m_seq, slopes):
                part.copy_(slope_of(surrogate, slope_argument(m / settings.v_threshold, settings)))
        run: Any = _PMSNBackward.forward if no_autograd() else _PMSNBackward.apply
        tensors = (gs_seq, gy_seq, gm_seq, gr, gz, x_seq, y_seq, r, z, e, w, d, lengths, slopes)
        gx, gr, gz, ge, gw, gd = run(*tensors, (settings, backend))
        gr = gr if settings.reset_mode == "cumulative" else None
        return as_steps_of(gx, gs_seq), gr, gz if settings.state_grad else None, ge, gw, gd, None, None


def _compiled(
    x_seq: Tensor,
    r: Tensor,
    z: Tensor,
    e: Tensor,
    w: Tensor,
    d: Tensor,
    lengths: Tensor | None,
    *flat: Any,
) -> Any:
    """The Function with a call that is flat, as the graph of a compiler wants it."""
    *values, backend, surrogate, width = flat
    call = restore(PMSNSettings, values), backend, Surrogate(surrogate, width) if surrogate else None
    return _PMSNFunction.apply(x_seq, r, z, e, w, d, lengths, call)


_mark_compiled = marks_one_call(_compiled)


class _PMSNDirect(torch.autograd.Function):
    """The same in the old form, which torch calls at a third of the cost, where nothing transforms the call."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        output = _PMSNFunction.forward(*inputs)
        _PMSNFunction.setup_context(ctx, inputs, output)
        return output

    backward = _PMSNFunction.backward


class _PMSNBackward(NoSecondDerivative):
    # Named one by one: torch.compile would put its context among *args.
    @staticmethod
    def forward(
        gs: Tensor | None,
        gy: Tensor | None,
        gm: Tensor | None,
        gr: Tensor | None,
        gz: Tensor | None,
        x_seq: Tensor,
        y_seq: Tensor,
        r: Tensor,
        z: Tensor,
        e: Tensor,
        w: Tensor,
        d: Tensor,
        lengths: Tensor | None,
        slopes: Tensor | None,
        call: tuple[PMSNSettings, str],
    ) -> Any:
        settings, backend = call
        tensors = (gs, gy, gm, gr, gz, x_seq, y_seq, r, z, e, w, d, lengths, slopes)
        if no_dispatch(*tensors) and not batched(gs, gy, gm, gr, gz):
            return _backward(*tensors, settings, backend)
        return _pmsn_backward_op(*tensors, *flatten(settings), backend)


def pmsn(
    x_seq: Tensor,
    state: PMSNState,
    weights: PMSNWeights,
    settings: PMSNSettings = PMSNSettings(),  # noqa: B008  # immutable
    *,
    surrogate: FireFunction | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, Tensor | None, PMSNState]:
    """All steps of PMSN at once: a loop of :func:`~msf_pmsn_plugins.neurons.pmsn.pmsn_step`, as one op.

    Args:
        x_seq: input currents [T, L, C, K] (L leading lanes, C channels, K positions), of any float dtype; all else is
            float64 where they are, else float32.
        state: residual [L, C, K] in units of the threshold, which carries a gradient in mode ``"cumulative"`` only,
            and hidden state, complex [L, C, K, modes]; ``modes`` may be 0, a soma alone.
        weights: ``e, w`` complex [C, modes], ``d`` [C]; see :func:`~msf_pmsn_plugins.neurons.pmsn.discretise`.
        settings: see :class:`~msf_pmsn_plugins.settings.PMSNSettings`; ``keep_drive``, ``keep_membrane`` and
            ``keep_residual`` say what is returned.
        surrogate: a step ``u -> [u >= 0]`` of the volts above the threshold with a gradient of its own, in place of
            the one that the settings name.
        lengths: valid steps of each leading lane, int64 [L]; later ones emit 0 and leave the state as it is.
        backend: ``"auto"`` or a key of :data:`msf_pmsn_plugins.backends.BACKENDS`.

    Returns:
        spikes [T, L, C, K] in the dtype of ``x_seq``; the drive of the soma and its membrane before the reset (volts),
        or None; the last state.
    """
    call = plan(x_seq, settings, surrogate, backend)
    s_seq, y_seq, m_seq, state = run(x_seq, state, weights, lengths, call)
    return s_seq, y_seq if settings.keep_drive else None, m_seq if settings.keep_membrane else None, state


# Settings, the backend that runs them, where slopes come from.
Call = tuple[PMSNSettings, str, FireFunction | None]


def plan(x: Tensor, settings: PMSNSettings, surrogate: FireFunction | None, backend: str) -> Call:
    """What :func:`pmsn` decides before it computes; the same for all inputs on a device and in one grad mode."""
    require_known(settings)
    surrogate = getattr(surrogate, "for_kernels", surrogate)
    if isinstance(surrogate, Surrogate):
        settings, surrogate = settings.but(surrogate=surrogate.name, width=surrogate.width), None
    training = torch.is_grad_enabled()
    backend = backends.resolve(backend, x, "pmsn", asks(settings))
    if surrogate is None and not backends.knows(backend, "pmsn", f"surrogate {settings.surrogate!r}"):
        surrogate = Surrogate(settings.surrogate, settings.width)
    return (
        settings.but(
            surrogate=settings.surrogate if surrogate is None else "",
            # There the slopes of a surrogate without a name are read.
            keep_membrane=settings.keep_membrane or (training and surrogate is not None),
            keep_drive=settings.keep_drive or (training and backends.BACKENDS[backend].keeps_drive),
        ),
        backend,
        surrogate,
    )


def run(
    x_seq: Tensor, state: PMSNState, weights: PMSNWeights, lengths: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, Tensor, PMSNState]:
    """:func:`pmsn` after its plan; drive and membrane are empty where the plan does not keep them."""
    settings, shape = call[0], x_seq.shape
    inside = _channels_inside(x_seq)
    r, z = state
    if inside:
        x_seq, r, z = _inside(x_seq, 2), _inside(r, 1), _inside(z, 1)
        lengths = None if lengths is None else lengths.repeat_interleave(shape[3])
    function: Any = _PMSNFunction.apply if transformed() else _PMSNDirect.apply
    if torch.compiler.is_compiling():
        function = _run_compiled
    elif no_autograd():  # of a single step in a stream, autograd's bookkeeping would be a third
        function = _PMSNFunction.forward
    s_seq, y_seq, m_seq, r, z = function(x_seq, r, z, *weights, lengths, call)
    if inside:
        s_seq, z = _outside(s_seq, 2, shape), _outside(z, 1, shape)
        r = _outside(r, 2 if settings.keep_residual else 1, shape)
        y_seq = _outside(y_seq, 2, shape) if settings.keep_drive else y_seq
        m_seq = _outside(m_seq, 2, shape) if settings.keep_membrane else m_seq
    return s_seq, y_seq, m_seq, PMSNState(r, z)


def _run_compiled(*tensors_and_call: Any) -> Any:
    *tensors, (settings, backend, surrogate) = (
        tensors_and_call  # no surrogate but one with a name is compiled
    )
    named = ("", 0.0) if surrogate is None else (surrogate.name, surrogate.width)
    _mark_compiled()
    return _compiled(*tensors, *flatten(settings), backend, *named)


def _channels_inside(x_seq: Tensor) -> bool:
    """Whether the channels lie within the positions in memory (channels_last), and not around them."""
    c, k = x_seq.stride()[2:]
    return min(x_seq.shape[2:]) > 1 and type(c) is int and type(k) is int and 0 < c < k


# Channels that lie inside: positions become leading lanes, as views.


def _inside(x: Tensor, axis: int) -> Tensor:
    """[.., L, C, K, *] -> [.., L*K, C, 1, *], L on ``axis - 1``."""
    return x.movedim(axis + 1, axis).flatten(axis - 1, axis).unsqueeze(axis + 1)


def _outside(x: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_inside`, for a sequence of ``shape`` [T, L, C, K]."""
    return x.squeeze(axis + 1).unflatten(axis - 1, (shape[1], shape[3])).movedim(axis, axis + 1)
