"""What every neuron has: a pure step (the oracle) and a sequence that equals a loop of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import backends
from ..lengths import Lengths, ValidFirst, check_lengths, live_steps, valid_steps, without_batch
from ..surrogate import Surrogate, gives_slopes
from ..tensors import floating, state_dtype
from .autograd import guarded, transformed
from .layout import gradient_laid_out, owned, reshaped

__all__ = [
    "Neuron",
    "PropertiesFirst",
    "State",
    "add_prefix",
    "broadcasts",
    "channel_axes",
    "channel_shape",
    "first_step",
    "number",
    "require_dense",
]

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], tuple[Tensor, State, Tensor]]


def number(name: str, value: Any) -> float:
    """``value`` as a finite float; raise naming the argument, also for what would have to learn."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(
            f"{name} is a number here and is not learned, got a tensor that requires a gradient: "
            f"give its value, float({name}.detach())"
        )
    try:
        result = float(value)
    except (TypeError, ValueError, RuntimeError):
        result = math.nan
    if isinstance(value, (str, bool)) or not -math.inf < result < math.inf:
        raise (ValueError if isinstance(value, (int, float)) else TypeError)(
            f"{name} must be a finite number, got {value!r}"
        )
    return result


def paired_dtype(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype of a real one. Not ``dtype.to_complex()``: torch.compile cannot trace it."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def add_prefix(state_dict: dict[str, Any], prefix: str, neuron: nn.Module) -> None:
    """Rename, in place, the entries that a bare neuron saved to those of a node that holds it as ``neuron``."""
    for name, _ in neuron.named_parameters(recurse=False):
        if prefix + name in state_dict:
            state_dict[f"{prefix}neuron.{name}"] = state_dict.pop(prefix + name)


def refuse_newer(
    module: nn.Module, prefix: str, local_metadata: dict[str, Any], error_msgs: list[str]
) -> None:
    """Add an error where a state dict has a later format than ``module`` reads: its ``_version``, kept by torch."""
    if local_metadata.get("version", module._version) > module._version:
        error_msgs.append(
            f"{prefix or type(module).__name__}: this state dict has format {local_metadata['version']}, and this "
            f"msf-pmsn-plugins reads up to {module._version}: it was saved by a newer one, upgrade"
        )


def require_dense(x: Tensor) -> None:
    """Raise TypeError if ``x`` is sparse, nested or opaque: such tensors have no strides, or no shape."""
    if x.is_nested:
        raise TypeError(
            "spiking neurons take dense tensors, got a nested one: pad it, x.to_padded_tensor(0.0), bring time to the "
            "front, and say with lengths= how many steps of each sample are valid"
        )
    if x.layout is not torch.strided:
        raise TypeError(
            f"spiking neurons take dense tensors, got one of layout {x.layout}: convert it first, x.to_dense()"
        )


HELD = "held"  # in the metadata of a node: the settings of its neuron, for a bare one that loads them


def keep_settings(destination: Any, prefix: str, settings: dict[str, Any]) -> None:
    """Keep ``settings`` in the metadata of a state dict: without an entry it loads strictly in the hosts."""
    metadata = getattr(destination, "_metadata", None)
    if metadata is not None:
        metadata.setdefault(prefix[:-1], {}).update(settings)


def warn_of_others(neuron: nn.Module, prefix: str, trained: dict[str, Any], noun: str = "") -> None:
    """Warn where ``neuron`` has other settings than those that loaded weights were ``trained`` with."""
    # a word that this version does not know is of a newer one, which the caller refuses
    others = [name for name, value in trained.items() if getattr(neuron, name, value) != value]
    if not others:
        return
    saved, own = (
        ", ".join(f"{name}={values[name]!r}" for name in others)
        for values in (trained, {name: getattr(neuron, name) for name in others})
    )
    warnings.warn(
        f"{prefix[:-1] or type(neuron).__name__}: these weights were trained with {saved}{noun}, this neuron has {own} "
        f"and keeps {'it' if len(others) == 1 else 'them'}; set {saved} to compute what was trained",
        UserWarning,
        stacklevel=3,
    )


def first_step(x_seq: Tensor) -> Tensor:
    """One step [N, *] of a sequence [T, N, *], to read shapes from; of an empty sequence, an empty one."""
    require_dense(x_seq)
    return x_seq[0] if x_seq.shape[0] else x_seq.new_empty(x_seq.shape[1:])


def channel_axes(channel_dim: int | Sequence[int], x: Tensor) -> tuple[int, ...]:
    """The channel axes of one step ``x``, non-negative, adjacent and ascending; raise ValueError otherwise.

    A step is [N, C, *]. One with no more axes than those of a sample up to its channels (or, where ``channel_dim`` is
    negative, from them on) has no batch axis; one without axes is a single channel.
    """
    dims = channel_dim if isinstance(channel_dim, Sequence) else (channel_dim,)
    if x.dim() == 0:
        return ()
    batch = int(x.dim() > max([abs(d) for d in dims]))  # a list: torch.compile traces no generator here
    axes = tuple([d + x.dim() if d < 0 else d - 1 + batch for d in dims])
    if 0 in dims or min(axes) < batch or max(axes) >= x.dim():
        raise ValueError(
            f"channel_dim={channel_dim} counts in the per-step tensor [N, C, *], whose axis 0 is the batch; "
            f"one step of this input has shape {tuple(x.shape)}"
        )
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ValueError(f"channel_dim={channel_dim} must name adjacent axes in ascending order")
    return axes


def channel_shape(channel_dim: int | Sequence[int], x: Tensor) -> list[int]:
    """The shape in which a tensor [C] broadcasts against one step ``x`` [N, C, *]; raise as :func:`channel_axes`."""
    axes = channel_axes(channel_dim, x)
    return [n if i in axes else 1 for i, n in enumerate(x.shape)]


def broadcasts(value: Tensor, x: Tensor) -> bool:
    """Whether ``value`` broadcasts against one step ``x`` and leaves its shape as it is."""
    ahead = x.dim() - value.dim()
    if ahead < 0:
        return False
    return all(own in (1, size) for own, size in zip(value.shape, x.shape[ahead:], strict=True))


NOTHING: dict[Any, Any] = {}


def kind_of_step(x: Tensor, membrane: bool) -> tuple[Any, ...]:
    """What single steps have in common that are computed alike."""
    return "single", x.shape, x.dtype, membrane, torch.is_grad_enabled(), torch.get_num_threads()


class PropertiesFirst:
    """Mixin before ``nn.Module``, which would file a module assigned to a property and never call the setter."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Neuron(PropertiesFirst, nn.Module):
    """A spiking neuron over real time steps.

    ``step`` holds the equations and is the oracle: pure, obvious, never optimised. ``sequence`` may be fast, and
    equals a loop of ``step``. Subclasses write ``initial_state``, ``step`` and ``state_names``; by default
    ``sequence`` is the loop, and ``_run`` is where a fast path goes. It holds for the ``step`` of the same class: a
    subclass that overrides ``step`` alone takes the loop again.

    Args:
        backend: ``"auto"`` (chosen by where the input lies) or the name of a backend, which is used or raises.
    """

    _version = 1  # of the entries in a state dict: raise it when one changes its meaning
    state_names: tuple[str, ...] = ("v",)
    constants: ClassVar[tuple[str, ...]] = ()  # settings that are one number, which nothing learns
    rests_uniformly: ClassVar[bool] = False  # whether a node may fill the state at rest with its own numbers

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for word, faster in (("step", STEP_BY_STEP), ("initial_state", AS_IT_BEGINS)):
            for name, plain in faster.items():
                inherited = getattr(cls, name) is not getattr(Neuron, name)
                if inherited and _depth(cls, word) < _depth(cls, name):
                    setattr(cls, name, plain)

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def _keep_surrogate(self, value: Any) -> None:
        """Hold a surrogate, a module (a framework's object) or not, in place of the one before."""
        self._modules.pop("_surrogate", None)
        self.__dict__.pop("_surrogate", None)
        self._surrogate = value

    @property
    def backend(self) -> str:
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = backends.check(name)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """What ``backend`` may be; SpikingJelly 0.0.0.0.14 asks every module that has a backend."""
        return ("auto", *backends.BACKENDS)

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, for one step ``x`` of shape [N, *]."""
        raise NotImplementedError

    def _rest(self, x: Tensor) -> State:
        """``initial_state``, to start a sequence from: one number may stand for all of a tensor."""
        return self.initial_state(x)

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        """Shape and dtype of each state tensor for one step ``x``; override to know them without making one."""
        return tuple((tensor.shape, tensor.dtype) for tensor in self.initial_state(x))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """One step: ``x`` [N, *] -> spikes in the dtype of ``x`` (of integers in torch's default one), next state,
        membrane before reset (volts).
        """
        raise NotImplementedError

    def sequence(
        self,
        x_seq: Tensor,
        state: State | None = None,
        membrane: bool = False,
        lengths: Lengths | None = None,
    ) -> tuple[Tensor, State, Tensor | None]:
        """All steps: ``x_seq`` [T, N, *] -> spikes [T, N, *], last state, membranes [T, N, *] if asked for.

        Args:
            x_seq: input currents, time first. An empty sequence (T = 0) leaves the state as it was.
            state: the state to go on from; None starts at rest.
            membrane: also return the membranes before reset, volts.
            lengths: for samples of different length, the number of valid steps of each, [N]; or a mask, bool [T, N],
                True at valid steps. All other steps are skipped: they emit 0, touch neither state nor gradient, and
                what the input holds there does not matter. Each sample's state is the one after its last valid step.
        """
        x_seq = floating(x_seq)
        state = self._begin(x_seq, state)
        if lengths is not None and not self._batched(first_step(x_seq)):
            raise without_batch(x_seq)
        if x_seq.dim() == 1:  # one neuron
            one = tuple(part.unsqueeze(0) for part in state)
            s_seq, one, m_seq = self._run(x_seq.unsqueeze(1), one, membrane, None)
            state = tuple(part.squeeze(0) for part in one)
            return owned(s_seq.squeeze(1)), state, None if m_seq is None else owned(m_seq.squeeze(1))
        if lengths is None:
            return self._run(x_seq, state, membrane, None)
        lengths = check_lengths(x_seq, lengths)
        if lengths.dtype != torch.bool:
            return self._run(x_seq, state, membrane, lengths)
        valid = ValidFirst(x_seq, lengths)
        s_seq, state, m_seq = self._run(valid.pack(x_seq), state, membrane, valid.count)
        return valid.unpack(s_seq), state, None if m_seq is None else valid.unpack(m_seq)

    def trajectory(
        self,
        x_seq: Tensor,
        state: State | None = None,
        lengths: Lengths | None = None,
        names: Sequence[str] | None = None,
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """:meth:`sequence` with the state that each step left: spikes, last state, ``{name: [T, N, *]}``.

        Args:
            x_seq, state, lengths: as in :meth:`sequence`; a step that is skipped leaves the state as it was.
            names: which parts of the state are returned, of ``state_names``; None is all.
        """
        x_seq = floating(x_seq)
        state = self._begin(x_seq, state)
        if lengths is not None and not self._batched(first_step(x_seq)):
            raise without_batch(x_seq)
        names = self.state_names if names is None else names
        if x_seq.dim() == 1:  # one neuron
            one = tuple(part.unsqueeze(0) for part in state)
            s_seq, one, kept = self._trajectory(x_seq.unsqueeze(1), one, None, names)
            held = {name: seq.squeeze(1) for name, seq in zip(names, kept, strict=True)}
            return owned(s_seq.squeeze(1)), tuple(part.squeeze(0) for part in one), held
        if lengths is None:
            s_seq, last, kept = self._trajectory(x_seq, state, None, names)
            return s_seq, last, dict(zip(names, kept, strict=True))
        valid = ValidFirst(x_seq, valid_steps(x_seq, lengths))
        s_seq, last, kept = self._trajectory(valid.pack(x_seq), state, valid.count, names)
        before = dict(zip(self.state_names, state, strict=True))
        held = {name: valid.hold(before[name], seq) for name, seq in zip(names, kept, strict=True)}
        return valid.unpack(s_seq), last, held

    def _trajectory(
        self, x_seq: Tensor, state: State, lengths: Tensor | None, names: Sequence[str]
    ) -> tuple[Tensor, State, list[Tensor]]:
        """``trajectory`` after its checks, step by step; override with something fast. What is kept of padded steps,
        those at the end, does not matter.
        """
        s_seq: list[Tensor] = []
        kept: dict[str, list[Tensor]] = {name: [] for name in self.state_names}
        for t, x in enumerate(x_seq.unbind(0)):
            live = None if lengths is None else (lengths > t).long()
            s, state, _m = self._run(x.unsqueeze(0), state, False, live)
            s_seq.append(s.squeeze(0))
            for seq, part in zip(kept.values(), state, strict=True):
                seq.append(part)
        if not s_seq:
            empty = dict(zip(self.state_names, state, strict=True))
            return (
                torch.empty_like(x_seq),
                state,
                [empty[name].new_empty(0, *empty[name].shape) for name in names],
            )
        return torch.stack(s_seq), state, [torch.stack(kept[name]) for name in names]

    def _run(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        """``sequence`` after its checks; override with something fast, whose spikes no backward has kept: callers
        may change them in place.
        """
        return self._loop(x_seq, state, membrane, lengths)

    def forward(
        self, x_seq: Tensor, state: State | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, State]:
        """``sequence`` without the membranes: ``x_seq`` [T, N, *] -> spikes, last state."""
        s_seq, state, _ = self.sequence(x_seq, state, lengths=lengths)
        return s_seq, state

    def check_input(self, x: Tensor) -> Tensor:
        """``x``, one step [N, *], as this neuron computes on it: see :func:`floating`. Raise where it cannot."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x).__name__}")
        require_dense(x)
        x = floating(x)
        if not x.is_floating_point():
            remedy = (
                "x.dequantize()" if x.is_quantized else "x.abs(), or torch.view_as_real(x) for both parts"
            )
            raise TypeError(
                f"{type(self).__name__} takes real numbers, got {x.dtype}: convert it first, {remedy}"
            )
        return x

    def check_state(self, x: Tensor, state: State, remedy: str = "start anew with state=None") -> State:
        """Return ``state`` in the dtypes used for ``x``; raise ValueError if it belongs to another shape."""
        name, spec = type(self).__name__, self.state_spec(x)
        if (
            type(state) is tuple
            and len(state) == len(spec)
            and all(
                isinstance(part, Tensor)
                and part.dtype == dtype
                and part.shape == shape
                and part.device == x.device
                for part, (shape, dtype) in zip(state, spec, strict=False)
            )
        ):
            return state
        if not isinstance(state, (tuple, list)) or len(state) != len(spec):
            given = f"a {type(state).__name__}" if isinstance(state, Tensor) else f"{len(state)} of them"
            raise ValueError(
                f"the state of {name} is a tuple of {len(spec)} tensors {self.state_names}, got {given}"
            )
        for tensor, (shape, _) in zip(state, spec, strict=True):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"the state of {name} is a tuple of {len(spec)} tensors {self.state_names}, got one that holds "
                    f"{tensor!r}: {remedy}"
                )
            if tensor.shape != shape:
                raise ValueError(
                    f"the state of {name} has shape {tuple(tensor.shape)}, but this input of shape {tuple(x.shape)} "
                    f"per step needs {tuple(shape)}: it was left by another batch; {remedy}"
                )
            if tensor.device != x.device:
                raise ValueError(
                    f"the state of {name} is on {tensor.device}, the input on {x.device}; {remedy}"
                )
        return tuple(tensor.to(dtype) for tensor, (_, dtype) in zip(state, spec, strict=True))

    def _batched(self, x: Tensor) -> bool:
        """Whether one step ``x`` has a batch axis, in front; override where a step tells."""
        return x.dim() > 0

    def _begin(self, x_seq: Tensor, state: State | None) -> State:
        """Check a sequence and its state before anything is computed."""
        if not isinstance(x_seq, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x_seq).__name__}")
        if x_seq.dim() == 0:
            raise ValueError(
                "a sequence is [T, N, *], time first; got a tensor without axes. For a single step use step(x, state)"
            )
        x = first_step(x_seq)
        self.check_input(x)
        return self._rest(x) if state is None else self.check_state(x, state)

    def saved_settings(self) -> dict[str, Any]:
        """What gives the entries of a state dict their meaning and is none of them, kept in its metadata."""
        return {}

    def compare_saved(self, prefix: str, saved: dict[str, Any], error_msgs: list[str]) -> None:
        """Warn of other settings in ``saved``, or add an error; metadata without any is of an older file."""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        keep_settings(destination, prefix, self.saved_settings())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        refuse_newer(self, prefix, local_metadata, args[-1])
        self.compare_saved(prefix, local_metadata.get(HELD, local_metadata), args[-1])
        # Saved by a node, which holds its neuron as `neuron`.
        for name, _ in self.named_parameters(recurse=False):
            if prefix + name not in state_dict and f"{prefix}neuron.{name}" in state_dict:
                state_dict[prefix + name] = state_dict.pop(f"{prefix}neuron.{name}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _has_kernel(self, surrogate: Any) -> bool:
        """Whether the backends can take ``surrogate``; raise if not and one of them was asked for by name."""
        if isinstance(surrogate, Surrogate):
            return True
        if torch.compiler.is_compiling():
            return False  # of a loop a compiler sees the surrogate's own operations
        if gives_slopes(surrogate):
            return not transformed()
        if self.backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {self.backend!r} cannot run the surrogate {surrogate!r}: it does not fire as the step "
                "u >= 0, draws its slope at random or learns. Set backend='auto' for a loop of steps"
            )
        return False

    def _remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, or what it made before, until an attribute of this neuron is set."""
        if torch.compiler.is_compiling():
            return make()
        known = self.__dict__.setdefault("_made", {})
        found = known.get(key)
        if found is None:
            if len(known) > 100:  # inputs of ever new shapes
                known.clear()
            found = known[key] = make()
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.constants and isinstance(
            value, Tensor
        ):  # a parameter would be listed, saved, and never learn
            value = number(name, value)
        super().__setattr__(name, value)
        self.__dict__.pop("_made", None)  # after it: another thread remembers what it has read

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}

    def single(
        self, x: Tensor, state: State | None = None, membrane: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        """:meth:`step` by the fast path: ``x`` [N, *] -> spikes, next state, membrane [N, *] if asked for."""
        if state is not None and (done := self.again(x, state, membrane)) is not None:
            return done
        x = self.check_input(x)
        state = self.initial_state(x) if state is None else self.check_state(x, state)
        if x.dim() == 0:  # one neuron
            s, state, m = self.single(x.unsqueeze(0), tuple(part.unsqueeze(0) for part in state), membrane)
            state = tuple(part.squeeze(0) for part in state)
            return owned(s.squeeze(0)), state, None if m is None else owned(m.squeeze(0))
        if torch.compiler.is_compiling() or (done := self._run_single(x, state, membrane)) is None:
            if transformed():
                s_seq, state, m_seq = self._run(x.unsqueeze(0), state, membrane, None)
                return s_seq.squeeze(0), state, None if m_seq is None else m_seq.squeeze(0)
            # The gradient lies as the membrane does, as in the hosts.
            s_seq, state, m_seq = self._run(gradient_laid_out(x).unsqueeze(0), state, membrane, None)
            return reshaped(s_seq, x.shape), state, None if m_seq is None else owned(m_seq.squeeze(0))
        return done

    def again(
        self, x: Tensor, state: State, membrane: bool = False
    ) -> tuple[Tensor, State, Tensor | None] | None:
        """:meth:`single` of a step like one that was checked before, if there is a way for it; else None."""
        try:
            return self._again(x, state, membrane)
        except RuntimeError:
            require_dense(x)  # asked before, it would cost every step
            raise

    def _again(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None] | None:
        """:meth:`again`, which may run into a tensor that is not dense."""
        return None

    def _run_single(
        self, x: Tensor, state: State, membrane: bool
    ) -> tuple[Tensor, State, Tensor | None] | None:
        """:meth:`single` after its checks, if there is something faster than a sequence of one; else None."""
        return None

    def _loop(
        self,
        x_seq: Tensor,
        state: State,
        membrane: bool,
        lengths: Tensor | None = None,
        step: Step | None = None,
    ) -> tuple[Tensor, State, Tensor | None]:
        """The oracle of ``sequence``: one ``step`` after another."""
        step = self.step if step is None else step
        s_seq, m_seq = [], []
        live_seq = None if lengths is None else live_steps(lengths, x_seq)
        for t, x in enumerate(x_seq.unbind(0)):
            if live_seq is None:
                s, state, m = step(x, state)
            else:
                live = live_seq[t]
                s, after, m = step(torch.where(live, x, 0.0), state)
                # A state may have trailing axes of its own.
                state = tuple(
                    torch.where(live.reshape(len(live), *[1] * (new.dim() - 1)), new, old)
                    for new, old in zip(after, state, strict=True)
                )
                s, m = torch.where(live, s, 0.0), torch.where(live, m, 0.0)
            s_seq.append(s)
            m_seq.append(m)
        if not s_seq:
            m_empty = torch.empty_like(x_seq, dtype=state_dtype(x_seq.dtype))
            state = tuple(part.contiguous() for part in state)
            return torch.empty_like(x_seq), state, m_empty if membrane else None
        return guarded(torch.stack(s_seq), state, torch.stack(m_seq) if membrane else None)

    @property
    def overrides_step(self) -> bool:
        """Whether ``step`` is another than the equations of the class that has the fast paths."""
        return type(self)._run is Neuron._run_own_step

    def _run_own_step(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Tensor | None
    ) -> tuple[Tensor, State, Tensor | None]:
        """``_run`` of a class that overrides the ``step`` of one with a fast path."""
        if self.backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {self.backend!r} cannot run the step that {type(self).__name__} has of its own. Set "
                "backend='auto' for a loop of steps"
            )
        return self._loop(x_seq, state, membrane, lengths)


def _depth(cls: type, name: str) -> int:
    """How far up ``cls`` inherits ``name`` from."""
    return next(i for i, base in enumerate(cls.__mro__) if name in base.__dict__)


# What stands in a class beside the step, or the beginning, that it is faster than, and what it is without.
STEP_BY_STEP: dict[str, Any] = {
    "_run": Neuron._run_own_step,
    "_run_single": Neuron._run_single,
    "_trajectory": Neuron._trajectory,
    "_again": Neuron._again,
}
AS_IT_BEGINS: dict[str, Any] = {"_rest": Neuron._rest, "rests_uniformly": False}
