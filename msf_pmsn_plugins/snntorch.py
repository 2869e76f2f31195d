"""MSF and PMSN as snnTorch neurons, for snnTorch 1.0.0 and 0.9.4.

A skin holds a framework-neutral neuron (``.neuron``) and only translates conventions: constructor words, hidden
or passed state, return arity, the moment of the reset. ``threshold``, ``beta``, ``reset_mechanism`` and
``spike_grad`` are kept in the held neuron alone; the skin shows them under snnTorch's names and takes new values
by assignment.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import neurons
from .neurons.base import (
    Lengths,
    Neuron,
    PropertiesFirst,
    State,
    channel_axes,
    file_under_neuron,
    refuse_newer,
    valid_steps,
)
from .neurons.msf import msf_step
from .surrogate import Custom, FireFunction, Soft, Surrogate

try:
    import snntorch as snn
except ImportError as error:
    raise ImportError(
        f"msf_pmsn_plugins.snntorch cannot import snnTorch ({error}): "
        'pip install "msf-pmsn-plugins[snntorch]"'
    ) from error

__all__ = [
    "BPTT",
    "MSF",
    "PMSN",
    "RTRL",
    "TBPTT",
    "LearnedThresholdMSF",
    "ParallelIF",
    "SnnTorchNeuron",
    "any_spike",
    "detach",
    "patched",
    "reset",
]

Mem = Tensor | tuple[Tensor, ...]
SpikeGrad = str | Surrogate | FireFunction | None

REMEDY = "call msf_pmsn_plugins.snntorch.reset(net) between batches"
RESET_MODES = {"zero": "hard", "subtract": "soft", "none": "none"}  # snnTorch's word -> the held neuron's
LEARNED = {
    "threshold": "v_threshold",
    "beta": "decay_logit",
}  # snnTorch's word -> a parameter of the held neuron


class _OwnForward(torch.autograd.Function):
    """``u >= 0`` in the dtype of ``u``; the gradient goes to ``soft`` unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, u: Tensor) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].to(ctx.dtype), None


class GradientOf(nn.Module):
    """The gradient of a host's spike function under our forward: ties fire, dtypes are kept."""

    def __init__(self, function: FireFunction) -> None:
        super().__init__()
        self.function = function

    def forward(self, u: Tensor) -> Tensor:
        return _OwnForward.apply(self.function(u), u.detach())


def no_gradient(u: Tensor) -> Tensor:
    """``u >= 0`` without a derivative: ``surrogate_disable=True``."""
    return (u >= 0).to(u.dtype).detach()


def _as_surrogate(spike_grad: SpikeGrad) -> SpikeGrad:
    ours = spike_grad is None or spike_grad is no_gradient
    if ours or isinstance(spike_grad, str | Surrogate | Custom | Soft | GradientOf):
        return spike_grad
    if not callable(spike_grad):
        kind = type(spike_grad).__name__
        raise TypeError(f"spike_grad must be a surrogate's name, a Surrogate or a callable, got {kind}")
    return GradientOf(spike_grad)


def _number(name: str, value: float | Tensor) -> float:
    """``value`` as a float: the neurons have one ``name`` for all elements, and it is not learned."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{name} is not learned here: give a number, or ask for learn_{name}=True where it is known"
            )
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number for the whole layer, got shape {tuple(value.shape)}")
    return float(value)


def _threshold(value: float | Tensor) -> float:
    theta = _number("threshold", value)
    if not (math.isfinite(theta) and theta > 0):
        raise ValueError(f"threshold must be positive and finite, got {theta!r}")
    return theta


def _beta(value: float | Tensor) -> float:
    beta = _number("beta", value)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta!r}")
    return beta


class LearnedThresholdMSF(neurons.MSF):
    """MSF that learns its first threshold: one number, or one for each channel.

    The other thresholds keep their distance to it. Its gradient is that of the spikes, ``-g(m - theta_d)`` summed over
    the thresholds; a reset to zero passes none. Runs step by step.

    Args:
        v_threshold: start value in volts, positive: a number or a tensor [C].
        settings: the arguments of :class:`msf_pmsn_plugins.neurons.MSF` with the charge ``"decay"``.
    """

    v_threshold: Any

    def __init__(self, v_threshold: float | Tensor, **settings: Any) -> None:
        if settings.get("thresholds") is not None:
            raise ValueError(
                "learn_threshold moves evenly spaced thresholds: leave out the explicit list, give D and threshold_step"
            )
        given = v_threshold if isinstance(v_threshold, Tensor) else torch.tensor(v_threshold, device="cpu")
        known = given.is_meta or bool((given.isfinite() & (given > 0)).all())
        if given.dim() > 1 or given.numel() == 0 or not known:
            raise ValueError(
                "a learned threshold starts positive and finite, as a number or one for each channel [C]; "
                f"got {v_threshold!r}"
            )
        super().__init__(**settings)
        start = torch.as_tensor(v_threshold).detach()
        start = start if start.is_floating_point() else start.to(torch.get_default_dtype())
        self.v_threshold = nn.Parameter(start.clone())

    @property
    def thresholds(self) -> list[float]:
        """The thresholds as they are now, in volts."""
        if self.v_threshold.dim():
            raise ValueError(
                "this MSF learns a threshold for each channel, there is no one list: see v_threshold"
            )
        first = float(self.v_threshold.detach())
        return [first + d * float(self.threshold_step) for d in range(self.D)]

    @thresholds.setter
    def thresholds(self, values: Sequence[float] | None) -> None:
        raise ValueError("these thresholds are learned: assign to threshold, the first one")

    def _settings(self, x: Tensor, dtype: torch.dtype) -> dict[str, Any]:
        first = self.v_threshold.to(dtype)
        if first.dim():
            axes = channel_axes(self.channel_dim, x)
            shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
            if math.prod(shape) != len(first):
                raise ValueError(
                    f"this MSF has a threshold for each of {len(first)} channels, but axis {self.channel_dim} of one "
                    f"step {tuple(x.shape)} has {math.prod(shape)}"
                )
            first = first.reshape(shape)
        return {
            "rate": self._decay if self.decay_logit is None else self._learned_decay(x, dtype),
            "thresholds": [first + d * self.threshold_step for d in range(self.D)],
            "surrogate": self.surrogate,
            "input_scale": self.input_scale,
            "v_reset": self.v_reset if self.reset_mode == "hard" else 0.0,
            "reset_mode": self.reset_mode,
            "detach_reset": self.detach_reset,
        }

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        if self.backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {self.backend!r} has no kernel for a learned threshold: set backend='auto'"
            )
        return self._loop(x_seq, state, membrane, lengths)

    def extra_repr(self) -> str:
        kind = "" if self.v_threshold.dim() == 0 else f" for each of {len(self.v_threshold)} channels"
        return (
            f"D={self.D}, v_threshold=learned{kind}, threshold_step={self.threshold_step}, "
            f"reset_mode={self.reset_mode!r}"
        )


class SnnTorchNeuron(PropertiesFirst, snn.SpikingNeuron):
    """A framework-neutral neuron as a snnTorch neuron; its ``mem`` is the neuron's state.

    ``forward(input_, mem=None)`` takes one step [B, *], or with ``sequence=True`` all steps at once, [T, B, *].
    Leaving ``mem`` out goes on from the stored state ``self.mem``, with and without ``init_hidden``. A neuron at
    rest stores empty tensors of shape (0,). Spikes have the dtype of the input, states are float32 (float64 for
    float64 input), also after ``.half()``; they follow the module's device and are not in its ``state_dict``.

    With ``sequence=True`` a call takes ``lengths=``, the valid steps of each sample [B] (or a bool mask [T, B]): padded
    steps emit 0 and touch neither state nor gradient. Inside a network set the attribute ``lengths`` instead, for which
    :func:`msf_pmsn_plugins.state.padded` is made.

    Args:
        held: the neuron that computes.
        spike_grad: None for the neuron's own surrogate, the name of one, a
            :class:`~msf_pmsn_plugins.surrogate.Surrogate`, or a callable such as ``snntorch.surrogate.atan()``: its
            gradient is used, not its forward (ours fires at ties), on the plain step loop.
        surrogate_disable: spikes without a derivative.
        init_hidden: keep the state in the module: ``mem`` is neither taken nor returned.
        inhibition: only the element of the largest membrane along axis 1 of [B, C, *] emits; the others reset as if
            they had.
        learn_threshold: must be False; :class:`MSF` alone learns its threshold.
        output: return ``(spk, mem)`` with ``init_hidden`` too.
        graded_spikes_factor: multiplies the output, once.
        learn_graded_spikes_factor: make that factor a parameter.
        sequence: take sequences [T, B, *], time first. ``mem`` is then the state after the last step.

    Raises:
        ValueError: a state of another batch shape (never rebuilt silently), an option that cannot be kept.
        TypeError: ``mem`` passed with ``init_hidden=True``; the stored state is then untouched.
    """

    _version = 1  # of the entries in a state dict: raise it when one changes its meaning
    neuron: Any  # a Neuron; subclasses name its class
    mem: Mem
    lengths: Lengths | None = None
    host_numbers: ClassVar[dict[str, str]] = {"threshold": "v_threshold"}  # in the state dict -> held

    def __init__(
        self,
        held: Neuron,
        spike_grad: SpikeGrad = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        sequence: bool = False,
    ) -> None:
        if learn_threshold:
            raise ValueError(
                f"learn_threshold=True is not supported by {type(self).__name__}: its threshold is a fixed number. "
                "Learn a gain in front of it instead (the weights before it, or a normalisation layer): a larger gain "
                "is a lower threshold"
            )
        spike_grad = no_gradient if surrogate_disable else _as_surrogate(spike_grad)
        if spike_grad is not None:
            held.surrogate = spike_grad
        super().__init__(
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
        )
        # The held neuron owns these two; properties below show them.
        del self._buffers["threshold"], self._buffers["reset_mechanism_val"]
        self.sequence = sequence
        self.neuron = held
        self.reset_mem()

    def __getattr__(self, name: str) -> Any:
        # Called where Python finds nothing, and directly by snnTorch's AttributeMonitor, which expects a buffer.
        return self.__dict__["mem"] if name == "mem" and "mem" in self.__dict__ else super().__getattr__(name)

    # What the held neuron owns, under snnTorch's names.

    def _show(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.graded_spikes_factor.device)

    @property
    def threshold(self) -> Tensor:
        """The (first) threshold in volts, 0-d: a copy, assign to change it. A learned one is the parameter itself."""
        own = self.neuron.v_threshold
        return own if isinstance(own, nn.Parameter) else self._show(float(own))

    @threshold.setter
    def threshold(self, value: float | Tensor) -> None:
        own = self.neuron.v_threshold
        if isinstance(own, nn.Parameter):
            with torch.no_grad():
                own.copy_(torch.as_tensor(value))
        else:
            self.neuron.v_threshold = _threshold(value)

    @property
    def spike_grad(self) -> Surrogate | FireFunction:
        """The spike function ``u -> spikes``, u = membrane - threshold in volts."""
        return self.neuron.surrogate

    @spike_grad.setter
    def spike_grad(self, value: SpikeGrad) -> None:
        if "neuron" in self._modules:  # snnTorch's constructor assigns its default before the neuron is there
            self.neuron.surrogate = _as_surrogate(value)

    @property
    def reset_mechanism(self) -> str:
        """``"zero"``, ``"subtract"`` or ``"none"``; a neuron without a choice subtracts what it fired."""
        mode = getattr(self.neuron, "reset_mode", "soft")
        # The ablations of PMSN that never reset; its others subtract.
        mode = {"floor": "soft", "serial": "soft", "cumulative": "none"}.get(mode, mode)
        return next(word for word, own in RESET_MODES.items() if own == mode)

    @reset_mechanism.setter
    def reset_mechanism(self, word: str) -> None:
        if word not in RESET_MODES:
            raise ValueError(f"unknown reset_mechanism {word!r}; known: {', '.join(map(repr, RESET_MODES))}")
        if isinstance(self.neuron, neurons.MSF):
            self.neuron.reset_mode = RESET_MODES[word]
        elif word != self.reset_mechanism:
            raise ValueError(
                f"{type(self).__name__} resets in its own way, reset_mechanism={self.reset_mechanism!r}; "
                f"{word!r} is not possible"
            )

    @property
    def reset_mechanism_val(self) -> Tensor:
        """The number of the reset mechanism in snnTorch, 0-d."""
        return self._show(snn.SpikingNeuron.reset_dict[self.reset_mechanism])

    # The state.

    def reset_mem(self) -> Mem:
        """Bring the neuron to rest, for a batch of any shape; return the state at rest (empty tensors)."""
        empty = torch.empty(0, device=self.graded_spikes_factor.device)
        self.mem = self._to_mem(self.neuron.initial_state(empty), empty)
        return self.mem

    def init_leaky(self) -> Mem:
        """The old name of :meth:`reset_mem`, which networks written for ``Leaky`` call."""
        return self.reset_mem()

    init_lapicque = init_leaky

    @classmethod
    def reset_hidden(cls) -> None:
        """Reset every neuron of this class in snnTorch's list, which lacks copies: prefer :func:`reset`."""
        for neuron in snn.SpikingNeuron.instances:
            if isinstance(neuron, cls):
                neuron.reset_mem()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the graph at the state of every neuron of this class in snnTorch's list; see :func:`detach`."""
        for neuron in snn.SpikingNeuron.instances:
            if isinstance(neuron, cls):
                _cut(neuron)

    def _to_mem(self, state: State, membrane: Tensor | None) -> Mem:
        """What ``forward`` returns as ``mem``, from the held neuron's state and its membrane before reset."""
        return state if len(state) > 1 else state[0]

    def _to_state(self, mem: State) -> State:
        """The held neuron's state, from ``mem`` as a tuple."""
        return mem

    def _resume(self, x: Tensor, mem: Mem) -> State:
        """The held neuron's state for the step ``x`` [B, *]."""
        self.neuron.check_input(x)
        parts = (mem,) if isinstance(mem, Tensor) else tuple(mem)
        if not (parts and all(isinstance(part, Tensor) for part in parts)):
            raise TypeError(f"mem of {type(self).__name__} must be a tensor or a tuple of tensors")
        if parts[0].shape == (0,):
            return self.neuron.initial_state(x)
        return self._to_state(self.neuron.check_state(x, parts, REMEDY))

    @property
    def carried(self) -> State | None:
        """The state as a tuple of tensors, None at rest. Assign to go on from another one."""
        parts = (self.mem,) if isinstance(self.mem, Tensor) else self.mem
        return None if parts[0].shape == (0,) else parts

    @carried.setter
    def carried(self, state: State | None) -> None:
        if state is None:
            self.reset_mem()
        else:
            self.mem = state if len(state) > 1 else state[0]

    # Computing.

    def forward(self, input_: Tensor, mem: Mem | None = None, lengths: Lengths | None = None) -> Any:
        """One step, ``input_`` [B, *], or with ``sequence=True`` all steps, [T, B, *], of which ``lengths`` are valid.

        Returns ``spk``, of the shape of ``input_``, if ``init_hidden`` and not ``output``; else ``(spk, mem)``.
        """
        _refuse_tracers(type(self).__name__, input_)
        if self.init_hidden and mem is not None:
            raise TypeError("mem cannot be passed to a neuron with init_hidden=True: it keeps its own state")
        lengths = self.lengths if lengths is None else lengths
        if lengths is not None and not self.sequence:
            raise ValueError("lengths belong to sequences: set sequence=True, or lengths=None")
        mem = self.mem if mem is None else mem
        spk, mem = self._sequence(input_, mem, lengths) if self.sequence else self._step(input_, mem)
        spk = spk * self.graded_spikes_factor.to(spk.dtype)
        self.mem = mem
        return spk if self.init_hidden and not self.output else (spk, mem)

    def _step(self, x: Tensor, mem: Mem) -> tuple[Tensor, Mem]:
        s, state, m = self._one(x, self._resume(x, mem))
        return self._inhibit(s, m, 1), self._to_mem(state, m)

    def _sequence(self, x_seq: Tensor, mem: Mem, lengths: Lengths | None) -> tuple[Tensor, Mem]:
        if not isinstance(x_seq, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x_seq).__name__}")
        if x_seq.dim() < 2:
            raise ValueError(
                f"sequence=True takes [T, B, *], time first; got shape {tuple(x_seq.shape)}. "
                "For single steps set sequence=False"
            )
        if len(x_seq) == 0:  # nothing happens, but what is wrong is still said
            self._resume(x_seq.new_empty(x_seq.shape[1:]), mem)
            return torch.empty_like(x_seq), mem
        s, state, m = self._all(x_seq, self._resume(x_seq[0], mem), lengths)
        return self._inhibit(s, m, 2), self._to_mem(state, self._last(x_seq, m, mem, lengths))

    def _last(self, x_seq: Tensor, m_seq: Tensor | None, mem: Mem, lengths: Lengths | None) -> Tensor | None:
        """Each sample's membrane at its last valid step, as a copy; what it was before where there is none."""
        if m_seq is None:
            return None
        if lengths is None:
            return m_seq[-1].clone()  # the last membrane alone must not keep all of them in memory
        live = valid_steps(x_seq, lengths)
        last = (live * torch.arange(1, len(live) + 1, device=live.device).unsqueeze(1)).amax(0)
        last = last.reshape(-1, *[1] * (m_seq.dim() - 2)).expand(m_seq.shape[1:])
        before = torch.zeros_like(m_seq[0])
        if isinstance(mem, Tensor) and mem.shape != (0,):
            before = mem
        return torch.where(last > 0, m_seq.gather(0, (last - 1).clamp(min=0).unsqueeze(0))[0], before)

    def _one(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        return self.neuron.step(x, state)

    def _all(
        self, x_seq: Tensor, state: State, lengths: Lengths | None
    ) -> tuple[Tensor, State, Tensor | None]:
        return self.neuron.sequence(x_seq, state, membrane=self.inhibition, lengths=lengths)

    def _inhibit(self, s: Tensor, m: Tensor | None, axis: int) -> Tensor:
        if not self.inhibition or m is None:
            return s
        return s * _winner(m, axis).to(s.dtype)

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """Spikes of the membranes ``mem`` [B, C, *], of the largest along axis 1 only."""
        return self.fire(mem) * _winner(mem, 1)

    # Moving, saving, loading.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SnnTorchNeuron:
        super()._apply(fn, recurse)

        def move(part: Tensor) -> Tensor:  # the device alone: half precision would lose spikes
            return part.to(fn(torch.empty(0, device=part.device)).device)

        self.mem = move(self.mem) if isinstance(self.mem, Tensor) else tuple(map(move, self.mem))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mem": _detached(self.mem)}  # a copy or a file has no graph

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "reset_mechanism_val"] = self.reset_mechanism_val
        for name, own in self.host_numbers.items():  # double, so that a number comes back as it was
            value = getattr(self.neuron, own)
            if not isinstance(value, Tensor):  # a learned one is a parameter of the held neuron
                destination[prefix + name] = torch.tensor(value, dtype=torch.float64)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        refuse_newer(self, prefix, local_metadata, error_msgs)
        file_under_neuron(state_dict, prefix, self.neuron)
        words = {number: word for word, number in snn.SpikingNeuron.reset_dict.items()}
        for name in ("reset_mechanism_val", *self.host_numbers):
            if prefix + name not in state_dict:
                continue  # snnTorch's own entries are not demanded: a state dict of the held neuron is complete
            value = state_dict.pop(prefix + name)
            try:
                if name == "reset_mechanism_val":
                    self.reset_mechanism = words.get(int(value), value)
                else:
                    setattr(self, name, value)
            except (ValueError, RuntimeError) as error:
                error_msgs.append(f"{prefix}{name}: {error}")
                continue
            own = self.neuron._parameters.get(LEARNED.get(name, ""))
            if own is not None:  # a number of the host's, learned here: the parameter has just taken it
                state_dict.setdefault(f"{prefix}neuron.{LEARNED[name]}", own.detach().clone())
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "graded_spikes_factor" in missing_keys and "graded_spikes_factor" in self._buffers:
            missing_keys.remove(prefix + "graded_spikes_factor")

    def extra_repr(self) -> str:
        return f"init_hidden={self.init_hidden}, output={self.output}, sequence={self.sequence}"


class MSF(SnnTorchNeuron):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155) as a snnTorch neuron.

    Emits integer counts 0..D. ``mem`` is the membrane before reset, volts, [B, *]; the next step applies the reset,
    as ``snntorch.Leaky`` does. With D = 1 it is ``Leaky``, bit for bit, except that a membrane exactly on the
    threshold fires.

    Args:
        beta: factor on the membrane per step, in [0, 1].
        threshold: first threshold, volts.
        D: number of thresholds.
        threshold_step: spacing of the thresholds, volts.
        reset_mechanism: ``"zero"`` (published): any spike resets; ``"subtract"``: the next membrane loses
            ``threshold`` volts per spike, undecayed (the default of ``Leaky``; step by step, no fast path);
            ``"none"``.
        state_quant: a callable applied to the membrane before it fires, such as
            ``snntorch.functional.quant.state_quant()``; runs step by step.
        learn_beta: learn the decay, as the sigmoid of ``neuron.decay_logit``; ``beta`` is then its start value in
            (0, 1), a number or a tensor [C], one for each channel.
        learn_threshold: learn the first threshold; ``threshold`` is then its start value, a number or a tensor [C]. The
            spacing stays. Runs step by step.
        reset_delay: False resets in the step of the spike, with a gradient through the reset, and returns the membrane
            after it, as ``Leaky(reset_delay=False)`` does. Spikes are the same as with True unless ``"subtract"`` is
            chosen, whose subtraction then decays too.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``threshold`` and
            ``threshold_step``.
        channel_dim: where the channels of a ``beta`` or ``threshold`` per channel lie in the per-step tensor [B, C, *].
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.

    The other arguments, errors and the call are those of :class:`SnnTorchNeuron`. Default surrogate: rectangular
    of half-width ``threshold_step/2``.
    """

    neuron: neurons.MSF
    host_numbers: ClassVar[dict[str, str]] = {"threshold": "v_threshold", "beta": "decay"}

    def __init__(
        self,
        beta: float | Tensor = 0.25,
        threshold: float | Tensor = 1.0,
        D: int = 4,
        threshold_step: float = 1.0,
        reset_mechanism: str = "zero",
        spike_grad: SpikeGrad = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        state_quant: Callable[[Tensor], Tensor] | bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        sequence: bool = False,
        backend: str = "auto",
        *,
        learn_beta: bool = False,
        reset_delay: bool = True,
        thresholds: Sequence[float] | None = None,
        channel_dim: int | Sequence[int] = 1,
    ) -> None:
        if inhibition and not reset_delay:
            raise ValueError(
                "inhibition=True needs reset_delay=True: the losers reset in the next step (where Leaky doubles them)"
            )
        if state_quant and not callable(state_quant):
            raise ValueError(f"state_quant must be False or a callable mem -> mem, got {state_quant!r}")
        if reset_mechanism not in RESET_MODES:
            raise ValueError(
                f"unknown reset_mechanism {reset_mechanism!r}; known: {', '.join(map(repr, RESET_MODES))}"
            )
        kind: Any = LearnedThresholdMSF if learn_threshold else neurons.MSF
        self._reset_delay = bool(reset_delay)
        super().__init__(
            kind(
                D=D,
                decay=beta if learn_beta else _beta(beta),
                learn_decay=learn_beta,
                channel_dim=channel_dim,
                thresholds=thresholds,
                v_threshold=threshold if learn_threshold else _threshold(threshold),
                threshold_step=threshold_step,
                reset_mode=RESET_MODES[reset_mechanism],
                detach_reset=self._reset_delay,
                backend=backend,
            ),
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
            sequence=sequence,
        )
        self.state_quant = state_quant

    @property
    def beta(self) -> Tensor:
        """The decay, 0-d, or of a learned one its present value. Assign to change it: the tensor is a copy."""
        decay = self.neuron.decay
        return decay.detach() if isinstance(decay, Tensor) else self._show(decay)

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self.neuron.decay = value if self.neuron.decay_logit is not None else _beta(value)

    @property
    def reset_delay(self) -> bool:
        """Whether ``mem`` is the membrane before the reset. Chosen at construction."""
        return self._reset_delay

    def _to_mem(self, state: State, membrane: Tensor | None) -> Mem:
        if not self.reset_delay:
            return state[0]
        assert membrane is not None
        return membrane

    def _to_state(self, mem: State) -> State:
        (m,) = mem
        if self.reset_delay and self.neuron.reset_mode == "hard":
            return (torch.where(m - self._first(m) >= 0, 0.0, m),)
        return mem

    def _first(self, m: Tensor) -> float | Tensor:
        """The first threshold, to be compared with membranes ``m`` [B, *]."""
        return self.neuron._settings(m, m.dtype)["thresholds"][0]

    def _fire(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """The counts that membranes ``m`` fire, and ``m`` after the held neuron's reset."""
        alone = {"rate": 0.0, "input_scale": 1.0, "v_reset": 0.0}
        s, after, _ = msf_step(m, torch.zeros_like(m), **{**self.neuron._settings(m, m.dtype), **alone})
        return s, after

    @property
    def _by_hand(self) -> bool:
        """Whether the held neuron's own step does not do: its soft reset is another one, and it does not quantise."""
        return self.neuron.reset_mode == "soft" or bool(self.state_quant)

    def _one(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        s, (v,), m = self.neuron.step(x, state)
        if not self._by_hand:
            return s, (v,), m
        subtract = self.neuron.reset_mode == "soft"
        removed = self._fire(state[0])[0].detach() if subtract else None
        if removed is not None:  # once per spike and undecayed
            m = m - removed * self._first(m)
        if self.state_quant:
            m = self.state_quant(m)
        s, v = self._fire(m)
        if removed is not None:  # without a delay, less what has just been removed
            v = m if self.reset_delay else m - (s - removed) * self._first(m)
        return s.to(x.dtype), (v,), m

    def _all(
        self, x_seq: Tensor, state: State, lengths: Lengths | None
    ) -> tuple[Tensor, State, Tensor | None]:
        if not self._by_hand:
            return self.neuron.sequence(x_seq, state, membrane=self.reset_delay, lengths=lengths)
        s_seq, m_seq = [], []
        live_seq = None
        if lengths is not None:
            live_seq = valid_steps(x_seq, lengths)
            live_seq = live_seq.reshape(*live_seq.shape, *[1] * (x_seq.dim() - 2))
        for t, x in enumerate(x_seq.unbind(0)):
            if live_seq is None:
                s, state, m = self._one(x, state)
            else:
                s, (after,), m = self._one(torch.where(live_seq[t], x, 0.0), state)
                state = (torch.where(live_seq[t], after, state[0]),)
                s, m = torch.where(live_seq[t], s, 0.0), torch.where(live_seq[t], m, 0.0)
            s_seq.append(s)
            m_seq.append(m)
        return torch.stack(s_seq), state, torch.stack(m_seq)

    def fire(self, mem: Tensor) -> Tensor:
        """Counts of the membranes ``mem`` [B, *] in volts, times the graded factor."""
        s, _ = self._fire(self.state_quant(mem) if self.state_quant else mem)
        return s * self.graded_spikes_factor.to(s.dtype)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """How many thresholds ``"subtract"`` removes from ``mem``, else 1 where it fires; without a gradient."""
        s = self._fire(mem)[0].detach()
        return s if self.reset_mechanism == "subtract" else s.clamp(max=1)


class PMSN(SnnTorchNeuron):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917) as a snnTorch neuron.

    ``mem`` is the tuple ``(v, z)``: the residual after reset in volts [B, *], which carries no gradient, and
    the hidden state, complex [B, *, compartments - 1].

    Args:
        channels: size of the channel axis; None takes it from the first input or a loaded state dict.
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [B, C, *], for sequences too; a tuple of adjacent axes
            counts as one axis of their product.
        threshold: volts.
        state_quant: must be False, the hidden state is complex.
        init: ``"sequence"``, ``"shd"`` or ``"imagenet"``: the published initialisations.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.
        reset_mode, burst, coeff, residual, tied, context, dt_scale: variants, as in
            :class:`msf_pmsn_plugins.neurons.PMSN`; ``.neuron`` holds them.

    The other arguments, errors and the call are those of :class:`SnnTorchNeuron`. Default surrogate: triangle
    of half-width 1 V. Its reset removes all whole thresholds.
    """

    neuron: neurons.PMSN

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        sequence: bool = False,
        init: str = "sequence",
        backend: str = "auto",
        *,
        reset_mode: str = "floor",
        burst: bool | str = False,
        coeff: float = 1.0,
        residual: str = "float",
        tied: bool = False,
        context: str = "local",
        dt_scale: float = 1.0,
    ) -> None:
        if state_quant:
            raise ValueError(
                "state_quant is not supported by PMSN: its hidden state is complex, and no quantiser of snnTorch "
                "fits. Quantise the weights or the input instead"
            )
        super().__init__(
            neurons.PMSN(
                channels=channels,
                compartments=compartments,
                channel_dim=channel_dim,
                v_threshold=_threshold(threshold),
                init=init,
                reset_mode=reset_mode,
                burst=burst,
                coeff=coeff,
                residual=residual,
                tied=tied,
                context=context,
                dt_scale=dt_scale,
                backend=backend,
            ),
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            learn_threshold=learn_threshold,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
            sequence=sequence,
        )

    @property
    def channels(self) -> int | None:
        """Size of the channel axis, None before it is known."""
        return self.neuron.channels

    def _to_mem(self, state: State, membrane: Tensor | None) -> Mem:
        r, z = state
        return r * float(self.neuron.v_threshold), z

    def _to_state(self, mem: State) -> State:
        v, z = mem
        return v / float(self.neuron.v_threshold), z


class ParallelIF(SnnTorchNeuron):
    """Integrate and fire without leak, all time steps at once: the parallel reset of PMSN as a neuron of its own.

    ``mem`` is the residual after reset in volts [B, *], which carries no gradient. Negative inputs are clamped and a
    reset removes all whole thresholds; see :class:`msf_pmsn_plugins.neurons.ParallelIF`.

    Args:
        threshold: volts.
        burst: emit the number of removed thresholds instead of one spike.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.
        options: the other arguments of :class:`SnnTorchNeuron`. Default surrogate: triangle of half-width 1 V.
    """

    neuron: neurons.ParallelIF

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        burst: bool | str = False,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(neurons.ParallelIF(_threshold(threshold), burst=burst, backend=backend), **options)

    def _to_mem(self, state: State, membrane: Tensor | None) -> Mem:
        return state[0] * float(self.neuron.v_threshold)

    def _to_state(self, mem: State) -> State:
        return (mem[0] / float(self.neuron.v_threshold),)


def _refuse_tracers(name: str, x: Any) -> None:
    """Raise where a tracer that does not know this neuron would make something wrong of it."""
    instead = "use msf_pmsn_plugins.nir.export_to_nir"
    if isinstance(x, torch.fx.Proxy):
        raise TypeError(
            f"{name} cannot be traced symbolically: for NIR {instead}, elsewhere name it as a leaf module"
        )
    if not torch.compiler.is_compiling() and nn.Module.__call__.__module__ == "nirtorch.graph":
        raise TypeError(
            f"snntorch.export_nir and nirtorch.extract_nir_graph do not know {name} and may leave an empty node in "
            f"the graph: {instead}"
        )


def _winner(m: Tensor, axis: int) -> Tensor:
    """1 at the largest of ``m`` along ``axis``, 0 elsewhere; a NaN loses."""
    if m.dim() <= axis:
        raise ValueError("inhibition=True compares along axis 1 of [B, C, *]: this input has none")
    m = torch.where(m.isnan(), -torch.inf, m)
    return torch.zeros_like(m).scatter(axis, m.argmax(axis, keepdim=True), 1.0)


def _detached(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_detached, value))
    cut = isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)
    return value.detach() if cut else value


def _cut(module: nn.Module) -> None:
    """Detach the states of one neuron: buffers in snnTorch's, attributes in ours."""
    for store in (module._buffers, vars(module)):
        for name, value in store.items():
            store[name] = _detached(value)


def reset(net: nn.Module) -> None:
    """Bring every neuron of ``net`` to rest, ours and snnTorch's, nested and copied ones included.

    ``snntorch.utils.reset`` does not reach neurons that it does not know, nested ones, or copies.

    Raises:
        TypeError: a neuron that keeps ``mem`` but has no ``reset_mem()``.
    """
    for name, module in net.named_modules():
        if callable(getattr(module, "reset_mem", None)):
            module.reset_mem()
        elif isinstance(module, snn.SpikingNeuron) and getattr(module, "mem", None) is not None:
            raise TypeError(f"{type(module).__name__} at {name!r} keeps `mem` but has no reset_mem()")


def detach(net: nn.Module) -> None:
    """Cut the graph at every neuron's state in ``net``: truncated backpropagation through time."""
    for module in net.modules():
        if isinstance(module, snn.SpikingNeuron):
            _cut(module)


@contextmanager
def patched() -> Iterator[None]:
    """Inside, snnTorch's own calls are right for the neurons here; outside, snnTorch is as it was.

    ``snntorch.utils.reset`` is :func:`reset`; ``snntorch.backprop.BPTT``, ``TBPTT`` and ``RTRL`` are those of this
    module; ``snntorch.import_nir.import_from_nir`` refuses a graph with our nodes (0.9.4 drops what it does not know).
    A name that was imported before (``from snntorch.utils import reset``) stays what it was.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # for the import alone
        from snntorch import backprop, utils
    places: list[tuple[Any, str, Any]] = [(utils, "reset", reset)]
    places += [(backprop, driver.__name__, driver) for driver in (BPTT, TBPTT, RTRL)]
    try:
        from snntorch import import_nir
    except ImportError:  # without nir there is nothing to refuse
        pass
    else:
        places.append((import_nir, "import_from_nir", _refusing(import_nir.import_from_nir)))
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, ours in places:
            setattr(module, name, ours)
        yield
    finally:
        for (module, name, _), old in zip(places, before, strict=True):
            setattr(module, name, old)


def _refusing(importer: Callable[..., Any]) -> Callable[..., Any]:
    def import_from_nir(graph: Any, *args: Any, **kwargs: Any) -> Any:
        for name, node in graph.nodes.items():
            if type(node).__module__.startswith("msf_pmsn_plugins."):
                raise TypeError(
                    f"snnTorch does not know the node {name!r} ({type(node).__name__}): use "
                    "msf_pmsn_plugins.nir.import_from_nir"
                )
        return importer(graph, *args, **kwargs)

    return import_from_nir


# Training by the step, under the names of snntorch.backprop, whose drivers know snnTorch's own neurons alone.

MEMBRANE_LOSSES = ("mse_membrane_loss", "ce_max_membrane_loss")  # they take membranes, the others spikes
TIME_LOSSES = ("mse_temporal_loss", "ce_temporal_loss")


class _AnySpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spk_rec: Tensor) -> Tensor:
        return (spk_rec > 0).to(spk_rec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def any_spike(spk_rec: Tensor) -> Tensor:
    """1 where a count is above 0, of any shape; the gradient passes unchanged.

    What asks for the *time* of a spike takes a record of 0 and 1: ``mse_temporal_loss``, ``ce_temporal_loss`` and
    ``accuracy_temporal`` multiply the time by the count and so are wrong with counts.
    """
    return _AnySpike.apply(spk_rec)


def TBPTT(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
    K: int | bool = 1,
) -> Tensor:
    """One epoch of truncated backpropagation through time: an update after every ``K`` steps.

    The call of ``snntorch.backprop.TBPTT``, for nets of any neurons, nested ones too. It differs in three things: ``K``
    may be given for input that varies in time, a last window shorter than ``K`` counts by its share of the steps, and
    the criterion may be any callable.

    Args:
        net: keeps its states (``init_hidden=True``) and returns spikes [B, C], or a tuple (spikes, .., membrane).
        dataloader: batches of data and targets.
        optimizer: its step follows each window.
        criterion: a loss of ``snntorch.functional`` or ``(spikes [K, B, C], targets) -> loss``; ``mse_membrane_loss``
            and ``ce_max_membrane_loss`` are given the membranes.
        num_steps: number of steps, for data that does not vary in time; else False.
        time_var: data is a sequence, [T, B, *]; False repeats one input [B, *].
        time_first: False for data [B, T, *].
        regularization: a function of the window's spikes, added to the loss; or False.
        device: where to compute.
        K: steps of a window; False takes all.

    Returns:
        the loss, averaged over steps and batches, without a graph.

    Raises:
        ValueError: arguments that contradict one another, a neuron with ``sequence=True``, a temporal loss on counts
            above 1, a loss on membranes that the net does not return.
    """
    if time_var and num_steps:
        raise ValueError(
            "num_steps is for data that does not vary in time: leave it out, or set time_var=False"
        )
    if not time_var and (not num_steps or not time_first):
        raise ValueError("time_var=False repeats one input [B, *]: give num_steps, and leave time_first=True")
    for path, module in net.named_modules():
        if isinstance(module, SnnTorchNeuron) and module.sequence:
            raise ValueError(f"{path!r} takes whole sequences, this driver feeds steps: set sequence=False")
    net = net.to(device)
    total, batches = torch.zeros((), device=device), 0
    for data, targets in dataloader:
        net.train()
        data, targets = data.to(device), targets.to(device)
        steps = data.unbind(0 if time_first else 1) if time_var else [data] * int(num_steps)
        window = int(K) or len(steps)
        if window > len(steps):
            raise ValueError(f"K={K} is more than the {len(steps)} steps of the data")
        reset(net)
        for start in range(0, len(steps), window):
            part = steps[start : start + window]
            loss = _window_loss(net, part, targets, start, criterion, regularization)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            detach(net)
            total += loss.detach().sum() * (len(part) / len(steps))
        batches += 1
    if not batches:
        raise ValueError("the dataloader gave no batch")
    return total / batches


def _window_loss(
    net: nn.Module,
    steps: Sequence[Tensor],
    targets: Tensor,
    start: int,
    criterion: Callable[[Tensor, Tensor], Tensor],
    regularization: Callable[[Tensor], Tensor] | bool,
) -> Tensor:
    """The loss over the steps ``start, start + 1, ..``, from the net's present state."""
    outputs = [net(x) for x in steps]
    spk_rec = torch.stack([out[0] if isinstance(out, tuple) else out for out in outputs])
    record, name = spk_rec, getattr(criterion, "__name__", "")
    if name in TIME_LOSSES and bool((spk_rec > 1).any()):
        raise ValueError(
            f"{name} multiplies the time of a spike by its count, so it is wrong for counts above 1: pass "
            "criterion=lambda spk_rec, targets: loss(any_spike(spk_rec), targets)"
        )
    if name in MEMBRANE_LOSSES:
        mems = [out[-1] if isinstance(out, tuple) else None for out in outputs]
        if not all(isinstance(mem, Tensor) for mem in mems):
            raise ValueError(
                f"{name} needs the membranes as the last of what the net returns, a tensor [B, C]: set output=True on "
                "the last neuron. PMSN's mem is what its reset leaves, with the hidden state: take a loss on spikes"
            )
        record = torch.stack([mem for mem in mems if mem is not None])
    if getattr(criterion, "time_var_targets", False):
        targets = targets[start : start + len(steps)]
    loss = criterion(record, targets)
    return loss + regularization(spk_rec) if callable(regularization) else loss


def BPTT(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One epoch of backpropagation through time: an update after each batch. Arguments as in :func:`TBPTT`."""
    options = (num_steps, time_var, time_first, regularization, device)
    return TBPTT(net, dataloader, optimizer, criterion, *options, K=False)


def RTRL(
    net: nn.Module,
    dataloader: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    criterion: Callable[[Tensor, Tensor], Tensor],
    num_steps: int | bool = False,
    time_var: bool = True,
    time_first: bool = True,
    regularization: Callable[[Tensor], Tensor] | bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One epoch of what snnTorch calls RTRL: an update after each step, ``K=1``. Arguments as in :func:`TBPTT`."""
    options = (num_steps, time_var, time_first, regularization, device)
    return TBPTT(net, dataloader, optimizer, criterion, *options, K=1)


# What the swap asks of a host.

NODES: dict[str, type[SnnTorchNeuron]] = {"msf": MSF, "pmsn": PMSN}
WORDS = {"v_threshold": "threshold", "surrogate_function": "spike_grad"}  # the swap's words in this host
RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}


def is_stock(module: nn.Module) -> bool:
    """Whether the class of ``module`` is this host's own: not a subclass or a copy."""
    return type(module).__module__.startswith("snntorch.")


def is_readout(module: Any) -> bool:
    """Whether ``module`` integrates without firing: its threshold is infinite."""
    threshold = getattr(module, "threshold", None)
    return isinstance(threshold, Tensor) and threshold.numel() > 0 and bool(threshold.isinf().all())


def _bases(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def site_charges(module: nn.Module) -> list[dict[str, Any]]:
    """One entry, for a subclass or a copy of ``Leaky``: it may charge as ``Leaky`` does.

    Raises:
        ValueError: another neuron.
    """
    if "Leaky" not in _bases(module):
        raise ValueError(
            f"{type(module).__name__} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep "
            "this site with rules={path: swap.Keep()}"
        )
    return [{}]


def site_settings(module: Any, step_mode: str | None = None) -> dict[str, Any]:
    """What both targets take over from a neuron; without ``threshold`` where it has none that is a number.

    Raises:
        ValueError: a neuron whose states are not the one ``mem`` that a swapped neuron takes and returns.
    """
    if not {"Leaky", "Lapicque"} & set(_bases(module)):
        raise ValueError(
            f"{type(module).__name__} takes and returns other states than (spk, mem): keep this site with "
            "rules={path: swap.Keep()}"
        )
    learned = isinstance(module.graded_spikes_factor, nn.Parameter)
    settings = {
        "init_hidden": module.init_hidden,
        "inhibition": module.inhibition,
        "output": module.output,
        "surrogate_disable": module.surrogate_disable,
        "graded_spikes_factor": module.graded_spikes_factor.detach().clone(),
        "learn_graded_spikes_factor": learned,
    }
    plain = module.threshold.numel() == 1 and not isinstance(module.threshold, nn.Parameter)
    return {**settings, "threshold": float(module.threshold)} if plain else settings


def site_dynamics(
    module: Any, step_mode: str | None = None, charge: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that MSF keeps of a ``Leaky`` under ``dynamics="site"``, as arguments of :class:`MSF`.

    Raises:
        ValueError: a neuron whose dynamics have no entry.
    """
    site_charges(module)
    if charge is None and type(module) is not snn.Leaky:
        raise ValueError(
            f"{type(module).__name__} has dynamics of its own that MSF cannot keep: use dynamics='published', or keep "
            "this site with rules={path: swap.Keep()}"
        )
    for name in ("beta", "threshold"):
        value = getattr(module, name)
        if isinstance(value, nn.Parameter) or value.numel() != 1:
            raise ValueError(
                f"its {name} is learned or differs between neurons, which MSF cannot keep: keep this site with "
                "rules={path: swap.Keep()}"
            )
    return {
        **site_settings(module),
        "beta": float(module.beta.clamp(0, 1)),
        # Leaky resets by what it was built with; its reset_mechanism may have been renamed since
        "reset_mechanism": RESETS[module.state_function.__name__],
        "spike_grad": None if module.surrogate_disable else module.spike_grad,
        "state_quant": module.state_quant,
        "reset_delay": module.reset_delay,
    }


def as_stock(node: SnnTorchNeuron) -> tuple[nn.Module, list[str]]:
    """A ``Leaky`` in place of one of our neurons, and what it loses by that.

    Raises:
        ValueError: no stock neuron comes near.
    """
    if node.sequence:
        raise ValueError("snnTorch's Leaky takes single steps, not sequences: keep this site")
    held = node.neuron
    lost: list[str] = []
    own: dict[str, Any]
    if isinstance(node, MSF):
        if held.decay_logit is not None:
            lost.append("the learned beta becomes a constant")
            if held.decay_logit.numel() != 1:
                raise ValueError("a beta for each channel becomes no Leaky here: keep this site")
        if held.D > 1:
            lost.append(f"counts 0..{held.D} become 0 and 1")
        own = {"beta": float(node.beta), "state_quant": node.state_quant}
        own |= {"reset_mechanism": node.reset_mechanism, "reset_delay": node.reset_delay}
    else:
        parameters = sum(p.numel() for p in node.parameters())
        lost.append(f"{type(node).__name__} with its {parameters} parameters becomes a Leaky with beta=0.5")
        own = {"beta": 0.5, "reset_mechanism": "zero"}
    gradient: Any = node.spike_grad
    stock = snn.Leaky(
        threshold=float(node.threshold),
        spike_grad=gradient.function if isinstance(gradient, GradientOf) else gradient,
        surrogate_disable=node.surrogate_disable,
        init_hidden=node.init_hidden,
        inhibition=node.inhibition,
        output=node.output,
        graded_spikes_factor=node.graded_spikes_factor.detach().clone(),
        learn_graded_spikes_factor=isinstance(node.graded_spikes_factor, nn.Parameter),
        **own,
    )
    return stock, lost


def reset_net(model: nn.Module) -> None:
    """Bring the neurons of ``model`` to rest."""
    reset(model)


def after_swap(model: nn.Module) -> None:
    """Nothing: snnTorch caches nothing about the modules of ``model``."""
