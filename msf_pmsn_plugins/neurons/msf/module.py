"""MSF as a module: parameters, checks, state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ... import backends
from ...charges import CHARGES
from ...resets import RESETS
from ...settings import MSFSettings
from ...surrogate import FireFunction, Surrogate, as_surrogate
from ...tensors import MSFParameters, state_dtype
from ...words import teaching
from ..autograd import undisturbed
from ..base import (
    NOTHING,
    Neuron,
    State,
    broadcasts,
    channel_shape,
    first_step,
    kind_of_step,
    number,
    warn_of_others,
)
from ..computed import value_of
from .op import Call, Single, plan, run, run_step
from .step import after_reset, msf_step

__all__ = ["MSF"]

NUMBERS = ("v_threshold", "reset_step", "_decay")  # or tensors that broadcast against one step
LEARNED = (*NUMBERS, "decay_logit", "w")  # what may be learned


@teaching()
class MSF(Neuron):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155).

    Emits integer counts 0..D as floats. D = 1 is LIF; ``decay=0`` is a quantized ReLU.

    Args:
        D: number of thresholds.
        decay: factor on the membrane per step (charge ``"decay"``), in [0, 1]. With ``learn_decay`` the start value,
            in (0, 1).
        input_scale: factor on the input (charge ``"decay"``).
        v_threshold: first threshold, volts.
        threshold_step: spacing of the thresholds, volts.
        v_reset: potential after a hard reset, volts.
        reset_mode: ``"hard"`` (published), ``"soft"`` (subtracts ``reset_step`` per spike) or ``"none"``.
        detach_reset: no gradient through the reset (published).
        surrogate: a name, a :class:`~msf_pmsn_plugins.surrogate.Surrogate`, or a callable ``u -> spikes``. Default:
            rectangular of half-width ``threshold_step / 2``; for an explicit list, half its smallest gap.
        charge: a key of :data:`~msf_pmsn_plugins.charges.CHARGES`, or a pair of keys for training and evaluation.
        tau: time constant in steps, for the charges that name it; greater than 1.
        w: start value of the learned ``w``, ``q = sigmoid(w)``, for the charges that name it.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``v_threshold`` and
            ``threshold_step``. A reset looks at the first.
        learn_decay: make the decay a parameter, ``decay = sigmoid(decay_logit)``, which keeps it in (0, 1).
        learn_threshold: make ``v_threshold`` a parameter; the spacing stays.
        reset_step: what a soft reset subtracts per spike, volts; None is ``v_threshold``.
        reset_delay: reset at the next step, as snnTorch does; the state is then the membrane before its reset. A soft
            one subtracts from the charged membrane, undecayed. Detached only.
        retake: a soft reset that is not delayed takes what the state still fires first, undecayed, as snnTorch does.
            With numbers that are learned it walks step by step.
        channel_dim: where the channels of numbers per channel lie in the per-step tensor [N, C, *].
        backend: ``"auto"`` or the name of a backend.

    ``decay``, ``v_threshold`` and ``reset_step`` are numbers, or tensors: one number for each channel [C], or anything
    of two axes and more that broadcasts against one step [N, *]. A ``nn.Parameter`` is learned.

    State: ``(v,)``, the membrane after reset, [N, *], float32 (float64 for float64 input).

    Raises:
        ValueError: a parameter out of its range, unknown charge, reset, surrogate or backend.
    """

    rests_uniformly = True
    decay_logit: nn.Parameter | None
    v_threshold: float | Tensor
    reset_step: float | Tensor | None

    def __init__(
        self,
        D: int = 4,
        decay: float | Tensor = 0.25,
        input_scale: float = 1.0,
        v_threshold: float | Tensor = 1.0,
        threshold_step: float = 1.0,
        v_reset: float = 0.0,
        reset_mode: str = "hard",
        detach_reset: bool = True,
        surrogate: str | Surrogate | FireFunction | None = None,
        charge: str | tuple[str, str] = "decay",
        tau: float | None = None,
        w: float | Tensor | None = None,
        thresholds: Sequence[float] | None = None,
        learn_decay: bool = False,
        learn_threshold: bool = False,
        reset_step: float | Tensor | None = None,
        reset_delay: bool = False,
        retake: bool = False,
        channel_dim: int | Sequence[int] = 1,
        backend: str = "auto",
    ) -> None:
        super().__init__(backend)
        self.D = D
        self.threshold_step = threshold_step
        self.channel_dim = channel_dim
        self.reset_step = reset_step
        self._list: tuple[float, ...] | None = None
        if thresholds is None:
            self.v_threshold = _start_threshold(v_threshold) if learn_threshold else v_threshold
        elif learn_threshold:
            raise ValueError(
                "learn_threshold moves evenly spaced thresholds: leave out the explicit list, give D and threshold_step"
            )
        else:
            self.thresholds = thresholds
        self._take_charge(charge, tau, w)
        self.register_parameter("decay_logit", None)
        if learn_decay:
            if self.charge != ("decay", "decay"):
                raise ValueError(f"learn_decay belongs to charge='decay', got charge={charge!r}")
            self.decay_logit = nn.Parameter(_logit(decay))
        else:
            self.decay = decay
        self.input_scale = input_scale
        self.v_reset = v_reset
        self.reset_mode = reset_mode
        self.reset_delay = reset_delay
        self.retake = retake
        self.detach_reset = detach_reset
        self.surrogate = surrogate
        self._check()

    constants = ("tau", "input_scale", "threshold_step", "v_reset")

    def __setattr__(self, name: str, value: Any) -> None:
        # A number and a tensor may take each other's place; a constant tensor becomes a buffer.
        if name in NUMBERS and name not in self._parameters and not isinstance(value, nn.Parameter):
            computed = is_parametrized(self, name) or f"{name}_orig" in self._parameters
            if computed and not isinstance(value, Tensor):
                self.overwrite(name, torch.tensor(number(name, value), dtype=torch.float64, device="cpu"))
                return
            if is_parametrized(self, name):
                super().__setattr__(name, value)
                return
            self._forget(name)
            # One that others learn (of a replica, a pruning) is a plain attribute: a copy would learn nothing.
            made = isinstance(value, Tensor) and (value.requires_grad or computed)
            if isinstance(value, Tensor) and not made:
                self.register_buffer(name, value.detach().clone())
                self.__dict__.pop("_made", None)
                return
        super().__setattr__(name, value)

    def _take_charge(
        self, charge: str | tuple[str, str], tau: float | None, w: float | Tensor | None
    ) -> None:
        self.charge = (charge, charge) if isinstance(charge, str) else tuple(charge)
        if len(self.charge) != 2:
            raise ValueError(f"charge is a key or a pair of keys (training, evaluation), got {charge!r}")
        for name in self.charge:
            if name not in CHARGES:
                raise ValueError(f"unknown charge {name!r}; known: {', '.join(CHARGES)}")
        self.tau = tau
        rates = {CHARGES[name].rate for name in self.charge}
        if "tau" not in rates and tau is not None:
            other = {"decay": ": say decay=1 - 1/tau", "w": ": say w=-log(tau - 1)"}.get(
                next(iter(rates)), ""
            )
            raise ValueError(f"charge {self.charge[0]!r} has no tau, got tau={tau!r}{other}")
        if "w" in rates:
            if w is None:
                raise ValueError(f"charge {self.charge[0]!r} needs w")
            learned = w.requires_grad if isinstance(w, nn.Parameter) else True
            w = w if isinstance(w, Tensor) else torch.tensor(float(w))
            self.w = nn.Parameter(w.detach().clone(), requires_grad=learned)

    @property
    def decay(self) -> float | Tensor:
        """The decay; of a learned one its present value. Assign a number (learned: or [C]) to change it."""
        logit = value_of(self, "decay_logit")
        return value_of(self, "_decay") if logit is None else logit.sigmoid()

    @decay.setter
    def decay(self, value: float | Tensor) -> None:
        if self.decay_logit is not None:
            # In double, as the logit of a half's rounds again.
            self.overwrite("decay_logit", _logit(torch.as_tensor(value, dtype=torch.float64)))
        else:
            several = isinstance(value, Tensor) and (value.dim() > 0 or value.requires_grad)
            self._decay = value if several else number("decay", value)

    @torch.no_grad()
    def overwrite(self, name: str, value: Tensor) -> None:
        """Give the learned ``name`` another value: in place, or through its parametrisation.

        Raises:
            RuntimeError: it is computed from something else, such as ``{name}_orig`` of a pruning.
            ValueError: a value of another shape.
        """
        parametrised = is_parametrized(self, name)
        now = getattr(self, name) if parametrised else self._parameters.get(name)
        if now is None:
            raise RuntimeError(
                f"{name} of this {type(self).__name__} is computed from other tensors (pruned, or a replica's): "
                "assign to those"
            )
        if value.numel() != 1 and not broadcasts(value, now):
            raise ValueError(
                f"{name} of this {type(self).__name__} is learned in the shape {tuple(now.shape)}, got "
                f"{tuple(value.shape)}: assign one number, or that shape"
            )
        value = value.to(now).reshape(() if value.numel() == 1 else value.shape).expand_as(now)
        if parametrised:
            setattr(self, name, value)
        else:
            now.copy_(value)

    def _forget(self, name: str) -> None:
        for held in (self._buffers, self.__dict__):
            held.pop(name, None)

    @property
    def surrogate(self) -> Surrogate | FireFunction:
        """The surrogate; by default the rectangle of half-width h/2, the narrowest whose sum over the thresholds
        is flat.
        """
        if self._surrogate is None:
            gaps = [b - a for a, b in itertools.pairwise(self._list or ())]
            return Surrogate("rectangular", min(gaps, default=float(self.threshold_step)) / 2)
        return self._surrogate

    @surrogate.setter
    def surrogate(self, value: str | Surrogate | FireFunction | None) -> None:
        self._keep_surrogate(None if value is None else as_surrogate(value))

    @property
    def thresholds(self) -> list[float]:
        """The thresholds in volts: the explicit list, or ``v_threshold + d * threshold_step``, computed in double.

        They are rounded once, to the dtype of the state. Assign a list to replace ``D``, ``v_threshold`` and the
        spacing; assign None to go back to them.
        """
        if self._list is not None:
            return list(self._list)
        if isinstance(self.v_threshold, Tensor) and self.v_threshold.numel() != 1:
            raise ValueError(
                f"this MSF has {self.v_threshold.numel()} first thresholds, there is no one list: see v_threshold"
            )
        first = value_of(self, "v_threshold")
        first = first.item() if isinstance(first, Tensor) else float(first)
        return [first + d * float(self.threshold_step) for d in range(self.D)]

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        if isinstance(getattr(self, "v_threshold", None), Tensor):
            raise ValueError("the first threshold is a tensor here: assign to v_threshold")
        if values is None:
            self._list = None
            return
        if (
            not isinstance(values, Iterable)
            or isinstance(values, (str, bytes))
            or getattr(values, "ndim", 1) != 1
        ):
            raise TypeError(
                f"thresholds must be a list of volts, got {values!r}: D is how many, threshold_step apart"
            )
        numbers = tuple(number("thresholds", value) for value in values)
        if not numbers or any(b <= a for a, b in itertools.pairwise(numbers)):
            raise ValueError(f"thresholds must be strictly increasing and not empty, got {list(numbers)}")
        self._list = numbers
        self.D, self.v_threshold = len(numbers), numbers[0]

    def _check(self) -> None:
        """Raise ValueError on settings that cannot work; they may have been changed since construction."""
        if not (isinstance(self.D, int) and not isinstance(self.D, bool) and self.D >= 1):
            raise ValueError(f"D, the number of thresholds, must be an integer >= 1, got {self.D!r}")
        if self.decay_logit is None:
            self._check_decay()
        leaks_by_tau = any(CHARGES[name].rate == "tau" for name in self.charge)
        if leaks_by_tau and not (self.tau is not None and number("tau", self.tau) > 1):
            raise ValueError(f"charge {self.charge[0]!r} needs a finite tau > 1, got {self.tau!r}")
        for name in ("input_scale", "v_threshold", "threshold_step", "v_reset", "reset_step"):
            value = getattr(self, name)
            if not (isinstance(value, Tensor) or (name == "reset_step" and value is None)):
                number(name, value)
        if not self.threshold_step > 0:
            raise ValueError(f"threshold_step must be positive, got {self.threshold_step!r}")
        listed = self._list if not isinstance(self.v_threshold, Tensor) else None
        if listed is not None and (self.D, self.v_threshold) != (len(listed), listed[0]):
            raise ValueError(
                f"D={self.D} and v_threshold={self.v_threshold} do not fit the explicit thresholds "
                f"{list(listed)}: assign to .thresholds instead (None goes back to an even spacing)"
            )
        if self.reset_mode not in RESETS:
            raise ValueError(f"unknown reset_mode {self.reset_mode!r}; known: {', '.join(map(repr, RESETS))}")
        if self.reset_delay and not self.detach_reset:
            raise ValueError("a delayed reset passes no gradient: set detach_reset=True or reset_delay=False")

    def _check_decay(self) -> None:
        decay = value_of(self, "_decay")
        if isinstance(decay, Tensor):
            # A device would be waited for, and a compiler knows no values.
            asked = decay.device.type == "cpu" and not torch.compiler.is_compiling()
            fits = not asked or bool(((decay >= 0) & (decay <= 1)).all())
        else:
            fits = 0 <= decay <= 1
        if not fits:
            raise ValueError(f"decay must lie in [0, 1], got {decay!r}")

    def settings(self) -> MSFSettings:
        """What the op must know that is no tensor, as it is now, checked; made anew after a change."""
        return self._remembered("settings", self._make_settings)

    def _make_settings(self) -> MSFSettings:
        self._check()
        charge = self.charge[0] if self.training else self.charge[1]
        kind, decay = CHARGES[charge].rate, self.decay if self.decay_logit is None else 0.0
        rate = {"decay": 0.0 if isinstance(decay, Tensor) else decay, "tau": self.tau}.get(kind, 0.0)
        learned = isinstance(self.v_threshold, Tensor)
        listed = self._list or [d * float(self.threshold_step) for d in range(self.D)]
        thresholds = [theta - listed[0] for theta in listed] if learned else self.thresholds
        amount = thresholds[0] if self.reset_step is None else self.reset_step
        named = self.surrogate if isinstance(self.surrogate, Surrogate) else Surrogate("rectangular")
        return MSFSettings(
            charge=charge,
            thresholds=tuple(thresholds),
            rate=float(rate or 0.0),
            input_scale=float(self.input_scale),
            v_reset=float(self.v_reset) if self.reset_mode == "hard" else 0.0,
            reset_mode=self.reset_mode,
            reset_amount=0.0 if isinstance(amount, Tensor) else float(amount),
            reset_delay=bool(self.reset_delay) and self.reset_mode != "none",
            retake=bool(self.retake) and self.reset_mode == "soft" and not self.reset_delay,
            detach_reset=bool(self.detach_reset),
            surrogate=named.name,
            width=named.width,
        )

    def parameters_of(self, x: Tensor, dtype: torch.dtype) -> MSFParameters:
        """What is a tensor, in ``dtype`` and in shapes that broadcast against one step ``x``."""
        if self._remembered("numbers", self._all_numbers):
            return MSFParameters()
        rate = None
        kind = CHARGES[self.charge[0] if self.training else self.charge[1]].rate
        # Each is read once: a parametrisation computes at every look.
        if kind == "decay":
            logit = value_of(self, "decay_logit")
            decay = value_of(self, "_decay") if logit is None else logit.to(dtype).sigmoid()
            rate = self._against(x, decay, dtype, "decay")
        elif kind == "w":
            rate = self._against(x, value_of(self, "w").sigmoid(), dtype, "w")
        threshold = self._against(x, value_of(self, "v_threshold"), dtype, "threshold")
        amount = value_of(self, "reset_step")
        reset = self._against(x, amount, dtype, "reset_step")
        if amount is None and threshold is not None:
            reset = threshold.view_as(threshold)  # torch.compile takes no tensor twice
        return MSFParameters(rate, threshold, reset if self.reset_mode == "soft" else None)

    def _all_numbers(self) -> bool:
        tensors = [name for name in LEARNED if isinstance(getattr(self, name, None), Tensor)]
        return not tensors

    def _against(
        self, x: Tensor, value: float | Tensor | None, dtype: torch.dtype, what: str
    ) -> Tensor | None:
        """A tensor, one number for each channel or more, in a shape that broadcasts against one step ``x``."""
        if not isinstance(value, Tensor):
            return None
        value = value.to(dtype)
        if value.dim() == 1 and len(value) != 1:  # one number is for all, as anywhere
            shape = channel_shape(self.channel_dim, x)
            if math.prod(shape) != len(value):
                raise ValueError(
                    f"this MSF has a {what} for each of {len(value)} channels, but axis {self.channel_dim} of one "
                    f"step {tuple(x.shape)} has {math.prod(shape)}: pass a {what} [{math.prod(shape)}], or the "
                    f"channel_dim that holds {len(value)}"
                )
            return value.reshape(shape)
        if not broadcasts(value, x):
            raise ValueError(
                f"this MSF has a {what} of shape {tuple(value.shape)}, which does not broadcast against one step "
                f"{tuple(x.shape)}"
            )
        return value

    def saved_settings(self) -> dict[str, Any]:
        return {"num_thresholds": self.D}

    def compare_saved(self, prefix: str, saved: dict[str, Any], error_msgs: list[str]) -> None:
        if "num_thresholds" in saved:
            warn_of_others(self, prefix, {"D": saved["num_thresholds"]}, " thresholds")

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        return ((x.shape, state_dtype(x.dtype)),)

    def initial_state(self, x: Tensor) -> State:
        start = self.v_reset if self.reset_mode == "hard" else 0.0
        return (torch.full_like(x, start, dtype=state_dtype(x.dtype), requires_grad=False),)

    def check_input(self, x: Tensor) -> Tensor:
        x = super().check_input(x)
        if 2 / torch.finfo(x.dtype).eps < self.D:
            raise ValueError(f"{x.dtype} cannot hold all counts up to D={self.D}: give float32 input")
        return x

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.check_input(x)
        (v,) = self.check_state(x, state)
        parameters = self.parameters_of(x, v.dtype)
        s, v, m = msf_step(x.to(v.dtype), v, self.settings(), parameters, self.surrogate)
        return s.to(x.dtype), (v,), m

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        self.settings()  # first of all what is wrong with them
        (v,) = state
        parameters = self.parameters_of(first_step(x_seq), v.dtype)
        if not self._fused(parameters):
            return self._loop(x_seq, state, membrane, lengths)
        call = self._call(x_seq, parameters, membrane)
        s_seq, m_seq, v = run(x_seq, v, parameters, lengths, call, membrane)
        return s_seq, (v,), m_seq

    def _fused(self, parameters: MSFParameters) -> bool:
        """Whether the op does all that is asked."""
        learned = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parameters)
        return self._has_kernel(self.surrogate) and not (learned and self.settings().retake)

    def _trajectory(
        self, x_seq: Tensor, state: State, lengths: Tensor | None, names: Sequence[str]
    ) -> tuple[Tensor, State, list[Tensor]]:
        settings = self.settings()
        (v,) = state
        parameters = self.parameters_of(first_step(x_seq), v.dtype)
        if not self._fused(parameters):
            return super()._trajectory(x_seq, state, lengths, names)
        call = self._call(x_seq, parameters, True)
        # The backward reads membranes before the reset.
        states = not torch.is_grad_enabled() and backends.knows(call[1], "msf", "states out")
        if states:
            call = call[0].but(keep="state"), *call[1:]
        elif settings.retake:
            return super()._trajectory(x_seq, state, lengths, names)
        s_seq, v_seq, v = run(x_seq, v, parameters, lengths, call, True)
        assert v_seq is not None
        if not states and not settings.reset_delay:
            v_seq = after_reset(v_seq, s_seq.to(v_seq.dtype), settings, parameters, self.surrogate)
        return s_seq, (v,), [v_seq for _ in names]

    def _call(self, x: Tensor, parameters: MSFParameters, membrane: bool) -> Call:
        return self._remembered(
            ("call", x.device.type, torch.is_grad_enabled(), membrane),
            lambda: plan(x, self.settings(), parameters, self.surrogate, membrane, self.backend),
        )

    def _again(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None] | None:
        if len(state) != 1 or not undisturbed(x, *state):
            return None
        (v,) = state
        single = self.__dict__.get("_made", NOTHING).get(kind_of_step(x, membrane))
        if not single or v.shape != x.shape or v.dtype != x.dtype:
            return None
        s, m, v = single(x, v, membrane)
        return s, (v,), m

    def _run_single(
        self, x: Tensor, state: State, membrane: bool
    ) -> tuple[Tensor, State, Tensor | None] | None:
        (v,) = state
        parameters = self.parameters_of(x, v.dtype)
        if x.dtype != v.dtype or not self._fused(parameters):
            return None
        call = self._call(x, parameters, membrane)
        if parameters == (None, None, None):
            self._remembered(kind_of_step(x, membrane), lambda: Single.of(x, call) or False)
        done = run_step(x, v, parameters, call, membrane)
        return None if done is None else (done[0], (done[2],), done[1])

    def extra_repr(self) -> str:
        charge = self.charge[0]
        kind = CHARGES[charge].rate
        decay = self._decay if self.decay_logit is None else "learned"
        rate = {"decay": f"decay={_shown(decay)}, ", "tau": f"tau={_shown(self.tau)}, "}.get(kind, "")
        spacing = f"v_threshold={_shown(self.v_threshold)}, threshold_step={self.threshold_step}"
        if self._list is not None:
            spacing = f"thresholds={list(self._list)}"
        step = "" if self.reset_step is None else f"reset_step={_shown(self.reset_step)}, "
        delay = "reset_delay=True, " if self.reset_delay else "retake=True, " if self.retake else ""
        return (
            f"D={self.D}, {rate}{spacing}, reset_mode={self.reset_mode!r}, {step}{delay}charge={charge!r}, "
            f"backend={self.backend!r}"
        )


def _shown(value: Any) -> str:
    """A number, or what kind of tensor stands for it."""
    if not isinstance(value, Tensor):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    kind = "learned" if isinstance(value, nn.Parameter) else "tensor"
    return kind if value.dim() == 0 else f"{kind} {list(value.shape)}"


def _start_threshold(value: float | Tensor) -> nn.Parameter:
    given = value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
    known = given.is_meta or bool((given.isfinite() & (given > 0)).all())
    if given.numel() == 0 or not known:
        raise ValueError(f"a learned threshold starts positive and finite, got {value!r}")
    start = torch.as_tensor(value).detach()
    start = start if start.is_floating_point() else start.to(torch.get_default_dtype())
    return nn.Parameter(start.clone())


def _logit(decay: float | Tensor) -> Tensor:
    """The logit of a decay in (0, 1), a number or a tensor, in the dtype it will be learned in."""
    given = decay if isinstance(decay, Tensor) else torch.tensor(decay, device="cpu")
    known = given.is_meta or bool(((given > 0) & (given < 1)).all())
    if given.numel() == 0 or not known:
        raise ValueError(f"a learned decay starts in (0, 1), got {decay!r}")
    value = torch.as_tensor(decay).detach()
    value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    return torch.logit(value.double()).to(value.dtype)
