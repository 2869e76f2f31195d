"""A framework-neutral neuron as a snnTorch neuron: state, return arity, and its settings in the host's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self
from weakref import WeakSet

import snntorch as snn
import torch
from torch import Tensor

from .. import neurons
from ..lengths import Lengths, first_given, valid_steps
from ..neurons.autograd import Recomputation, recomputation, refuse_export, undisturbed, usable
from ..neurons.base import (
    HELD,
    Neuron,
    PropertiesFirst,
    State,
    add_prefix,
    first_step,
    keep_settings,
    refuse_newer,
)
from ..neurons.computed import renew, sources, value_of
from ..neurons.shown import of_neuron
from ..surrogate import FireFunction, Surrogate
from ..tensors import floating
from .membrane import Membrane
from .numbers import as_threshold, one_threshold
from .states import cut, detached
from .stock_calls import refuse_tracers, warn_of_their_reset
from .surrogates import SpikeGrad, as_surrogate, no_gradient

__all__ = ["Mem", "SnnTorchNeuron"]

Mem = Tensor | tuple[Tensor, ...]

REMEDY = "call msf_pmsn_plugins.snntorch.reset(net) between batches"
PASS_ON = "pass what the neuron returned for an input of that shape, or reset_mem()'s"  # of a mem by hand
RESET_MODES = {"zero": "hard", "subtract": "soft", "none": "none"}  # snnTorch's word -> the held neuron's
# snnTorch's word -> what the held neuron may call a tensor of them, learned or not
TENSORS = {"threshold": ("v_threshold",), "beta": ("decay_logit", "_decay")}

_alive: WeakSet[SnnTorchNeuron] = WeakSet()


class SnnTorchNeuron(PropertiesFirst, snn.SpikingNeuron):
    """A framework-neutral neuron as a snnTorch neuron; its ``mem`` is the neuron's state.

    ``forward(input_, mem=None)`` takes one step [B, *], or with ``sequence=True`` all steps at once, [T, B, *].
    Leaving ``mem`` out goes on from the stored state ``self.mem``, with and without ``init_hidden``. A neuron at
    rest stores empty tensors of shape (0,). Spikes have the dtype of the input (of integers and booleans torch's
    default one), states are float32 (float64 for float64 input), also after ``.half()``; they follow the module's
    device and are not in its ``state_dict``.

    With ``sequence=True`` a call takes ``lengths=``, the valid steps of each sample [B] (or a bool mask [T, B]): padded
    steps emit 0 and touch neither state nor gradient. Inside a network set the attribute ``lengths`` instead, for which
    :func:`msf_pmsn_plugins.state.padded` is made.

    Args:
        held: the neuron that computes.
        spike_grad: None for the neuron's own surrogate, the name of one, a
            :class:`~msf_pmsn_plugins.surrogate.Surrogate`, or a callable such as ``snntorch.surrogate.atan()``: its
            gradient is used, not its forward (ours fires at ties).
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

    kind: ClassVar[type[Neuron]] = Neuron  # of the neurons that a class of nodes holds
    _version = 1  # of the entries in a state dict: raise it when one changes its meaning
    neuron: Any  # a Neuron; subclasses name its class
    carries: ClassVar[bool] = False  # whether mem is the membrane and carries a state of its own
    mem: Mem
    lengths: Lengths | None = None
    padding: Lengths | None = None  # as lengths, for the length of state.padded()
    host_numbers: ClassVar[dict[str, str]] = {"threshold": "v_threshold"}  # in the state dict -> held
    _left_by: Recomputation | None = None  # in which the state was left, if in one
    kept: tuple[str, ...] | None = None  # after a swap: the words taken over from the neuron that stood here
    backend = of_neuron("backend", '``"auto"`` or the name of a backend.')

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
        if not isinstance(held, self.kind):
            raise TypeError(
                f"{type(self).__name__} holds a msf_pmsn_plugins.neurons.{self.kind.__name__}, got {held!r}"
            )
        if learn_threshold:
            raise ValueError(
                f"learn_threshold=True is not supported by {type(self).__name__}: its threshold is a fixed number. "
                "Learn a gain in front of it instead (the weights before it, or a normalisation layer): a larger gain "
                "is a lower threshold"
            )
        spike_grad = no_gradient if surrogate_disable else as_surrogate(spike_grad)
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
        snn.SpikingNeuron.instances.remove(self)  # the host's list would keep us alive for ever
        _alive.add(self)
        if self.init_hidden:
            warn_of_their_reset()
        # The held neuron owns these two; properties below show them.
        del self._buffers["threshold"], self._buffers["reset_mechanism_val"]
        self.sequence = sequence
        self.neuron = held
        self.reset_mem()

    @classmethod
    def from_neuron(cls, neuron: Neuron, **options: Any) -> Self:
        """A node of this class around ``neuron``, for the variants that have no keyword in the constructor.

        ::

            PMSN.from_neuron(neurons.PMSN(64, burst=True, tied=True), init_hidden=True)

        ``options`` are the other arguments of :class:`SnnTorchNeuron`. Each node needs a neuron of its own.
        """
        node = cls.__new__(cls)
        SnnTorchNeuron.__init__(node, neuron, **options)
        return node

    def __getattr__(self, name: str) -> Any:
        # Called where Python finds nothing, and directly by snnTorch's AttributeMonitor, which expects a buffer.
        return self.__dict__["mem"] if name == "mem" and "mem" in self.__dict__ else super().__getattr__(name)

    # What the held neuron owns, under snnTorch's names.

    def _show(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.graded_spikes_factor.device)

    @property
    def threshold(self) -> Tensor:
        """The (first) threshold in volts: a 0-d copy, assign to change it; of several, or a learned one, the tensor."""
        own = value_of(self.neuron, "v_threshold")
        return own if isinstance(own, Tensor) else self._show(float(own))

    @threshold.setter
    def threshold(self, value: float | Tensor) -> None:
        held: Any = self.neuron
        if sources(held, "v_threshold"):
            held.overwrite("v_threshold", torch.as_tensor(value, dtype=torch.float64))
        else:
            takes_several = isinstance(held, neurons.MSF)
            held.v_threshold = as_threshold(value) if takes_several else one_threshold(value)

    @property
    def spike_grad(self) -> Surrogate | FireFunction:
        """The spike function ``u -> spikes``, u = membrane - threshold in volts."""
        return self.neuron.surrogate

    @spike_grad.setter
    def spike_grad(self, value: SpikeGrad) -> None:
        if "neuron" in self._modules:  # snnTorch's constructor assigns its default before the neuron is there
            self.neuron.surrogate = as_surrogate(value)

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
        self.mem = empty if self.carries else self._to_mem(self.neuron.initial_state(empty))
        return self.mem

    def init_leaky(self) -> Mem:
        """The old name of :meth:`reset_mem`, which networks written for ``Leaky`` call."""
        return self.reset_mem()

    init_lapicque = init_leaky

    @classmethod
    def reset_hidden(cls) -> None:
        """Reset every neuron of this class that was built, which leaves out copies: prefer :func:`reset`."""
        for neuron in _alive:
            if isinstance(neuron, cls):
                neuron.reset_mem()

    @classmethod
    def detach_hidden(cls) -> None:
        """Cut the graph at the state of every neuron of this class that was built; see :func:`detach`."""
        for neuron in _alive:
            if isinstance(neuron, cls):
                cut(neuron)

    def _as_mem(self, state: State, membrane: Tensor | None) -> Mem:
        """What ``forward`` returns as ``mem``: the membrane with the state, where a tensor can carry it."""
        return self._to_mem(state) if membrane is None else Membrane.of(membrane, state)

    def _wants_membrane(self, of_steps: bool) -> bool:
        """Whether ``mem`` needs the membranes; of a sequence that nobody asks for them, they would only take memory."""
        asked = of_steps or self.output or not self.init_hidden
        return self.carries and asked and not torch.compiler.is_compiling()

    def _to_mem(self, state: State) -> Mem:
        """The held neuron's state as an explicit ``mem``, without the membrane."""
        return state if len(state) > 1 else state[0]

    def _to_state(self, mem: State) -> State:
        """The held neuron's state, from ``mem`` as a tuple."""
        return mem

    def _resume(self, x: Tensor, mem: Mem, passed: bool) -> State:
        """The held neuron's state for the step ``x`` [B, *], which was checked."""
        name = type(self).__name__
        if isinstance(mem, Membrane):
            if not self.carries or len(mem.state) != len(self.neuron.state_names):
                raise TypeError(
                    f"this mem was returned by another neuron than {name}: pass on what {name} returned"
                )
            return self._fitting(x, tuple(map(usable, mem.state)), passed)
        if self.carries and isinstance(mem, Tensor) and mem.shape != (0,):
            raise ValueError(
                f"this mem of {name} has lost the state that it carried, or never had one, so {name} cannot go on from "
                "it: pass on the mem that it returned (detach, clone and to keep the state), or reset_mem()'s to start "
                "at rest"
            )
        if passed and isinstance(mem, tuple) and self._is_pair(mem):
            raise ValueError(f"mem of {name} is one tensor, got a pair: pass mem alone, not (spk, mem)")
        given = tuple(mem) if isinstance(mem, (tuple, list)) else (mem,)
        if not (given and all(isinstance(part, Tensor) for part in given)):
            kinds = ", ".join(type(part).__name__ for part in given) or "nothing"
            raise TypeError(
                f"mem of {name} must be a tensor or a tuple of tensors, got {kinds}: {PASS_ON}; without mem it goes on "
                "from the stored state"
            )
        parts = tuple(map(usable, given))
        if parts[0].shape == (0,) != x.shape:
            return self.neuron.initial_state(x)
        return self._to_state(self._fitting(x, parts, passed))

    def _is_pair(self, mem: tuple[Any, ...]) -> bool:
        """Whether ``mem`` is what ``forward`` returned, ``(spk, mem)``, and no state."""
        if len(mem) != 2 or not all(isinstance(part, Tensor) for part in mem):
            return False
        return isinstance(mem[1], Membrane) or len(self.neuron.state_names) == 1

    def _fitting(self, x: Tensor, parts: State, passed: bool) -> State:
        """``parts`` as the state for ``x``: a passed one is broadcast, one that was stored belongs to its batch."""
        if not passed:
            return self.neuron.check_state(x, parts, REMEDY)
        spec = self.neuron.state_spec(x)
        if len(parts) == len(spec):
            parts = tuple(self._broadcast(part, shape) for part, (shape, _) in zip(parts, spec, strict=True))
        return self.neuron.check_state(x, parts, PASS_ON)

    def _broadcast(self, part: Tensor, shape: torch.Size) -> Tensor:
        short = part
        while short.dim() > len(shape) and short.shape[0] == 1:  # one number for a single neuron, say
            short = short[0]
        try:
            return short.expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"mem of {type(self).__name__} has shape {tuple(part.shape)}, which does not broadcast to the input's "
                f"{tuple(shape)}: {PASS_ON}"
            ) from error

    @property
    def carried(self) -> State | None:
        """The state as a tuple of tensors, None at rest. Assign to go on from another one."""
        if isinstance(self.mem, Membrane):
            explicit = self._to_mem(self.mem.state)
            return (explicit,) if isinstance(explicit, Tensor) else explicit
        parts = (self.mem,) if isinstance(self.mem, Tensor) else self.mem
        return None if parts[0].shape == (0,) else parts

    @carried.setter
    def carried(self, state: State | None) -> None:
        if state is None:
            self.reset_mem()
        else:
            self.mem = state if self.carries or len(state) > 1 else state[0]

    # Computing.

    def forward(self, input_: Tensor, mem: Mem | None = None, lengths: Lengths | None = None) -> Any:
        """One step, ``input_`` [B, *], or with ``sequence=True`` all steps, [T, B, *], of which ``lengths`` are valid.

        Returns ``spk``, of the shape of ``input_``, if ``init_hidden`` and not ``output``; else ``(spk, mem)``.
        """
        refuse_tracers(type(self).__name__, input_)
        if self.init_hidden and mem is not None:
            raise TypeError("mem cannot be passed to a neuron with init_hidden=True: it keeps its own state")
        lengths = first_given(lengths, self.lengths, self.padding)
        if lengths is not None and not self.sequence:
            raise ValueError("lengths belong to sequences: set sequence=True, or lengths=None")
        before, passed = (self.mem, False) if mem is None else (mem, True)
        if not passed and not (self.sequence and self.carried is None):
            refuse_export(type(self).__name__, "build its neurons with sequence=True, and reset(net)")
        again = recomputation()
        if not passed and again is not self._left_by and self.carried is not None and again is not None:
            raise RuntimeError(
                f"torch.utils.checkpoint computes {type(self).__name__} again in the backward pass, from the state "
                "that the first time left: its gradients would be wrong. Call msf_pmsn_plugins.snntorch.reset(net) "
                "inside the checkpointed function, or pass mem and return it"
            )
        held = self._modules["neuron"]
        if held._forward_pre_hooks:
            renew(held)
        if self.sequence:
            spk, after = self._sequence(input_, before, passed, lengths)
        else:
            spk, after = self._step(input_, before, passed)
        if self.surrogate_disable:
            spk = spk.detach()
        spk = self._graded(spk)
        if torch.compiler.is_compiling():  # the tracer of torch 2.6 knows attributes alone
            self.mem = after
        else:
            self.__dict__["mem"] = after  # nn.Module would look at it from all sides
        if again is not self._left_by:
            self._left_by = again
        return spk if self.init_hidden and not self.output else (spk, after)

    def _graded(self, spk: Tensor) -> Tensor:
        """The spikes times their factor."""
        factor = self._buffers.get("graded_spikes_factor")
        if factor is not None and undisturbed(factor) and factor.numel() == 1 and factor.item() == 1.0:
            return spk
        return spk * self.graded_spikes_factor.to(spk.dtype)

    def _step(self, x: Tensor, mem: Mem, passed: bool) -> tuple[Tensor, Mem]:
        wants = self._wants_membrane(of_steps=True)
        membrane = wants or self.inhibition
        done = None
        if isinstance(mem, Membrane):
            done = self._again(x, mem.state, membrane)
        elif isinstance(mem, Tensor) and not self.carries:
            done = self._again(x, (mem,), membrane)
        if done is None:
            x = self.neuron.check_input(x)
            done = self._one(x, self._resume(x, mem, passed), membrane)
        s, state, m = done
        return self._inhibit(s, m, 1), self._as_mem(state, m if wants else None)

    def _sequence(self, x_seq: Tensor, mem: Mem, passed: bool, lengths: Lengths | None) -> tuple[Tensor, Mem]:
        if not isinstance(x_seq, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x_seq).__name__}")
        if x_seq.dim() == 0:
            raise ValueError(
                "sequence=True takes [T, B, *], time first; got a tensor without axes. "
                "For single steps set sequence=False"
            )
        x_seq = floating(x_seq)
        state = self._resume(self.neuron.check_input(first_step(x_seq)), mem, passed)
        if len(x_seq) == 0:  # nothing happens, but what is wrong was said, and the graph stays whole
            return self._all(x_seq, state, False, lengths)[0], mem
        wants = self._wants_membrane(of_steps=False)
        s, state, m = self._all(x_seq, state, wants or self.inhibition, lengths)
        last = _last(m, x_seq, lengths) if wants and m is not None else None
        return self._inhibit(s, m, 2), self._as_mem(state, last)

    def _again(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None] | None:
        """:meth:`_one` of a step like one before, or None."""
        return self._modules["neuron"].again(x, state, membrane)

    def _one(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None]:
        return self.neuron.single(x, state, membrane)

    def _all(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Lengths | None
    ) -> tuple[Tensor, State, Tensor | None]:
        return self.neuron.sequence(x_seq, state, membrane=membrane, lengths=lengths)

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

        parts = (self.mem,) if isinstance(self.mem, Tensor) else self.mem
        device = fn(torch.empty(0, device=parts[0].device)).device
        if parts[0].is_meta and device.type != "meta":  # there it held no values
            self.reset_mem()
        else:  # the device alone: half precision would lose spikes
            moved = tuple(part.to(device) for part in parts)
            self.mem = moved[0] if isinstance(self.mem, Tensor) else moved
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "mem": detached(self.mem)}  # a copy or a file has no graph
        state.pop("_left_by", None)
        return state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        keep_settings(destination, prefix, {HELD: self.neuron.saved_settings()})
        # One of one axis tells ours from a stock neuron's, which takes it too; no cast or mean changes an axis.
        destination[prefix + "reset_mechanism_val"] = self.reset_mechanism_val.reshape(1)
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
        self.neuron.compare_saved(prefix, local_metadata, error_msgs)  # of a bare neuron
        add_prefix(state_dict, prefix, self.neuron)
        overruled = self._overruled(state_dict, prefix)
        for name in ("reset_mechanism_val", *self.host_numbers):
            if prefix + name not in state_dict:
                continue  # snnTorch's own entries are not demanded: a state dict of the held neuron is complete
            value = state_dict.pop(prefix + name)
            try:
                if name not in overruled:
                    self._take(name, value)
            except (ValueError, RuntimeError) as error:
                error_msgs.append(f"{prefix}{name}: {error}")
                continue
            # A number of the host's, a tensor here, which has just taken it.
            for own in TENSORS.get(name, ()):
                held = self.neuron._parameters.get(own, self.neuron._buffers.get(own))
                if held is not None:
                    state_dict.setdefault(f"{prefix}neuron.{own}", held.detach().clone())
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "graded_spikes_factor" in missing_keys and "graded_spikes_factor" in self._buffers:
            missing_keys.remove(prefix + "graded_spikes_factor")

    def _take(self, name: str, value: Tensor) -> None:
        """Take over one of snnTorch's own entries."""
        if name == "reset_mechanism_val":
            words = {number: word for word, number in snn.SpikingNeuron.reset_dict.items()}
            self.reset_mechanism = words.get(int(value), value)
        else:
            own = getattr(self.neuron, self.host_numbers[name])
            setattr(self, name, value.to(own.dtype) if isinstance(own, Tensor) else value)

    def _overruled(self, state_dict: dict[str, Any], prefix: str) -> set[str]:
        """The entries of a stock neuron that a swap gave other values: loading later must not bring them back.

        Every dict of a stock neuron has its reset, 0-d where ours has an axis; numbers alone are taken as they are.
        """
        known = {"reset_mechanism_val", *self.host_numbers}
        reset = state_dict.get(prefix + "reset_mechanism_val")
        ours = reset is None or reset.dim() > 0
        if self.kept is None or ours or any(name.startswith(f"{prefix}neuron.") for name in state_dict):
            return set()
        return known - set(self.stock_entries())

    def stock_entries(self) -> dict[str, tuple[str, ...]]:
        """Entries of a stock neuron's state dict that belong here too, each with those of ours that it settles.

        After a swap only what was taken over then: the order of swapping and loading makes no difference.
        """
        known = {name: TENSORS.get(name, ()) for name in self.host_numbers}
        if isinstance(self.neuron, neurons.MSF):  # the others reset in their own way
            known["reset_mechanism_val"] = ()
        words = {name: name.removesuffix("_val") for name in known}
        return {name: own for name, own in known.items() if self.kept is None or words[name] in self.kept}

    def extra_repr(self) -> str:
        return f"init_hidden={self.init_hidden}, output={self.output}, sequence={self.sequence}"


def _last(m_seq: Tensor, x_seq: Tensor, lengths: Lengths | None) -> Tensor:
    """Each sample's membrane at its last valid step, as a copy; 0 where it has none."""
    if lengths is None:
        return m_seq[-1].clone()  # the last membrane alone must not keep all of them in memory
    live = valid_steps(x_seq, lengths)
    last = (live * torch.arange(1, len(live) + 1, device=live.device).unsqueeze(1)).amax(0)
    last = last.reshape(-1, *[1] * (m_seq.dim() - 2)).expand(m_seq.shape[1:])
    found = m_seq.gather(0, (last - 1).clamp(min=0).unsqueeze(0))[0]
    return torch.where(last > 0, found, 0.0)


def _winner(m: Tensor, axis: int) -> Tensor:
    """1 at the largest of ``m`` along ``axis``, 0 elsewhere; a NaN loses."""
    if m.dim() <= axis:
        raise ValueError("inhibition=True compares along axis 1 of [B, C, *]: this input has none")
    m = torch.where(m.isnan(), -torch.inf, m)
    return torch.zeros_like(m).scatter(axis, m.argmax(axis, keepdim=True), 1.0)
