"""MSF and PMSN as snnTorch neurons, for snnTorch 1.0.0 and 0.9.4.

A skin holds a framework-neutral neuron (``.neuron``) and only translates conventions: constructor words, hidden
or passed state, return arity, the moment of the reset. ``threshold``, ``beta``, ``reset_mechanism`` and
``spike_grad`` are kept in the held neuron alone; the skin shows them under snnTorch's names and takes new values
by assignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import neurons
from .neurons.base import Lengths, Neuron, PropertiesFirst, State, file_under_neuron, valid_steps
from .surrogate import Custom, FireFunction, Soft, Surrogate

try:
    import snntorch as snn
except ImportError as error:
    raise ImportError(
        f"msf_pmsn_plugins.snntorch cannot import snnTorch ({error}): "
        'pip install "msf-pmsn-plugins[snntorch]"'
    ) from error

__all__ = ["MSF", "PMSN", "ParallelIF", "SnnTorchNeuron", "detach", "reset"]

Mem = Tensor | tuple[Tensor, ...]
SpikeGrad = str | Surrogate | FireFunction | None

REMEDY = "call msf_pmsn_plugins.snntorch.reset(net) between batches"
RESET_MODES = {"zero": "hard", "subtract": "soft", "none": "none"}  # snnTorch's word -> the held neuron's


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
            raise ValueError(f"{name} cannot be learned by this neuron: give a number")
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
        learn_threshold: must be False, the threshold is not learned.
        output: return ``(spk, mem)`` with ``init_hidden`` too.
        graded_spikes_factor: multiplies the output, once.
        learn_graded_spikes_factor: make that factor a parameter.
        sequence: take sequences [T, B, *], time first. ``mem`` is then the state after the last step.

    Raises:
        ValueError: a state of another batch shape (never rebuilt silently), an option that cannot be kept.
        TypeError: ``mem`` passed with ``init_hidden=True``; the stored state is then untouched.
    """

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
                "learn_threshold=True is not supported: the threshold is a fixed number. Learn a gain in front "
                "of the neuron instead (the weights before it, or a normalisation layer)"
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
        """The (first) threshold in volts, 0-d. Assign to change it: the tensor is a copy."""
        return self._show(float(self.neuron.v_threshold))

    @threshold.setter
    def threshold(self, value: float | Tensor) -> None:
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
            except ValueError as error:
                error_msgs.append(f"{prefix}{name}: {error}")
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
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``threshold`` and
            ``threshold_step``.
        channel_dim: where the channels of a ``beta`` per channel lie in the per-step tensor [B, C, *].
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
        thresholds: Sequence[float] | None = None,
        channel_dim: int | Sequence[int] = 1,
    ) -> None:
        if state_quant and not callable(state_quant):
            raise ValueError(f"state_quant must be False or a callable mem -> mem, got {state_quant!r}")
        if reset_mechanism not in RESET_MODES:
            raise ValueError(
                f"unknown reset_mechanism {reset_mechanism!r}; known: {', '.join(map(repr, RESET_MODES))}"
            )
        super().__init__(
            neurons.MSF(
                D=D,
                decay=beta if learn_beta else _beta(beta),
                learn_decay=learn_beta,
                channel_dim=channel_dim,
                thresholds=thresholds,
                v_threshold=_threshold(threshold),
                threshold_step=threshold_step,
                reset_mode=RESET_MODES[reset_mechanism],
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
        self.state_quant = state_quant

    @property
    def beta(self) -> Tensor:
        """The decay, 0-d, or of a learned one its present value. Assign to change it: the tensor is a copy."""
        decay = self.neuron.decay
        return decay.detach() if isinstance(decay, Tensor) else self._show(decay)

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self.neuron.decay = value if self.neuron.decay_logit is not None else _beta(value)

    def _to_mem(self, state: State, membrane: Tensor | None) -> Mem:
        assert membrane is not None
        return membrane

    def _to_state(self, mem: State) -> State:
        (m,) = mem
        if self.neuron.reset_mode != "hard":
            return mem
        return (torch.where(m - self.neuron.thresholds[0] >= 0, 0.0, m),)

    def _counts(self, m: Tensor) -> Tensor:
        """The counts that membranes ``m`` fire: a step from rest with ``m`` as the current."""
        return self.neuron.step(m, self.neuron.initial_state(m))[0]

    def _one(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        s, _, m = self.neuron.step(x, state)
        if self.neuron.reset_mode == "soft":  # the state is the last membrane: subtract here, after the decay
            m = m - self._counts(state[0]).detach() * self.neuron.thresholds[0]
        if self.state_quant:
            m = self.state_quant(m)
        if self.neuron.reset_mode == "soft" or self.state_quant:
            s = self._counts(m).to(x.dtype)
        return s, self._to_state((m,)), m

    def _all(
        self, x_seq: Tensor, state: State, lengths: Lengths | None
    ) -> tuple[Tensor, State, Tensor | None]:
        if self.neuron.reset_mode != "soft" and not self.state_quant:
            return self.neuron.sequence(x_seq, state, membrane=True, lengths=lengths)
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
        s = self._counts(self.state_quant(mem) if self.state_quant else mem)
        return s * self.graded_spikes_factor.to(s.dtype)


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
