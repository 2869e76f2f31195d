"""A framework-neutral neuron as a SpikingJelly node: memories, step modes, and its settings in the host's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from ..lengths import Lengths, first_given
from ..neurons import Neuron
from ..neurons.autograd import Recomputation, recomputation, refuse_export, transformed, usable
from ..neurons.base import (
    HELD,
    PropertiesFirst,
    State,
    add_prefix,
    broadcasts,
    first_step,
    keep_settings,
    number,
)
from ..neurons.computed import renew
from ..neurons.layout import gradient_laid_out
from ..neurons.nodes import brief
from ..tensors import floating
from .counters import counted
from .surrogates import PARAMETERS, translate
from .version import FUNCTIONAL

__all__ = ["SpikingJellyNode"]

SEQUENCES = "functional.set_step_mode(net, 'm') and functional.reset_net(net)"
RESET = "call spikingjelly.activation_based.functional.reset_net(net) between batches"
MEMOPT = "spikingjelly.activation_based.memopt.checkpointing"
NUMBERS = {int, float, type(None)}
SNNTORCH = ("threshold", "graded_spikes_factor", "reset_mechanism_val", "beta")  # buffers of its neurons


class SpikingJellyNode(PropertiesFirst, neuron.BaseNode):
    """A framework-neutral neuron as a SpikingJelly node.

    The neuron, ``node.neuron``, owns the settings; the node shows them in the host's words (``v_threshold``,
    ``v_reset``, ``surrogate_function`` ..) and takes new values by assignment at any time. Memories hold the neuron's
    state under its ``state_names``; outputs come in the dtype of the input (of integers and booleans in torch's
    default one), states in float32 (float64 for float64 input) whatever the dtype of the module.

    In step mode ``"m"`` a call takes ``lengths=``, the valid steps of each sample [N] (or a bool mask [T, N]): padded
    steps emit 0 and touch neither state nor gradient. Inside a network set the attribute ``lengths`` instead, for which
    :func:`msf_pmsn_plugins.state.padded` is made.

    Args:
        held: the neuron.
        step_mode: ``"s"`` takes [N, *], ``"m"`` takes [T, N, *].
        store_v_seq: keep the membranes after each step in ``v_seq`` [T, N, *].

    Raises:
        ValueError: a state left by a batch of another shape (it is never rebuilt silently), or a multi-step input
            without a time axis.
    """

    kind: ClassVar[type[Neuron]] = Neuron  # of the neurons that a class of nodes holds
    neuron: Neuron
    v_seq: Tensor | None
    lengths: Lengths | None = None
    padding: Lengths | None = None  # as lengths, for the length of state.padded()
    _left_by: Recomputation | None = None  # in which the state was left, if in one

    def __init__(self, held: Neuron, step_mode: str = "s", store_v_seq: bool = False) -> None:
        if not isinstance(held, self.kind):
            raise TypeError(
                f"{type(self).__name__} holds a msf_pmsn_plugins.neurons.{self.kind.__name__}, got {held!r}"
            )
        if isinstance(store_v_seq, str):  # 0.0.0.0.14 has the backend at this place
            raise TypeError(
                f"store_v_seq must be True or False, got {store_v_seq!r}; a backend is given by name, backend=.."
            )
        hard = getattr(held, "reset_mode", "") == "hard"
        super().__init__(
            # The reset value of the memory "v"; the properties do not listen before the neuron is there.
            v_reset=float(getattr(held, "v_reset", 0.0)) if hard else None,
            surrogate_function=None,
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.neuron = held
        if held.state_names != ("v",):
            del self._memories["v"], self._memories_rv["v"]
            for name in held.state_names:
                self.register_memory(name, 0.0)

    @classmethod
    def from_neuron(cls, neuron: Neuron, step_mode: str = "s", store_v_seq: bool = False) -> Self:
        """A node of this class around ``neuron``, for the variants that have no keyword in the constructor.

        ::

            PMSNNode.from_neuron(neurons.PMSN(64, burst=True, tied=True), step_mode="m")

        Each node needs a neuron of its own.
        """
        node = cls.__new__(cls)
        SpikingJellyNode.__init__(node, neuron, step_mode, store_v_seq)
        return node

    # The settings, which the neuron owns. The host's constructor assigns them before the neuron is there.

    @property
    def _held(self) -> Any:
        """The neuron, None before it is there."""
        return self._modules.get("neuron")

    @property
    def backend(self) -> str:
        """``"auto"`` or the name of a backend of ours, on every version of SpikingJelly."""
        return "auto" if self._held is None else self._held.backend

    @backend.setter
    def backend(self, name: str) -> None:
        if self._held is not None:
            self._held.backend = name

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``functional.set_backend`` of SpikingJelly 0.0.0.0.14 may set."""
        return self.neuron.supported_backends

    @property
    def v_threshold(self) -> float | Tensor:
        """The (first) threshold, volts; a tensor after ``functional.set_threshold_margin``."""
        return self._held.v_threshold

    @v_threshold.setter
    def v_threshold(self, value: float | Tensor) -> None:
        if self._held is not None:
            if isinstance(value, Tensor) and value.numel() > 1:
                raise TypeError(
                    f"{type(self).__name__} takes one number as its v_threshold, not a tensor of several"
                )
            self._held.v_threshold = number("v_threshold", value)

    @property
    def v_reset(self) -> float | None:
        """The potential after a spike, volts; None subtracts thresholds."""
        held: Any = self.neuron
        return getattr(held, "v_reset", None) if getattr(held, "reset_mode", "soft") != "soft" else None

    @v_reset.setter
    def v_reset(self, value: float | None) -> None:
        if self._held is not None:
            self._refuse("v_reset", value, None)

    @property
    def detach_reset(self) -> bool:
        """Whether no gradient passes through the reset."""
        return getattr(self.neuron, "detach_reset", True)

    @detach_reset.setter
    def detach_reset(self, value: bool) -> None:
        if self._held is not None:
            self._refuse("detach_reset", value, True)

    def _refuse(self, name: str, value: object, only: object) -> None:
        if value is not only:
            raise ValueError(
                f"{type(self).__name__} always resets by whole thresholds and carries no gradient through its reset: "
                f"leave v_reset=None and detach_reset=True (got {name}={value!r})"
            )

    @property
    def surrogate_function(self) -> Any:
        """One of SpikingJelly's surrogate objects, a name, or one of :mod:`msf_pmsn_plugins.surrogate`."""
        host = self._modules.get("surrogate_function")
        return self._held.surrogate if host is None else host

    @surrogate_function.setter
    def surrogate_function(self, value: Any) -> None:
        if self._held is None:
            return
        self._modules.pop("surrogate_function", None)
        self._held.surrogate = value
        if isinstance(value, nn.Module):
            self._modules["surrogate_function"] = value
            self.sync_settings(torch.get_default_dtype())

    def sync_settings(self, dtype: torch.dtype) -> None:
        """Give the neuron what stands for the host's surrogate object on an input of ``dtype``."""
        host = self._modules.get("surrogate_function")
        if host is None:
            return
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        held = self._held
        exact = held.backend == "torch"  # kernels take slopes, and multiply them in their own order
        # A parameter that learns is none of these, and its object is needed itself.
        numbers = tuple([host.__dict__.get(name) for name in PARAMETERS])
        own = host.__dict__.get("forward")  # that somebody has put in
        seen = host, dtype, exact, self.detach_reset, getattr(host, "spiking", None), own, numbers
        # Assigning makes the neuron forget what it found out about its calls.
        simple = not torch.compiler.is_compiling() and NUMBERS.issuperset(map(type, numbers))
        if simple and self.__dict__.get("_translated") == (seen, held.surrogate):
            return
        held.surrogate = translate(host, dtype, self.detach_reset, exact)
        if simple:
            self.__dict__["_translated"] = seen, held.surrogate

    @property
    def has_margin(self) -> bool:
        """Whether ``v_threshold`` is a tensor of thresholds, as ``functional.set_threshold_margin`` leaves it."""
        theta = getattr(self._held, "v_threshold", None)
        return isinstance(theta, Tensor) and theta.numel() > 1

    def _check_margin(self, x: Tensor) -> None:
        theta: Any = self.v_threshold
        if not broadcasts(theta, x):
            raise ValueError(
                f"v_threshold is a tensor {tuple(theta.shape)}, set for another batch than this one, {tuple(x.shape)} "
                "per step: call functional.set_threshold_margin(layer, label_one_hot) again"
            )

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Tensor, ...]:
        """Scalar sentinels become tensors; a state of another shape raises ValueError."""
        x = inputs[0]
        if step_mode == "m":
            x = first_step(x)
        x = self.neuron.check_input(x)
        if self.has_margin:
            self._check_margin(x)
        if not self.neuron.rests_uniformly and self._at_rest(states):
            states = self.neuron.initial_state(x)
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

    def _at_rest(self, states: tuple[Any, ...]) -> bool:
        """Whether ``states`` are what a reset leaves, and nobody has set another number."""
        rest = [self._memories_rv[name] for name in self._held.state_names]
        return not [s for s, r in zip(states, rest, strict=True) if isinstance(s, Tensor) or s != r]

    @property
    def carried(self) -> State | None:
        """The state as a tuple of tensors, None at rest. Assign to go on from another one."""
        parts = self._recall()
        return parts if all(isinstance(part, Tensor) for part in parts) else None

    @carried.setter
    def carried(self, state: State | None) -> None:
        rest = tuple(self._memories_rv[name] for name in self.neuron.state_names)
        self._remember(rest if state is None else state)

    @counted
    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **_: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over one step: ``(x,)`` [N, *] -> ``(spikes,)``, states."""
        (x,) = inputs
        self.sync_settings(x.dtype)
        held = self._held
        if held._forward_pre_hooks:
            renew(held)
        if (done := held.again(x, states)) is None:
            x = floating(x)
            states = self.materialize_states((x,), states, "s")
            done = held.single(self._step_laid_out(x), states)
        return (done[0],), done[1]

    def _step_laid_out(self, x: Tensor) -> Tensor:
        """One step, whose gradient will lie as the host's."""
        return x

    @counted
    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, lengths: Lengths | None = None, **_: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over a sequence: ``(x_seq,)`` [T, N, *] -> ``(spikes,)``, states."""
        x_seq = floating(inputs[0])
        self.sync_settings(x_seq.dtype)
        renew(self.neuron)
        states = self.materialize_states((x_seq,), states, "m")
        x_seq = self._gradient_laid_out(x_seq)
        s_seq, states, _m = self.neuron.sequence(x_seq, states, lengths=lengths)
        return (s_seq,), states

    def _gradient_laid_out(self, x_seq: Tensor) -> Tensor:
        if FUNCTIONAL or transformed():
            return x_seq
        return gradient_laid_out(
            x_seq, torch.contiguous_format
        )  # 0.0.0.0.14 adds gradients up in such a tensor

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **kwargs: Any
    ) -> tuple[tuple[Tensor], State]:
        """The transition of the current step mode."""
        single = self.step_mode == "s"
        forward = self.single_step_functional_forward if single else self.multi_step_functional_forward
        return forward(inputs, states, **kwargs)

    # Memories are fetched by name: 0.0.0.0.14 files v_seq among them.
    def _recall(self) -> tuple[Any, ...]:
        memories = self._memories
        states = tuple([usable(memories[name]) for name in self._held.state_names])
        again = recomputation(exact=MEMOPT)
        foreign = again is not None and again is not self._left_by
        if foreign and any(isinstance(state, Tensor) for state in states):
            raise RuntimeError(
                f"torch.utils.checkpoint computes {type(self).__name__} again in the backward pass, from the state "
                "that the first time left: its gradients would be wrong. Call functional.reset_net(net) inside the "
                "checkpointed function, or use SpikingJelly's memopt, which brings back the state it started from"
            )
        return states

    def _remember(self, states: State) -> None:
        again = recomputation(exact=MEMOPT)
        if again is not self._left_by:
            self._left_by = again
        self._memories.update(zip(self._held.state_names, states, strict=True))

    def single_step_forward(self, x: Tensor) -> Tensor:
        """One step, state in the memories: ``x`` [N, *] -> spikes [N, *]."""
        self._check_tensor(x)
        if self.lengths is not None or self.padding is not None:
            raise ValueError("lengths belong to sequences: set step_mode='m', or lengths=None")
        refuse_export(type(self).__name__, SEQUENCES)
        (s,), states = self.single_step_functional_forward((x,), self._recall())
        self._remember(states)
        for name in self._stored():
            value, seq = getattr(self, name).unsqueeze(0), getattr(self, f"{name}_seq")
            setattr(self, f"{name}_seq", value if seq is None else torch.cat([seq, value]))
        return s

    def multi_step_forward(self, x_seq: Tensor, lengths: Lengths | None = None) -> Tensor:
        """All steps, state in the memories: ``x_seq`` [T, N, *] -> spikes [T, N, *]; ``lengths`` [N] or mask [T, N]."""
        self._check_tensor(x_seq)
        lengths = first_given(lengths, self.lengths, self.padding)
        if x_seq.dim() == 0:
            raise ValueError(
                "step_mode='m' takes a sequence [T, N, *], time first; got a tensor without axes. "
                "For single steps use step_mode='s'"
            )
        if self.carried is not None:
            refuse_export(type(self).__name__, SEQUENCES)
        if self._stored():
            return self._multi_step_stored(x_seq, lengths)
        (s_seq,), states = self.multi_step_functional_forward((x_seq,), self._recall(), lengths)
        self._remember(states)
        return s_seq

    def _stored(self) -> dict[str, str]:
        """What is kept of every step, and the memory that it shows: of ``v`` in ``v_seq``, and so on."""
        return {"v": "v"} if self.store_v_seq else {}

    def _shown(self, name: str, memory: Tensor) -> Tensor:
        """A memory as the attribute ``name`` shows it."""
        return memory

    def _multi_step_stored(self, x_seq: Tensor, lengths: Lengths | None) -> Tensor:
        s_seq, states, kept = self._trajectory(x_seq, self._recall(), lengths)
        self._remember(states)
        for name, memory in self._stored().items():
            setattr(self, f"{name}_seq", self._shown(name, kept[memory]))
        return s_seq

    @counted
    def _trajectory(
        self, x_seq: Tensor, states: State, lengths: Lengths | None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """:meth:`multi_step_functional_forward`, and what is stored of every step, by the names of the memories."""
        x_seq = floating(x_seq)
        self.sync_settings(x_seq.dtype)
        renew(self.neuron)
        states = self.materialize_states((x_seq,), states, "m")
        names = tuple(self._stored().values())
        return self.neuron.trajectory(self._gradient_laid_out(x_seq), states, lengths, names)

    def _check_tensor(self, x: Any) -> None:
        if isinstance(x, Tensor):
            return
        if isinstance(x, torch.fx.Proxy):
            raise TypeError(
                f"{type(self).__name__} cannot be traced by an exporter that does not know it: for NIR call "
                "msf_pmsn_plugins.nir.export_to_nir(net, x)"
            )
        raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x).__name__}")

    def reset(self) -> None:
        """Bring the state to its reset values, and forget what was stored and the lengths of the last batch."""
        super().reset()
        self.__dict__.pop("lengths", None)

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a file has no graph.
        return {name: _cut(value) for name, value in self.__dict__.items() if name != "_left_by"} | {
            "_memories": {name: _cut(value) for name, value in self._memories.items()}
        }

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
            device = fn(torch.empty(0, device=value.device)).device
            if value.is_meta and device.type != "meta":  # there it held no values
                self.reset()
                break
            self._memories[name] = value.to(device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        keep_settings(destination, prefix, {HELD: self.neuron.saved_settings()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Accept what a bare neuron, a ParametricLIFNode (no prefix) and a snnTorch neuron (its buffers) save."""
        add_prefix(state_dict, prefix, self.neuron)
        self.neuron.compare_saved(prefix, args[0], args[4])  # of a bare neuron
        foreign = {name: state_dict.pop(prefix + name) for name in SNNTORCH if prefix + name in state_dict}
        if foreign:
            errors = args[4]  # strict, missing_keys and unexpected_keys stand before it
            several = {name: value.numel() for name, value in foreign.items() if value.numel() != 1}
            said = [
                f"{name} holds {count} numbers, a SpikingJelly node has one for all elements"
                for name, count in several.items()
            ] or self._take_snntorch(foreign)
            errors.extend(f"{prefix or 'the node'}: {text}" for text in said)
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
        words = ("v_threshold", "v_reset", "detach_reset", "step_mode", "backend")
        shown = {name: getattr(self, name) for name in words if name != "v_threshold" or hasattr(self, name)}
        return ", ".join(f"{name}={brief(value)}" for name, value in shown.items())


def _cut(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and value.requires_grad else value
