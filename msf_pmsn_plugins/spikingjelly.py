"""MSF and PMSN as SpikingJelly nodes, for SpikingJelly 2.0.0 and 0.0.0.0.14.

A node holds a framework-neutral neuron and only translates conventions: memories, step modes, the host's surrogate
objects. Its attributes (``v_threshold``, ``v_reset``, ``surrogate_function``, ``tau`` ..) may change at any time and
are handed to the neuron at every call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .neurons import MSF, PMSN, Neuron, ParallelIF
from .neurons.base import (
    Lengths,
    PropertiesFirst,
    State,
    file_under_neuron,
    first_step,
    number,
    valid_steps,
)
from .neurons.msf import msf_step
from .neurons.pmsn import pmsn_step
from .surrogate import Custom, FireFunction
from .surrogate import Surrogate as OwnSurrogate

try:
    from spikingjelly.activation_based import base, functional, neuron, surrogate
except ImportError as error:
    raise ImportError(
        "msf_pmsn_plugins.spikingjelly needs SpikingJelly 2.0.0 or 0.0.0.0.14: "
        'pip install "msf-pmsn-plugins[spikingjelly]"'
    ) from error

__all__ = ["MSFNode", "PMSNNode", "ParallelIFNode", "SpikingJellyNode", "register"]

RESET = "call spikingjelly.activation_based.functional.reset_net(net) between batches"

SNNTORCH = ("threshold", "graded_spikes_factor", "reset_mechanism_val", "beta")  # buffers of its neurons
FUNCTIONAL = hasattr(
    base.MemoryModule, "functional_forward"
)  # 2.0.0; it has other formulas for the same nodes


# Derivatives that 2.0.0 computes by formulas of its own, not through the object's autograd, in float32 and half.
NAMED: dict[str, str] = {"Sigmoid": "sigmoid", "ATan": "atan"}


def _soft_sign(u: Tensor, alpha: float) -> Tensor:
    z = 1 / alpha + u.abs()
    return 1 / (2 * alpha * z * z)


def _super_spike(u: Tensor, alpha: float) -> Tensor:
    z = 1 + u.abs()
    return alpha / (z * z)


def _erf(u: Tensor, alpha: float) -> Tensor:
    z = alpha * u
    return (alpha / math.sqrt(math.pi)) * torch.exp(-z * z)


FORMULAS = {"SoftSign": _soft_sign, "SuperSpike": _super_spike, "Erf": _erf}


def translate_surrogate(function: Any, dtype: torch.dtype, detach_reset: bool = True) -> Any:
    """The host's surrogate object as what computes the host's gradients to the bit: one of ours, or the object itself.

    0.0.0.0.14, and 2.0.0 in float64, go through the object's own autograd; there only ATan with a detached reset has
    the order of our op. The object stays in ``surrogate_function``; this is looked up at every call.
    """
    kind, alpha = type(function), getattr(function, "alpha", None)
    if kind.__module__ != surrogate.__name__ or not function.spiking or not isinstance(alpha, int | float):
        return function
    name, alpha = kind.__name__, float(alpha)
    by_formula = FUNCTIONAL and dtype != torch.float64
    if name in NAMED and (by_formula or (name == "ATan" and detach_reset)):
        return OwnSurrogate(NAMED[name], alpha)
    if name in FORMULAS and by_formula:
        return Custom(functools.partial(FORMULAS[name], alpha=alpha))
    return function


class SpikingJellyNode(PropertiesFirst, neuron.BaseNode):
    """A framework-neutral neuron as a SpikingJelly node.

    Memories hold the neuron's state under its ``state_names``; outputs come in the dtype of the input, states in
    float32 (float64 for float64 input) whatever the dtype of the module.

    In step mode ``"m"`` a call takes ``lengths=``, the valid steps of each sample [N] (or a bool mask [T, N]): padded
    steps emit 0 and touch neither state nor gradient. Inside a network set the attribute ``lengths`` instead, for which
    :func:`msf_pmsn_plugins.state.padded` is made.

    Raises:
        ValueError: a state left by a batch of another shape (it is never rebuilt silently), or a multi-step input
            without a time axis.
    """

    neuron: Neuron
    v_seq: Tensor | None
    lengths: Lengths | None = None

    def __init__(
        self,
        held: Neuron,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: Any,
        detach_reset: bool,
        step_mode: str,
        store_v_seq: bool,
    ) -> None:
        super().__init__(
            v_threshold=number("v_threshold", v_threshold),
            v_reset=None if v_reset is None else number("v_reset", v_reset),
            surrogate_function=surrogate_function,
            detach_reset=bool(detach_reset),
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.neuron = held
        if held.state_names != ("v",):
            del self._memories["v"], self._memories_rv["v"]
            for name in held.state_names:
                self.register_memory(name, 0.0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "surrogate_function" and not isinstance(value, nn.Module):
            self._modules.pop(name, None)  # one of ours in place of one of the host's
        super().__setattr__(name, value)

    @property
    def backend(self) -> str:
        """``"auto"`` or the name of a backend of ours, on every version of SpikingJelly."""
        held = self._modules.get("neuron")
        return held.backend if isinstance(held, Neuron) else "auto"

    @backend.setter
    def backend(self, name: str) -> None:
        held = self._modules.get("neuron")
        if isinstance(held, Neuron):  # the host's constructor assigns before the neuron is there
            held.backend = name

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``functional.set_backend`` of SpikingJelly 0.0.0.0.14 may set."""
        return self.neuron.supported_backends

    def hand_over(self, dtype: torch.dtype) -> None:
        """Give the node's current settings to the held neuron, for an input of ``dtype``. By default there are none."""

    def hand_over_threshold(self) -> None:
        """Give the held neuron the threshold, if it is a number."""
        if not self.has_margin:
            self.neuron.v_threshold = number("v_threshold", self.v_threshold)

    @property
    def has_margin(self) -> bool:
        """Whether ``v_threshold`` is a tensor of thresholds, as ``functional.set_threshold_margin`` leaves it."""
        return isinstance(self.v_threshold, Tensor) and self.v_threshold.numel() > 1

    def step_with_margin(self, x: Tensor, states: State, theta: Tensor) -> tuple[Tensor, State]:
        """One step whose first threshold is ``theta``, a tensor that broadcasts against ``x`` [N, *]."""
        raise TypeError(f"{type(self).__name__} takes one number as its v_threshold, not a tensor of several")

    def _sequence_with_margin(
        self, x_seq: Tensor, states: State, lengths: Lengths | None
    ) -> tuple[Tensor, State]:
        if lengths is not None:
            raise ValueError("lengths and a tensor of thresholds (set_threshold_margin) do not go together")
        theta: Any = self.v_threshold
        x = first_step(x_seq)
        sizes = zip(reversed(theta.shape), reversed(x.shape), strict=False)
        if theta.dim() > x.dim() or any(own not in (1, size) for own, size in sizes):
            raise ValueError(
                f"v_threshold is a tensor {tuple(theta.shape)}, set for another batch than this one, {tuple(x.shape)} "
                "per step: call functional.set_threshold_margin(layer, label_one_hot) again"
            )
        s_seq = []
        for x in x_seq.unbind(0):
            s, states = self.step_with_margin(x, states, theta.to(states[0]))
            s_seq.append(s.to(x_seq.dtype))
        return torch.stack(s_seq) if s_seq else torch.empty_like(x_seq), states

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor, ...]:
        """Scalar sentinels become tensors; a state of another shape raises ValueError."""
        x = inputs[0]
        if step_mode == "m":
            x = first_step(x)
        self.neuron.check_input(x)
        # By full_like, for SpikingJelly's NeuronStateCounter knows a new state by that.
        given = tuple(
            s
            if isinstance(s, Tensor)
            else torch.full_like(
                x.new_empty(()).expand(shape), s, dtype=dtype, memory_format=torch.contiguous_format
            )
            for s, (shape, dtype) in zip(states, self.neuron.state_spec(x), strict=True)
        )
        return self.neuron.check_state(x, given, RESET)

    @property
    def carried(self) -> State | None:
        """The state as a tuple of tensors, None at rest. Assign to go on from another one."""
        parts = self._recall()
        return parts if all(isinstance(part, Tensor) for part in parts) else None

    @carried.setter
    def carried(self, state: State | None) -> None:
        rest = tuple(self._memories_rv[name] for name in self.neuron.state_names)
        self._remember(rest if state is None else state)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **_: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over one step: ``(x,)`` [N, *] -> ``(spikes,)``, states."""
        self.hand_over(inputs[0].dtype)
        states = self.materialize_states(inputs, states, "s")
        if self.has_margin:
            (s,), states = self._sequence_with_margin(inputs[0].unsqueeze(0), states, None)
        else:
            s, states, _m = self.neuron.step(inputs[0], states)
        return (s,), states

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, lengths: Lengths | None = None, **_: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over a sequence: ``(x_seq,)`` [T, N, *] -> ``(spikes,)``, states."""
        self.hand_over(inputs[0].dtype)
        states = self.materialize_states(inputs, states, "m")
        if self.has_margin:
            s_seq, states = self._sequence_with_margin(inputs[0], states, lengths)
        else:
            s_seq, states, _m = self.neuron.sequence(inputs[0], states, lengths=lengths)
        return (s_seq,), states

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **kwargs: Any
    ) -> tuple[tuple[Tensor], State]:
        """The transition of the current step mode."""
        single = self.step_mode == "s"
        forward = self.single_step_functional_forward if single else self.multi_step_functional_forward
        return forward(inputs, states, **kwargs)

    # Memories are fetched by name: 0.0.0.0.14 files v_seq among them.
    def _recall(self) -> tuple[Any, ...]:
        return tuple(self._memories[name] for name in self.neuron.state_names)

    def _remember(self, states: State) -> None:
        self._memories.update(zip(self.neuron.state_names, states, strict=True))

    def single_step_forward(self, x: Tensor) -> Tensor:
        """One step, state in the memories: ``x`` [N, *] -> spikes [N, *]."""
        self._check_tensor(x)
        if self.lengths is not None:
            raise ValueError("lengths belong to sequences: set step_mode='m', or lengths=None")
        (s,), states = self.single_step_functional_forward((x,), self._recall())
        self._remember(states)
        for name in self._stored():
            value, seq = getattr(self, name).unsqueeze(0), getattr(self, f"{name}_seq")
            setattr(self, f"{name}_seq", value if seq is None else torch.cat([seq, value]))
        return s

    def multi_step_forward(self, x_seq: Tensor, lengths: Lengths | None = None) -> Tensor:
        """All steps, state in the memories: ``x_seq`` [T, N, *] -> spikes [T, N, *]; ``lengths`` [N] or mask [T, N]."""
        self._check_tensor(x_seq)
        lengths = self.lengths if lengths is None else lengths
        if x_seq.dim() < 2:
            raise ValueError(
                f"step_mode='m' takes a sequence [T, N, *], time first; got shape {tuple(x_seq.shape)}. "
                "For single steps use step_mode='s'"
            )
        if self._stored():
            return self._multi_step_stored(x_seq, lengths)
        (s_seq,), states = self.multi_step_functional_forward((x_seq,), self._recall(), lengths)
        self._remember(states)
        return s_seq

    def _stored(self) -> tuple[str, ...]:
        """What is kept of every step: ``v`` in ``v_seq``, and so on."""
        return ("v",) if self.store_v_seq else ()

    def _multi_step_stored(self, x_seq: Tensor, lengths: Lengths | None) -> Tensor:
        states = self.materialize_states((x_seq,), self._recall(), "m")
        live_seq = None if lengths is None else valid_steps(x_seq, lengths)
        s_seq: list[Tensor] = []
        stored: dict[str, list[Tensor]] = {name: [] for name in self._stored()}
        for t, x in enumerate(x_seq.unbind(0)):
            if live_seq is None:
                (s,), states = self.single_step_functional_forward((x,), states)
            else:
                one = (x.unsqueeze(0),)
                (s,), states = self.multi_step_functional_forward(one, states, live_seq[t].long())
                s = s.squeeze(0)
            self._remember(states)
            s_seq.append(s)
            for name, values in stored.items():
                values.append(getattr(self, name))
        self._remember(states)
        for name, values in stored.items():
            last = getattr(self, name)
            setattr(self, f"{name}_seq", torch.stack(values) if values else last.new_empty((0, *last.shape)))
        return torch.stack(s_seq) if s_seq else torch.empty_like(x_seq)

    def _check_tensor(self, x: Any) -> None:
        if isinstance(x, torch.fx.Proxy):
            raise TypeError(
                f"{type(self).__name__} cannot be traced by an exporter that does not know it: for NIR call "
                "msf_pmsn_plugins.nir.export_to_nir(net, x)"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x).__name__}")

    def detach(self) -> None:
        """Cut the graph at the current state (truncated backpropagation)."""
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = value.detach()
        for name in ("v_seq", "z_seq"):
            seq = getattr(self, name, None)  # 0.0.0.0.14 has none unless asked to store it
            if isinstance(seq, Tensor):
                setattr(self, name, seq.detach())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpikingJellyNode:
        """Memories follow the module's device but keep their dtype: half precision would lose spikes."""
        tensors = {name: value for name, value in self._memories.items() if isinstance(value, Tensor)}
        self._memories.update(dict.fromkeys(tensors, 0.0))
        nn.Module._apply(self, fn, recurse)
        for name, value in tensors.items():
            self._memories[name] = value.to(fn(torch.empty(0, device=value.device)).device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept what a bare neuron, a ParametricLIFNode (no prefix) and a snnTorch neuron (its buffers) save."""
        file_under_neuron(state_dict, prefix, self.neuron)
        foreign = {name: state_dict.pop(prefix + name) for name in SNNTORCH if prefix + name in state_dict}
        if foreign:
            errors = args[4]  # strict, missing_keys and unexpected_keys stand before it
            errors.extend(f"{prefix or 'the node'}: {text}" for text in self._take_snntorch(foreign))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_snntorch(self, numbers: dict[str, Tensor]) -> list[str]:
        """Take over the numbers that snnTorch keeps in its state dict; what has no counterpart is an error."""
        errors = []
        if "threshold" in numbers:
            self.v_threshold = float(numbers["threshold"])
        if float(numbers.get("graded_spikes_factor", 1.0)) != 1.0:
            errors.append("SpikingJelly's nodes have no graded spikes: graded_spikes_factor must be 1")
        return errors

    def extra_repr(self) -> str:
        return f"step_mode={self.step_mode!r}, backend={self.backend!r}"


class MSFNode(SpikingJellyNode):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155) as a SpikingJelly node.

    Emits integer counts 0..D. The defaults are the published neuron: decay ``1 - 1/tau = 0.25``, no input scaling,
    hard reset to 0 after any spike, rectangular surrogate of half-width ``threshold_step/2``, detached reset.

    Args:
        D: number of thresholds; D = 1 is LIF.
        tau: membrane time constant in steps, from 1 (no memory) to inf (no leak). With ``learn_tau`` the start value,
            a number or a tensor [C], one for each channel.
        decay_input: multiply the input by ``1/tau``.
        v_threshold: first threshold, volts.
        threshold_step: spacing of the thresholds, volts.
        v_reset: potential after a spike; None subtracts ``v_threshold`` per spike instead (soft reset).
        surrogate_function: one of SpikingJelly's surrogate objects, a name or a
            :class:`msf_pmsn_plugins.surrogate.Surrogate`; None is the published rectangle.
        detach_reset: no gradient through the reset.
        step_mode: ``"s"`` takes [N, *], ``"m"`` takes [T, N, *].
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.
        store_v_seq: keep the membranes after each step in ``v_seq`` [T, N, *].
        charge: a key of :data:`msf_pmsn_plugins.charges.CHARGES` (a pair: in training, in evaluation) to charge as a
            stock node does, in its own order of operations.
        w: start value of the learned ``w`` of a ``plif`` charge.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``v_threshold`` and
            ``threshold_step``.
        learn_tau: learn the decay ``1 - 1/tau``, as the sigmoid of ``neuron.decay_logit``.
        channel_dim: where the channels of a ``tau`` per channel lie in the per-step tensor [N, C, *].

    Memory: ``v``, the membrane after reset, [N, *].

    Raises:
        ValueError: a parameter out of its range; see also :class:`SpikingJellyNode`.
    """

    neuron: MSF

    def __init__(
        self,
        D: int = 4,
        tau: float | Tensor = 4 / 3,
        decay_input: bool = False,
        v_threshold: float = 1.0,
        threshold_step: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: str | OwnSurrogate | FireFunction | None = None,
        detach_reset: bool = True,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        charge: str | tuple[str, str] = "decay",
        w: float | Tensor | None = None,
        thresholds: Sequence[float] | None = None,
        learn_tau: bool = False,
        channel_dim: int | Sequence[int] = 1,
    ) -> None:
        if decay_input and learn_tau:
            raise ValueError("decay_input with a learned tau is charge='plif_decay_input', w=...")
        if decay_input and charge != "decay":
            raise ValueError(
                f"decay_input belongs to charge='decay'; charge={charge!r} says by its name what it does"
            )
        held = MSF(
            D=D,
            v_threshold=v_threshold,
            threshold_step=threshold_step,
            v_reset=0.0 if v_reset is None else v_reset,
            surrogate=surrogate_function,
            charge=charge,
            tau=None if isinstance(tau, Tensor) else tau,
            w=w,
            decay=1.0 - 1.0 / tau if learn_tau else 0.0,
            thresholds=thresholds,
            learn_decay=learn_tau,
            channel_dim=channel_dim,
            backend=backend,
        )
        super().__init__(
            held, held.v_threshold, v_reset, held.surrogate, detach_reset, step_mode, store_v_seq
        )
        self._default_surrogate = self.surrogate_function if surrogate_function is None else None
        self.D = held.D
        self.tau = tau
        self.decay_input = decay_input
        self.threshold_step = threshold_step
        self.hand_over(torch.get_default_dtype())

    @property
    def tau(self) -> Any:
        """The membrane time constant in steps; of a learned one its present value. Assign to change it."""
        learned = self.neuron.decay_logit is not None
        return 1.0 / (1.0 - self.neuron.decay) if learned else self._tau

    @tau.setter
    def tau(self, value: Any) -> None:
        if self.neuron.decay_logit is not None:
            self.neuron.decay = 1.0 - 1.0 / value
        else:
            self._tau = value

    @property
    def thresholds(self) -> list[float]:
        """The thresholds in volts. Assign a list to replace ``D``, ``v_threshold`` and the spacing, None to go back."""
        self.hand_over(torch.get_default_dtype())
        return self.neuron.thresholds

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        self.neuron.thresholds = values
        self.D, self.v_threshold = self.neuron.D, float(self.neuron.v_threshold)

    def hand_over(self, dtype: torch.dtype) -> None:
        held = self.neuron
        held.D = self.D
        if held.decay_logit is None:
            if isinstance(self.tau, str | bool) or not self.tau >= 1:
                raise ValueError(f"tau must be a number of at least 1, got {self.tau!r}")
            held.tau = self.tau
            held.decay = 1.0 - 1.0 / self.tau
            held.input_scale = 1.0 / self.tau if self.decay_input else 1.0
        self.hand_over_threshold()
        held.threshold_step = self.threshold_step
        held.reset_mode = "soft" if self.v_reset is None else "hard"
        held.v_reset = 0.0 if self.v_reset is None else self.v_reset
        held.detach_reset = self.detach_reset
        if self.surrogate_function is self._default_surrogate:
            held.surrogate = None  # the default follows the spacing of the thresholds
        else:
            held.surrogate = translate_surrogate(self.surrogate_function, dtype, self.detach_reset)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **_: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over one step, through the op: its adjoint has the host's order of operations."""
        (s_seq,), states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (s_seq.squeeze(0),), states

    def step_with_margin(self, x: Tensor, states: State, theta: Tensor) -> tuple[Tensor, State]:
        (v,) = states
        first, *_ = thetas = self.neuron.thresholds
        settings = self.neuron._settings(x, v.dtype) | {"thresholds": [theta + (t - first) for t in thetas]}
        s, v, _m = msf_step(x.to(v.dtype), v, **settings)
        return s, (v,)

    def _take_snntorch(self, numbers: dict[str, Tensor]) -> list[str]:
        errors = super()._take_snntorch(numbers)
        if "beta" in numbers:
            leak = 1 - float(numbers["beta"])
            self.tau = 1 / leak if leak else math.inf
        if "reset_mechanism_val" in numbers:
            # 0 subtract, 1 zero, 2 none; snnTorch subtracts undecayed, SpikingJelly does not.
            if int(numbers["reset_mechanism_val"]) != 1:
                errors.append("only reset_mechanism='zero' has the same dynamics in both frameworks")
            else:
                self.v_reset = 0.0
        return errors


class _ResidualNode(SpikingJellyNode):
    """A node whose state holds a residual ``r`` in units of the threshold; ``v`` shows it in volts."""

    @property
    def v(self) -> Tensor | float:
        """The residual after reset, volts, [N, *]."""
        if "r" not in self._memories:  # the host's constructor asks before the memories are there
            raise AttributeError("v")
        return self._memories["r"] * self._volts

    @v.setter
    def v(self, value: Tensor | float) -> None:
        self._memories["r"] = value / self._volts

    @property
    def _volts(self) -> Tensor | float:
        """One threshold in volts; a tensor where each neuron has its own."""
        return self.v_threshold if self.has_margin else float(self.v_threshold)

    def __getattr__(self, name: str) -> Any:
        # The monitors of 0.0.0.0.14 call this directly and so miss the property.
        return type(self).v.fget(self) if name == "v" else super().__getattr__(name)  # type: ignore[attr-defined]

    def hand_over(self, dtype: torch.dtype) -> None:
        if self.v_reset is not None or not self.detach_reset:
            raise ValueError(
                f"{type(self).__name__} always resets by whole thresholds and carries no gradient through its reset: "
                f"leave v_reset=None and detach_reset=True (got {self.v_reset!r}, {self.detach_reset!r})"
            )
        self.hand_over_threshold()
        held: Any = self.neuron
        held.surrogate = translate_surrogate(self.surrogate_function, dtype)


class PMSNNode(_ResidualNode):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917) as a SpikingJelly node.

    Args:
        channels: size of the channel axis; None takes it from the first input or a loaded state dict.
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [N, C, *], in both step modes; a tuple of adjacent axes
            counts as one axis of their product.
        v_threshold: volts.
        surrogate_function: as in :class:`MSFNode`; None is the published triangle of half-width 1 V.
        step_mode, backend, store_v_seq: as in :class:`MSFNode`.
        init: ``"sequence"``, ``"shd"`` or ``"imagenet"``: the published initialisations.
        reset_mode, burst, coeff, residual, tied, context, dt_scale: variants, as in
            :class:`msf_pmsn_plugins.neurons.PMSN`; ``node.neuron`` holds them.

        store_z_seq: keep the hidden states after each step in ``z_seq`` [T, N, *, compartments - 1].

    Memories: ``r``, the residual in units of the threshold [N, *], and ``z``, the hidden state, complex
    [N, *, compartments - 1]. ``v`` shows the residual in volts.

    Raises:
        ValueError: a parameter out of its range, another channel count; see also :class:`SpikingJellyNode`.
    """

    neuron: PMSN
    store_z_seq: bool = False
    z_seq: Tensor | None = None

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate_function: str | OwnSurrogate | FireFunction | None = None,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        init: str = "sequence",
        *,
        reset_mode: str = "floor",
        burst: bool | str = False,
        coeff: float = 1.0,
        residual: str = "float",
        tied: bool = False,
        context: str = "local",
        dt_scale: float = 1.0,
        store_z_seq: bool = False,
    ) -> None:
        held = PMSN(
            channels=channels,
            compartments=compartments,
            channel_dim=channel_dim,
            v_threshold=v_threshold,
            surrogate=surrogate_function,
            init=init,
            reset_mode=reset_mode,
            burst=burst,
            coeff=coeff,
            residual=residual,
            tied=tied,
            context=context,
            dt_scale=dt_scale,
            backend=backend,
        )
        super().__init__(held, v_threshold, None, held.surrogate, True, step_mode, store_v_seq)
        self.store_z_seq = store_z_seq
        self.hand_over(torch.get_default_dtype())

    def __getattr__(self, name: str) -> Any:
        # The monitors of 0.0.0.0.14 call this directly, past what any object has.
        return self.__dict__.get(name) if name == "z_seq" else super().__getattr__(name)

    def _stored(self) -> tuple[str, ...]:
        return (*super()._stored(), *(("z",) if self.store_z_seq else ()))

    def reset(self) -> None:
        """Bring the state to its reset values and forget what was stored."""
        super().reset()
        self.z_seq = None

    def step_with_margin(self, x: Tensor, states: State, theta: Any) -> tuple[Tensor, State]:
        held, (r, z) = self.neuron, states
        if held.context == "global" or not bool((theta > 0).all()):
            raise ValueError("a tensor of thresholds must be positive and needs context='local'")
        a, w, d = held.step_weights(x, r.dtype)
        _theta, reset_mode, burst, fixed = held._soma()
        s, r, z, _m = pmsn_step(x.to(r.dtype), r, z, a, w, d, theta, held.surrogate, reset_mode, burst, fixed)
        return s, (r, z)

    @property
    def channels(self) -> int | None:
        """Size of the channel axis, None before it is known."""
        return self.neuron.channels


class ParallelIFNode(_ResidualNode):
    """Integrate and fire without leak, all time steps at once: the parallel reset of PMSN as a node of its own.

    Negative inputs are clamped and a reset removes all whole thresholds; see
    :class:`msf_pmsn_plugins.neurons.ParallelIF`.

    Args:
        v_threshold: volts.
        surrogate_function, step_mode, backend, store_v_seq: as in :class:`MSFNode`; None is the triangle of half-width
            1 V.
        burst: emit the number of removed thresholds instead of one spike.

    Memory: ``r``, the residual in units of the threshold [N, *]; ``v`` shows it in volts.
    """

    neuron: ParallelIF

    def __init__(
        self,
        v_threshold: float = 1.0,
        surrogate_function: str | OwnSurrogate | FireFunction | None = None,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        burst: bool | str = False,
    ) -> None:
        held = ParallelIF(v_threshold, surrogate_function, burst, backend)
        super().__init__(held, v_threshold, None, held.surrogate, True, step_mode, store_v_seq)
        self.hand_over(torch.get_default_dtype())


def register() -> None:
    """Register our nodes with SpikingJelly's own registry, for ``distributed.vision`` configurations.

    It is the only registry that SpikingJelly has. Calling it twice is harmless.

    Raises:
        ImportError: this version of SpikingJelly has no registry (0.0.0.0.14), or it has moved.
    """
    where = "spikingjelly.activation_based.distributed.vision"
    try:
        from spikingjelly.activation_based.distributed.vision import register_neuron_class
    except ImportError as error:
        version = importlib.metadata.version("spikingjelly")
        raise ImportError(
            f"SpikingJelly {version} has no {where}.register_neuron_class; the registry came with 2.0.0, and that is "
            "where it was found there. Without it, pass the class itself: spiking_neuron=MSFNode"
        ) from error
    for cls in (MSFNode, PMSNNode, ParallelIFNode):
        register_neuron_class(cls)


# What the swap asks of a host.

NODES: dict[str, type[SpikingJellyNode]] = {"msf": MSFNode, "pmsn": PMSNNode}
WORDS: dict[str, str] = {}  # the swap's words in this host, where they differ

# Nodes whose copies and subclasses may have a charge that MSF knows, by class name; the formulas of either version.
FAMILIES = {
    f"{prefix}{name}Node": name for prefix in ("", "MultiStep") for name in ("IF", "LIF", "ParametricLIF")
}
FAMILY_CHARGES: dict[str, dict[bool, tuple[str, ...]]] = {
    "IF": {False: ("if",), True: ("if",)},
    "LIF": {
        False: ("lif", "lif_product", "simple_lif"),
        True: ("lif_decay_input", "lif_rest_zero_decay_input", "simple_lif_decay_input"),
    },
    "ParametricLIF": {False: ("plif", "plif_product"), True: ("plif_decay_input",)},
}


def is_stock(module: nn.Module) -> bool:
    """Whether the class of ``module`` is this host's own: not a subclass, a copy, or a ``clock_driven`` one."""
    return type(module).__module__.startswith("spikingjelly.activation_based.")


def is_readout(module: Any) -> bool:
    """Whether ``module`` integrates without firing."""
    threshold = getattr(module, "v_threshold", 0.0)
    infinite = isinstance(threshold, int | float) and math.isinf(threshold)
    return "NonSpiking" in type(module).__name__ or infinite


def refused(module: nn.Module) -> ValueError:
    """The error for a node whose dynamics have no entry."""
    return ValueError(
        f"{type(module).__name__} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep this "
        "site with rules={path: swap.Keep()}"
    )


def site_charge(module: Any) -> dict[str, Any]:
    """The charge of a stock node in its own order of operations, as arguments of :class:`MSFNode`.

    Raises:
        ValueError: a node whose dynamics have no entry.
    """
    kind = type(module)
    suffix = "_decay_input" if getattr(module, "decay_input", False) else ""
    at_zero = getattr(module, "v_reset", None) in (None, 0)
    if kind is neuron.IFNode:
        return {"charge": "if"}
    if kind is neuron.ParametricLIFNode:
        product = not FUNCTIONAL and at_zero and not suffix
        return {"charge": "plif_product" if product else "plif" + suffix, "w": module.w}
    if kind is neuron.LIFNode:
        full, short = "lif" + suffix, "lif_rest_zero_decay_input" if suffix else "lif_product"
        if FUNCTIONAL:
            charge = (full, full)
        else:
            charge = (short if at_zero else full, short if module.v_reset is None else full)
        return {"charge": charge, "tau": module.tau}
    if FUNCTIONAL and kind is neuron.SimpleLIFNode and module.v_reset is not None:
        return {"charge": "simple_lif" + suffix, "tau": module.tau}
    raise refused(module)


def site_charges(module: Any) -> list[dict[str, Any]]:
    """The charges that the class name of a subclass, a copy or a ``clock_driven`` node stands for: one may be its own.

    Raises:
        ValueError: a node whose dynamics have no entry.
    """
    names = (cls.__name__ for cls in type(module).__mro__)
    family = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if family is None:
        raise refused(module)
    try:
        rate = {"IF": {}, "LIF": {"tau": "tau"}, "ParametricLIF": {"w": "w"}}[family]
        rate = {key: getattr(module, name) for key, name in rate.items()}
    except AttributeError as error:
        raise refused(module) from error
    charges = FAMILY_CHARGES[family][bool(getattr(module, "decay_input", False))]
    return [{"charge": charge, **rate} for charge in charges]


def site_settings(module: Any, step_mode: str | None = None) -> dict[str, Any]:
    """What both targets take over from a node; without ``v_threshold`` where the node has none that is a number."""
    threshold = getattr(module, "v_threshold", None)
    number_given = isinstance(threshold, int | float) or (
        isinstance(threshold, Tensor) and threshold.numel() == 1
    )
    settings = {"v_threshold": float(threshold)} if number_given else {}  # type: ignore[arg-type]
    return {**settings, "step_mode": step_mode or module.step_mode}


def site_dynamics(
    module: Any, step_mode: str | None = None, charge: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that MSF keeps of a node under ``dynamics="site"``, as arguments of :class:`MSFNode`.

    Args:
        charge: that of a node that is no stock one, out of :func:`site_charges`.

    Raises:
        ValueError: a node whose dynamics have no entry, or that does not spike.
    """
    if not getattr(getattr(module, "surrogate_function", None), "spiking", True):
        raise ValueError(
            "its surrogate has spiking=False: it does not spike, so counts cannot replace its output"
        )
    try:
        return {
            **(site_charge(module) if charge is None else charge),
            **site_settings(module, step_mode),
            "v_reset": module.v_reset,
            "detach_reset": module.detach_reset,
            "surrogate_function": module.surrogate_function,
            "store_v_seq": getattr(module, "store_v_seq", False),
        }
    except AttributeError as error:
        raise refused(module) from error


def as_stock(node: SpikingJellyNode) -> tuple[nn.Module, list[str]]:
    """A stock node in place of one of ours, and what it loses by that.

    Raises:
        ValueError: no stock node comes near.
    """
    lost: list[str] = []
    common = {
        "v_threshold": float(node.v_threshold),
        "surrogate_function": node.surrogate_function,
        "step_mode": node.step_mode,
        "store_v_seq": node.store_v_seq,
    }
    if not isinstance(node, MSFNode):
        parameters = sum(p.numel() for p in node.parameters())
        lost.append(f"{type(node).__name__} with its {parameters} parameters becomes a LIF with tau=2")
        return neuron.LIFNode(tau=2.0, v_reset=0.0, detach_reset=True, **common), lost
    held: Any = node.neuron
    if held.D > 1:
        lost.append(f"counts 0..{held.D} become 0 and 1")
    common |= {"v_reset": node.v_reset, "detach_reset": node.detach_reset}
    charge = held.charge[0]
    decays = charge.endswith("_decay_input") or (charge == "decay" and node.decay_input)
    if charge.startswith("simple_lif") and FUNCTIONAL:
        return neuron.SimpleLIFNode(tau=held.tau, decay_input=decays, **common), lost
    if charge.startswith("plif") or held.decay_logit is not None:
        w = held.w if charge.startswith("plif") else -held.decay_logit
        if w.numel() != 1:
            raise ValueError("a decay for each channel has no stock node: keep this site")
        stock = neuron.ParametricLIFNode(decay_input=decays, **common)
        with torch.no_grad():
            stock.w.copy_(w.reshape(stock.w.shape))
        return stock, lost
    tau: Any = held.tau if charge != "decay" else node.tau
    if charge == "if" or (charge == "decay" and math.isinf(tau)):
        return neuron.IFNode(**common), lost
    if not tau > 1:
        raise ValueError("a neuron without memory (tau=1) has no stock node: keep this site")
    return neuron.LIFNode(tau=float(tau), decay_input=decays, **common), lost


def reset_net(model: nn.Module) -> None:
    """Bring the neurons of ``model`` to rest as its users do."""
    functional.reset_net(model)


def after_swap(model: nn.Module) -> None:
    """Forget what the host caches about the modules of ``model`` (the module list of ``reset_net``)."""
    invalidate = getattr(functional, "invalidate_reset_cache", None)
    if invalidate is not None:
        invalidate(model)
