"""What every neuron has: a pure step (the oracle) and a sequence that equals a loop of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from .. import backends
from ..surrogate import Surrogate

__all__ = [
    "Neuron",
    "NoSecondDerivative",
    "PropertiesFirst",
    "State",
    "file_under_neuron",
    "first_step",
    "loop_vmap",
    "number",
    "state_dtype",
]

State = tuple[Tensor, ...]


def number(name: str, value: Any) -> float:
    """``value`` as a finite float; raise naming the argument."""
    try:
        result = float(value)
    except (TypeError, ValueError, RuntimeError):
        result = math.nan
    if isinstance(value, str | bool) or not -math.inf < result < math.inf:
        raise (ValueError if isinstance(value, int | float) else TypeError)(
            f"{name} must be a finite number, got {value!r}"
        )
    return result


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """States are float64 for float64 inputs and float32 for all others: half precision loses spikes."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def file_under_neuron(state_dict: dict[str, Any], prefix: str, neuron: nn.Module) -> None:
    """Rename, in place, the entries that a bare neuron saved to those of a node that holds it as ``neuron``."""
    for name, _ in neuron.named_parameters(recurse=False):
        if prefix + name in state_dict:
            state_dict[f"{prefix}neuron.{name}"] = state_dict.pop(prefix + name)


def first_step(x_seq: Tensor) -> Tensor:
    """One step [N, *] of a sequence [T, N, *], to read shapes from; of an empty sequence, an empty one."""
    return x_seq[0] if len(x_seq) else x_seq.new_empty(x_seq.shape[1:])


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
    equals a loop of ``step``. Subclasses write ``initial_state``, ``step`` and ``state_names``; the default
    ``sequence`` is the loop.

    Args:
        backend: ``"auto"`` (chosen by where the input lies) or the name of a backend, which is used or raises.
    """

    state_names: tuple[str, ...] = ("v",)

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

    def state_spec(self, x: Tensor) -> tuple[tuple[torch.Size, torch.dtype], ...]:
        """Shape and dtype of each state tensor for one step ``x``; override to know them without making one."""
        return tuple((tensor.shape, tensor.dtype) for tensor in self.initial_state(x))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        """One step: ``x`` [N, *] -> spikes in the dtype of ``x``, next state, membrane before reset (volts)."""
        raise NotImplementedError

    def sequence(
        self, x_seq: Tensor, state: State | None = None, membrane: bool = False
    ) -> tuple[Tensor, State, Tensor | None]:
        """All steps: ``x_seq`` [T, N, *] -> spikes [T, N, *], last state, membranes [T, N, *] if asked for.

        An empty sequence (T = 0) gives empty outputs and leaves the state as it was.
        """
        state = self._begin(x_seq, state)
        return self._loop(x_seq, state, membrane)

    def forward(self, x_seq: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``sequence`` without the membranes: ``x_seq`` [T, N, *] -> spikes, last state."""
        s_seq, state, _ = self.sequence(x_seq, state)
        return s_seq, state

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x``, one step [N, *], is something this neuron can compute on."""
        if not isinstance(x, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(
                f"{type(self).__name__} takes floating-point input, got {x.dtype}: "
                "convert it first, e.g. x.float()"
            )

    def check_state(self, x: Tensor, state: State, remedy: str = "start anew with state=None") -> State:
        """Return ``state`` in the dtypes used for ``x``; raise ValueError if it belongs to another shape."""
        name, spec = type(self).__name__, self.state_spec(x)
        if not isinstance(state, tuple | list) or len(state) != len(spec):
            given = f"a {type(state).__name__}" if isinstance(state, Tensor) else f"{len(state)} of them"
            raise ValueError(
                f"the state of {name} is a tuple of {len(spec)} tensors {self.state_names}, got {given}"
            )
        for tensor, (shape, _) in zip(state, spec, strict=True):
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

    def _begin(self, x_seq: Tensor, state: State | None) -> State:
        """Check a sequence and its state before anything is computed."""
        if not isinstance(x_seq, Tensor):
            raise TypeError(f"{type(self).__name__} takes a torch.Tensor, got {type(x_seq).__name__}")
        if x_seq.dim() < 2:
            raise ValueError(
                f"a sequence is [T, N, *], time first; got shape {tuple(x_seq.shape)}. "
                "For a single step use step(x, state)"
            )
        x = first_step(x_seq)
        self.check_input(x)
        return self.initial_state(x) if state is None else self.check_state(x, state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Saved by a node, which holds its neuron as `neuron`.
        for name, _ in self.named_parameters(recurse=False):
            if prefix + name not in state_dict and f"{prefix}neuron.{name}" in state_dict:
                state_dict[prefix + name] = state_dict.pop(f"{prefix}neuron.{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _has_kernel(self, surrogate: Any) -> TypeGuard[Surrogate]:
        """Whether the backends know ``surrogate``; raise if not and one of them was asked for by name."""
        if isinstance(surrogate, Surrogate):
            return True
        if self.backend not in ("auto", "torch"):
            raise ValueError(
                f"backend {self.backend!r} has no kernel for the surrogate {surrogate!r}: name one of "
                "msf_pmsn_plugins.surrogate.SURROGATES, or set backend='auto'"
            )
        return False

    def _loop(self, x_seq: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None]:
        s_seq, m_seq = [], []
        for x in x_seq.unbind(0):
            s, state, m = self.step(x, state)
            s_seq.append(s)
            m_seq.append(m)
        if not s_seq:
            m_empty = torch.empty_like(x_seq, dtype=state_dtype(x_seq.dtype))
            return torch.empty_like(x_seq), state, m_empty if membrane else None
        return torch.stack(s_seq), state, torch.stack(m_seq) if membrane else None


class NoSecondDerivative(torch.autograd.Function):
    """The backward of a neuron as a function of its own: a second derivative raises instead of being zero."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "a spiking neuron has no second derivative: its gradient comes from a surrogate. Differentiate once, or "
            "use a loop of step() with a surrogate callable that is differentiable twice"
        )


def loop_vmap(op: Any) -> Callable[..., tuple[Any, Any]]:
    """A vmap rule for a custom op: one call per sample of the mapped axis, results stacked in front."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        calls = []
        for i in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)  # a list of numbers has a list of Nones for its axis
            calls.append(op(*(a.select(axis, i) if isinstance(axis, int) else a for a, axis in pairs)))
        outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
        return outputs, tuple(0 for _ in outputs)

    return rule
