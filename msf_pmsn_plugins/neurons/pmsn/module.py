"""PMSN as a module: parameters, checks, state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...lengths import last_valid
from ...settings import PMSNSettings
from ...surrogate import FireFunction, Surrogate
from ...tensors import PMSNState, PMSNWeights, state_dtype
from ...words import PMSN_HAS_NOT, teaching
from ..autograd import transformed, undisturbed
from ..base import (
    NOTHING,
    State,
    channel_shape,
    first_step,
    kind_of_step,
    number,
    paired_dtype,
    warn_of_others,
)
from ..computed import value_of
from ..layout import GradientLayout, owned, reshaped
from ..per_channel import PerChannel
from .discretise import INITS, discretise, eigensystem
from .op import Call, plan, run
from .reset import global_drive, hidden_states, parallel_reset
from .single import Single
from .step import BURSTS, RESET_MODES, pmsn_step
from .weights import Weights

__all__ = ["PARAMETERS", "PER_CHANNEL", "PMSN", "VARIANTS"]

PARAMETERS = ("log_dt", "log_A_real", "A_imag", "VinvB_real", "VinvB_imag", "CV_real", "CV_imag", "D")
PER_CHANNEL = ("log_dt", "D")  # the others are [channels, modes]


# Settings that few change, with what they are by default.
VARIANTS: dict[str, Any] = {
    "reset_mode": "floor",
    "burst": False,
    "coeff": 1.0,
    "residual": "float",
    "tied": False,
    "context": "local",
    "dt_scale": 1.0,
}


@teaching(PMSN_HAS_NOT)
class PMSN(PerChannel):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917).

    Parameters are learned per channel and shared over batch and positions: ``2 + 6 (compartments - 1)`` a channel.

    Args:
        channels: size of the channel axis, or None to take it from the first input (or a loaded state dict).
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [N, C, *]; a tuple of adjacent axes (heads and their
            width, say) counts as one axis of their product.
        v_threshold: volts.
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate` over ``v - v_threshold`` in volts, or a
            callable ``u -> spikes``. Default: triangle of half-width 1 V.
        init: ``"sequence"`` (S-MNIST, sequential CIFAR), ``"shd"`` or ``"imagenet"``, as published.
        reset_mode: a key of :data:`~msf_pmsn_plugins.neurons.pmsn.RESET_MODES`; ``"floor"`` is published.
        burst: emit the number of removed thresholds instead of one spike. True reads the surrogate at the distance
            to the nearest threshold; ``"published"`` by the published sawtooth, which jumps.
        coeff: factor on the drive of the soma before the reset (published for sequential CIFAR by columns: 0.2).
        residual: ``"float"``, or ``"fixed"``: the residual is kept in steps of 2**-24 and the drive computed by the
            plain recurrence, so that every chunking of a sequence gives the same bits. On the torch backend this
            walks time step by step.
        tied: keep the hidden compartments as conjugate pairs, of which one half is computed: half the work and
            half the parameters of the modes. Needs an odd number of compartments.
        context: ``"local"``, or ``"global"``: the mean input over time drives the hidden compartments, the present
            input only the soma (our reading of the paper's global variant). Not causal: it takes whole sequences.
        dt_scale: factor on the learned step size, for data at another sampling rate: half the step, twice the
            steps. The time constants stay; the soma sums over steps, so give ``coeff`` the same factor to keep the
            spikes per second.
        backend: ``"auto"`` or the name of a backend.

    State: ``(r, z)``: the residual in units of the threshold [N, *] and the hidden state, complex [N, *, modes].

    Raises:
        ValueError: a parameter out of its range, unknown init, surrogate or backend; an input whose channel axis
            has another size.
    """

    state_names = ("r", "z")
    constants = ("v_threshold", "coeff", "dt_scale")
    sized_by = "D"
    called = "a PMSN"
    log_dt: nn.Parameter
    log_A_real: nn.Parameter
    A_imag: nn.Parameter
    VinvB_real: nn.Parameter
    VinvB_imag: nn.Parameter
    CV_real: nn.Parameter
    CV_imag: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate: str | Surrogate | FireFunction | None = None,
        init: str = "sequence",
        reset_mode: str = "floor",
        burst: bool | str = False,
        coeff: float = 1.0,
        residual: str = "float",
        tied: bool = False,
        context: str = "local",
        dt_scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(channels, channel_dim, backend)
        if not (type(compartments) is int and 2 <= compartments <= 17):
            raise ValueError(f"compartments must be an integer from 2 to 17, got {compartments!r}")
        if init not in INITS:
            raise ValueError(f"unknown init {init!r}; known: {', '.join(INITS)}")
        if tied and compartments % 2 == 0:
            raise ValueError(
                f"tied=True needs an odd number of compartments, so that the hidden ones pair up; got {compartments}"
            )
        self._kept_weights = Weights()
        self.compartments = compartments
        self.tied = bool(tied)
        self.v_threshold = v_threshold
        self.init = init
        self.reset_mode = reset_mode
        self.burst = burst
        self.coeff = coeff
        self.residual = residual
        self.context = context
        self.dt_scale = dt_scale
        self.surrogate = surrogate
        self._check()
        self._make_parameters()
        if channels is not None:
            self.materialize(channels)

    @property
    def modes(self) -> int:
        """Number of complex modes: the hidden compartments, or one of each tied pair."""
        return (self.compartments - 1) // (2 if self.tied else 1)

    def _check(self) -> None:
        """Raise on settings that cannot work; they may have been changed since construction."""
        for name in self.constants:
            value = number(name, getattr(self, name))
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        for name, known in (
            ("reset_mode", tuple(RESET_MODES)),
            ("burst", tuple(BURSTS)),
            ("residual", ("float", "fixed")),
            ("context", ("local", "global")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"unknown {name} {getattr(self, name)!r}; known: {', '.join(map(repr, known))}"
                )
        if self.burst and self.reset_mode not in ("floor", "serial"):
            raise ValueError(
                f"burst counts the thresholds that a reset removes, reset_mode={self.reset_mode!r} removes none: "
                "use 'floor' or 'serial'"
            )
        if self.residual == "fixed" and self.reset_mode != "floor":
            raise ValueError(f"residual='fixed' belongs to reset_mode='floor', got {self.reset_mode!r}")

    def settings(self) -> PMSNSettings:
        """What the op must know that is no tensor, as it is now, checked; made anew after a change."""
        return self._remembered("settings", self._make_settings)

    def _make_settings(self) -> PMSNSettings:
        self._check()
        named = self.surrogate if isinstance(self.surrogate, Surrogate) else Surrogate("triangle")
        return PMSNSettings(
            v_threshold=float(self.v_threshold),
            reset_mode=self.reset_mode,
            burst=BURSTS[self.burst],
            fixed=self.residual == "fixed",
            surrogate=named.name,
            width=named.width,
            keep_drive=False,
        )

    @property
    def _widths(self) -> dict[str, tuple[int, ...]]:
        return {name: () if name in PER_CHANNEL else (self.modes,) for name in PARAMETERS}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation: coupled compartments in their eigenbasis, random dt and direct gain."""
        init = INITS[self.init]
        # Ascending frequencies: of a tied pair the second half is the positive one.
        frequency, b, c = (
            part[-self.modes :] for part in eigensystem(self.compartments - 1, init.coupling, init.output)
        )
        low, high = math.log(init.dt_min), math.log(init.dt_max)
        self.log_dt.uniform_(low, high)
        self.D.copy_(init.gain(self.D.shape, dtype=self.D.dtype, device=self.D.device))
        self.log_A_real.fill_(math.log(0.5))
        self.A_imag.copy_(frequency.expand_as(self.A_imag))
        for name, value in (("VinvB", b), ("CV", c)):
            getattr(self, f"{name}_real").copy_(value.real.expand_as(self.A_imag))
            getattr(self, f"{name}_imag").copy_(value.imag.expand_as(self.A_imag))

    def variants(self) -> dict[str, Any]:
        """The settings of :data:`VARIANTS` as they are now."""
        return {name: getattr(self, name) for name in VARIANTS}

    def saved_settings(self) -> dict[str, Any]:
        # Plain numbers, which torch reads with weights_only=True.
        numbers = {name: float(getattr(self, name)) for name in ("coeff", "dt_scale")}
        return {"variants": self.variants() | numbers | {"compartments": self.compartments}}

    def compare_saved(self, prefix: str, saved: dict[str, Any], error_msgs: list[str]) -> None:
        trained = dict(saved.get("variants", ()))
        compartments, tied = trained.pop("compartments", None), trained.pop("tied", self.tied)
        if tied != self.tied:
            error_msgs.append(
                f"{prefix[:-1] or type(self).__name__}: these weights were trained with tied={tied}, this neuron has "
                f"tied={self.tied}, and a mode means something else there: build it with tied={tied}, "
                f"compartments={compartments}"
            )
        warn_of_others(self, prefix, trained)

    @torch.no_grad()
    def tie(self, tolerance: float = 0.0) -> PMSN:
        """This neuron with tied modes: a new one that computes the same with half the modes.

        Raises:
            ValueError: the modes are not conjugate pairs within ``tolerance``, relative to the largest entry.
        """
        self._require_channels("tie()")
        if self.tied:
            raise ValueError("the modes of this PMSN are tied already")
        pair = PMSN(
            self.channels,
            self.compartments,
            self.channel_dim,
            self.v_threshold,
            self.surrogate,
            self.init,
            **{**self.variants(), "tied": True},
            backend=self.backend,
        ).to(self.D.device, self.D.dtype)
        order = value_of(self, "A_imag").argsort(1)
        for name in PARAMETERS:
            value = value_of(self, name)
            if name not in PER_CHANNEL:
                value = value.gather(1, order)
                sign = -1 if name in ("A_imag", "VinvB_imag", "CV_imag") else 1
                apart = float((value - sign * value.flip(1)).abs().max() / value.abs().max().clamp(min=1e-30))
                if not apart <= tolerance:
                    raise ValueError(
                        f"the modes are not conjugate pairs: {name} is off by {apart:.3g} of its largest entry, "
                        f"tolerance {tolerance:g}. Keep them untied, or raise the tolerance"
                    )
                value = (value + sign * value.flip(1))[:, self.modes // 2 :] / 2
            getattr(pair, name).copy_(value)
        return pair

    def check_input(self, x: Tensor) -> Tensor:
        x = super().check_input(x)
        self._lanes(x)
        return x

    def _lanes(self, x: Tensor) -> tuple[int, int, int]:
        """:meth:`_count_lanes`, once for a shape."""
        return self._remembered(("lanes", x.shape), lambda: self._count_lanes(x))

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        dtype = state_dtype(x.dtype)
        return (x.shape, dtype), (x.shape + (self.modes,), paired_dtype(dtype))

    def _rest(self, x: Tensor) -> State:
        if self.context == "global":
            return self.initial_state(x)
        # In short sequences the hidden state is larger than all else: kernels need not read zeros.
        (r_shape, r_dtype), (z_shape, z_dtype) = self.state_spec(x)
        r = torch.zeros(r_shape, dtype=r_dtype, device=x.device)
        return r, torch.zeros((), dtype=z_dtype, device=x.device).expand(z_shape)

    def weights(self, dtype: torch.dtype = torch.float32) -> PMSNWeights:
        """``e, w`` (complex [channels, modes]) and ``d`` ([channels]) of the recurrence, in ``dtype``, yours to change.

        ``coeff`` is in ``w`` and ``d``; the second mode of a tied pair is in ``w``, twice the real part of the first.
        """
        return PMSNWeights(*(part.clone() for part in self._weights(dtype)))

    def _weights(self, dtype: torch.dtype, state: State | None = None) -> PMSNWeights:
        """:meth:`weights`, shared: with other calls, where nothing differs, and with the step that left ``state``."""
        self._require_channels("the weights")
        held: Any = self._parameters
        # A plain one costs no call: every step reads eight.
        parameters = [held[name] if name in held else value_of(self, name) for name in PARAMETERS]
        settings = (dtype, self.dt_scale, self.coeff, self.tied)
        return self._kept_weights.get(self._discretise, parameters, settings, state)

    def _discretise(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> PMSNWeights:
        log_dt, log_a, a_imag, b_re, b_im, c_re, c_im, d = (parameter.to(dtype) for parameter in parameters)
        if self.dt_scale != 1.0:
            log_dt = log_dt + math.log(self.dt_scale)
        e, w = discretise(log_dt, log_a, a_imag, b_re, b_im, c_re, c_im)
        factor = self.coeff * (2 if self.tied else 1)
        w, d = w if factor == 1 else factor * w, d if self.coeff == 1 else self.coeff * d
        return PMSNWeights(e.contiguous(), w.contiguous(), d.contiguous())

    def step_weights(self, x: Tensor, dtype: torch.dtype) -> PMSNWeights:
        """:meth:`weights` in shapes that broadcast against one step ``x`` [N, *], and its modes behind."""
        shape = channel_shape(self.channel_dim, x)
        e, w, d = self._weights(dtype)
        return PMSNWeights(e.reshape(*shape, self.modes), w.reshape(*shape, self.modes), d.reshape(shape))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        if self.context == "global":
            raise ValueError(
                "context='global' uses the mean input over all steps: there is no single step. "
                "Give whole sequences, or set context='local'"
            )
        x = self.check_input(x)
        before = PMSNState(*self.check_state(x, state))
        weights = self.step_weights(x, before.r.dtype)
        s, after, m = pmsn_step(x.to(before.r.dtype), before, weights, self.settings(), self.surrogate)
        return s.to(x.dtype), tuple(after), m

    def _begin(self, x_seq: Tensor, state: State | None) -> State:
        given, state = state, super()._begin(x_seq, state)
        # A whole sequence ends at rest again; what else comes in was left by a local neuron.
        if (
            self.context == "global"
            and given is not None
            and not torch.compiler.is_compiling()
            and any(map(torch.any, state))
        ):
            raise ValueError(
                "context='global' uses the mean input over all steps: a state cannot be carried into it. "
                "Give whole sequences with state=None, or set context='local'"
            )
        return state

    def _run(
        self,
        x_seq: Tensor,
        state: State,
        membrane: bool,
        lengths: Tensor | None,
        residuals: bool = False,
    ) -> tuple[Tensor, State, Tensor | None]:
        self.settings()  # first of all what is wrong with them
        kernel = self._has_kernel(self.surrogate)
        if self.context == "local" and not kernel:
            return self._loop(x_seq, state, membrane, lengths)
        if not (x_seq.requires_grad and torch.is_grad_enabled()) or transformed():
            return self._run_lanes(x_seq, state, membrane, lengths, residuals)
        layout = GradientLayout()
        s_seq, state, m_seq = self._run_lanes(layout.input(x_seq), state, membrane, lengths, residuals)
        return layout.output(s_seq), state, m_seq

    def _again(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None] | None:
        if len(state) != 2 or not undisturbed(x, *state):
            return None
        single = self.__dict__.get("_made", NOTHING).get(kind_of_step(x, membrane))
        r, z = state
        alike = single and r.shape == x.shape and r.dtype == x.dtype
        if (
            not alike
            or z.shape[:-1] != x.shape
            or z.shape[-1] != self.modes
            or z.dtype != paired_dtype(x.dtype)
        ):
            return None
        return self._by_single(single, x, state, membrane)

    def _by_single(
        self, single: Single, x: Tensor, state: State, membrane: bool
    ) -> tuple[Tensor, State, Tensor | None] | None:
        weights = self._weights(x.dtype, state)
        if not single.takes(weights):
            return None
        s, after, m = single(x, PMSNState(*state), weights, membrane)
        self._kept_weights.passed_on(weights, after.z)
        return s, tuple(after), m

    def _run_single(
        self, x: Tensor, state: State, membrane: bool
    ) -> tuple[Tensor, State, Tensor | None] | None:
        if x.dtype != state[0].dtype or self.context == "global" or not undisturbed(x, *state):
            return None
        self.settings()  # first of all what is wrong with them
        if not self._has_kernel(self.surrogate):
            return None

        def make() -> Any:
            call = self._call(x, membrane, False)
            return Single.of(x, self._lanes(x), self.modes, call) or False

        single = self._remembered(kind_of_step(x, membrane), make)
        return self._by_single(single, x, state, membrane) if single else None

    def _trajectory(
        self, x_seq: Tensor, state: State, lengths: Tensor | None, names: Sequence[str]
    ) -> tuple[Tensor, State, list[Tensor]]:
        if self.context == "global":
            raise ValueError(
                "context='global' uses the mean input over all steps: no state is left by one of them. "
                "Set context='local', or do not keep the states (store_v_seq, store_z_seq)"
            )
        self.settings()
        if not self._has_kernel(self.surrogate):
            return super()._trajectory(x_seq, state, lengths, names)
        s_seq, (r_seq, z), _m = self._run(x_seq, state, False, lengths, residuals=True)
        r = last_valid(state[0], r_seq, lengths)  # padded steps pass no gradient on
        kept = [r_seq if name == "r" else self._hidden(x_seq, state, lengths) for name in names]
        return s_seq, (r, z), kept

    def _call(self, x: Tensor, membrane: bool, residuals: bool) -> Call:
        return self._remembered(
            ("call", x.device.type, torch.is_grad_enabled(), membrane, residuals),
            lambda: plan(
                x,
                self.settings().but(keep_membrane=membrane, keep_residual=residuals),
                self.surrogate,
                self.backend,
            ),
        )

    def _hidden(self, x_seq: Tensor, state: State, lengths: Tensor | None) -> Tensor:
        """The hidden state after each step, complex [T, N, *, modes]."""
        (r, z), lanes = state, self._lanes(first_step(x_seq))
        z_seq = hidden_states(
            x_seq.to(r.dtype).reshape(len(x_seq), *lanes),
            z.reshape(*lanes, self.modes),
            self._weights(r.dtype, state).e,
            self._lane_lengths(x_seq, lengths),
            self.backend,
        )
        return z_seq.reshape(*x_seq.shape, self.modes)

    def _lane_lengths(self, x_seq: Tensor, lengths: Tensor | None) -> Tensor | None:
        """``lengths`` for each leading lane."""
        if lengths is None or not len(lengths):
            return None
        return lengths.repeat_interleave(self._lanes(first_step(x_seq))[0] // len(lengths))

    def _run_lanes(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None, residuals: bool
    ) -> tuple[Tensor, State, Tensor | None]:
        shape, dtype = x_seq.shape, state[0].dtype
        lanes = self._lanes(first_step(x_seq))
        lane_lengths = self._lane_lengths(x_seq, lengths)
        weights = self._weights(dtype, state)
        x_lanes = x_seq.reshape(shape[0], *lanes)
        if self.context == "global":
            drive = global_drive(x_lanes.to(dtype), weights, lane_lengths, self.backend).reshape(shape)
            s_seq, _r, m_seq = parallel_reset(
                drive,
                state[0],
                self.settings(),
                surrogate=self.surrogate,
                lengths=lengths,
                membrane=membrane,
                backend=self.backend,
            )
            return s_seq.to(x_seq.dtype), state, m_seq
        r, z = state
        call = self._call(x_seq, membrane, residuals)
        before = PMSNState(r.reshape(lanes), z.reshape(*lanes, self.modes))
        s_seq, _y_seq, m_seq, last = run(x_lanes, before, weights, lane_lengths, call)
        after = reshaped(last.r, shape if residuals else r.shape), reshaped(last.z, z.shape)
        self._kept_weights.passed_on(weights, after[1])
        return reshaped(s_seq, shape), after, owned(m_seq.reshape(shape)) if membrane else None

    def extra_repr(self) -> str:
        special = "".join(
            f"{name}={value!r}, " for name, value in self.variants().items() if value != VARIANTS[name]
        )
        return (
            f"channels={self.channels}, compartments={self.compartments}, channel_dim={self.channel_dim}, "
            f"v_threshold={self.v_threshold}, init={self.init!r}, {special}backend={self.backend!r}"
        )
