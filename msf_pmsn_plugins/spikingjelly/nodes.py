"""MSF, PMSN and the parallel integrate-and-fire neuron as SpikingJelly nodes."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor

from ..charges import CHARGES
from ..lengths import Lengths
from ..neurons import MSF, PMSN, ParallelIF
from ..neurons.autograd import guarded, transformed
from ..neurons.base import State, number
from ..neurons.computed import renew, sources, value_of
from ..neurons.layout import gradient_laid_out, owned
from ..neurons.nodes import brief
from ..neurons.pmsn import pmsn_step
from ..neurons.readonly import ReadOnly
from ..neurons.shown import ShowsMSF, ShowsParallelIF, ShowsPMSN
from ..surrogate import FireFunction, Surrogate
from ..tensors import PMSNState, floating
from ..words import NODE_HAS_NOT, PARALLEL_IF_HAS_NOT, PMSN_HAS_NOT, teaching
from .base import SpikingJellyNode
from .charge import lif_charge
from .counters import counted
from .version import FUNCTIONAL

__all__ = ["MSFNode", "PMSNNode", "ParallelIFNode", "register"]


@teaching(NODE_HAS_NOT)
class MSFNode(ShowsMSF, SpikingJellyNode):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155) as a SpikingJelly node: LIF with D thresholds.

    Emits integer counts 0..D. What is not said is as in ``LIFNode``, and ``MSFNode(D=1)`` is one, to the bit. The
    paper's neuron is :meth:`published`.

    Args:
        tau: membrane time constant in steps, above 1.
        decay_input: multiply the input by ``1/tau``. None: True, or what ``charge`` says by its name.
        v_threshold: first threshold, volts.
        v_reset: potential after any spike, volts; None subtracts ``v_threshold`` per spike instead (soft reset).
        surrogate_function: one of SpikingJelly's surrogate objects, a name or a
            :class:`msf_pmsn_plugins.surrogate.Surrogate`; None is the host's ``Sigmoid()``, ``"published"`` the paper's
            rectangle of half-width ``threshold_step/2``.
        detach_reset: no gradient through the reset.
        step_mode: ``"s"`` takes [N, *], ``"m"`` takes [T, N, *].
        store_v_seq: keep the membranes after each step in ``v_seq`` [T, N, *].
        D: number of thresholds.
        threshold_step: spacing of the thresholds, volts.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``v_threshold`` and
            ``threshold_step``.
        charge: a key of :data:`msf_pmsn_plugins.charges.CHARGES`, or a pair: in training, in evaluation. None charges
            as ``LIFNode`` does, in its own order of operations; ``"decay"`` is the paper's, with ``tau`` from 1.
        w: start value of the learned ``w`` of a ``plif`` charge.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.

    What else :class:`msf_pmsn_plugins.neurons.MSF` can do (a learned decay for each channel, say) comes with
    :meth:`from_neuron`. Memory: ``v``, the membrane after reset, [N, *].

    Raises:
        ValueError: a parameter out of its range; see also :class:`SpikingJellyNode`.
    """

    PUBLISHED: ClassVar[dict[str, Any]] = {  # the paper's constants
        "tau": 4 / 3,
        "charge": "decay",
        "detach_reset": True,
        "surrogate_function": "published",
    }
    kind = MSF
    neuron: MSF
    _as_lif = False  # whether the charge follows what LIFNode would do

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool | None = None,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: str | Surrogate | FireFunction | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        D: int = 4,
        threshold_step: float = 1.0,
        thresholds: Sequence[float] | None = None,
        charge: str | tuple[str, str] | None = None,
        w: float | Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        names = lif_charge(decay_input is not False, v_reset) if charge is None else charge
        uses_tau = "tau" in {CHARGES[name].rate for name in _pair(names) if name in CHARGES}
        held = MSF(
            D=D,
            v_threshold=v_threshold,
            threshold_step=threshold_step,
            v_reset=0.0 if v_reset is None else v_reset,
            reset_mode="soft" if v_reset is None else "hard",
            detach_reset=bool(detach_reset),
            charge=names,
            tau=tau if uses_tau else None,
            w=w,
            decay=0.0,
            thresholds=thresholds,
            backend=backend,
        )
        super().__init__(held, step_mode, store_v_seq)
        self._as_lif = charge is None
        published = isinstance(surrogate_function, str) and surrogate_function == "published"
        if surrogate_function is None:
            surrogate_function = surrogate.Sigmoid()
        self.surrogate_function = None if published else surrogate_function
        if self._rate == "decay":
            self.tau = tau
        if decay_input is not None:
            self.decay_input = decay_input

    @classmethod
    def published(cls, D: int = 4, **settings: Any) -> Self:
        """The paper's neuron: decay ``1 - 1/tau = 0.25``, no input scaling, hard reset to 0, rectangular surrogate.

        ``settings`` are those of the constructor, and win.
        """
        return cls(D=D, **{**cls.PUBLISHED, **settings})

    @property
    def _rate(self) -> str:
        """What the charge is given: ``"decay"``, ``"tau"``, ``"w"`` or ``"none"``."""
        return CHARGES[self.neuron.charge[0]].rate

    @property
    def tau(self) -> Any:
        """The membrane time constant in steps; of a learned one its present value. Assign to change it."""
        held = self.neuron
        if self._rate == "w":
            return 1.0 / value_of(held, "w").detach().sigmoid()
        if self._rate == "none":
            return math.inf
        if self._rate == "tau":
            return held.tau
        decay: Any = held.decay
        return 1.0 / (1.0 - decay) if isinstance(decay, Tensor) or decay < 1 else math.inf

    @tau.setter
    def tau(self, value: Any) -> None:
        held = self.neuron
        if self._rate == "none":
            raise ValueError(f"charge={held.charge[0]!r} has no tau: it does not leak")
        least = _least(value)
        if not (least >= 1 if self._rate == "decay" else least > 1):
            bound = "at least 1" if self._rate == "decay" else "more than 1"
            raise ValueError(f"tau must be a number of {bound}, got {value!r}")
        if self._rate == "w":
            several = isinstance(value, Tensor) and value.numel() > 1
            held.overwrite("w", -torch.log(torch.as_tensor(value if several else number("tau", value)) - 1.0))
        elif self._rate == "tau":
            held.tau = value
        else:
            scaled = self.decay_input
            held.decay = 1.0 - 1.0 / value
            self.decay_input = scaled

    @property
    def decay_input(self) -> bool:
        """Whether the input is multiplied by ``1/tau``."""
        held = self.neuron
        return held.input_scale != 1.0 if self._rate == "decay" else held.charge[0].endswith("_decay_input")

    @decay_input.setter
    def decay_input(self, value: bool) -> None:
        if self._rate == "decay":
            if value and isinstance(self.neuron.decay, Tensor):  # the scale is one number
                raise ValueError(
                    "decay_input=True needs one constant tau: where tau is learned or differs between neurons, build "
                    "the node with charge='plif_decay_input', which scales the input by 1/tau = sigmoid(w)"
                )
            self.neuron.input_scale = 1.0 / self.tau if value else 1.0
        elif self._as_lif:
            self.neuron.charge = lif_charge(value, self.v_reset)
        elif bool(value) != self.decay_input:
            raise ValueError(
                f"charge={self.neuron.charge[0]!r} says by its name what it does with the input: leave out decay_input"
            )

    @property
    def charge(self) -> tuple[str, ...]:
        """How the neuron charges, in training and in evaluation; chosen at construction."""
        return self.neuron.charge

    @property
    def w(self) -> Tensor:
        """The learned parameter of a ``plif`` charge, ``1/tau = sigmoid(w)``."""
        if self._rate != "w":
            raise AttributeError(f"charge={self.charge[0]!r} has no w")
        return value_of(self.neuron, "w")

    @property
    def v_reset(self) -> float | None:
        """The potential after a spike, volts; None subtracts ``v_threshold`` per spike."""
        held = self._held
        return None if held.reset_mode == "soft" else held.v_reset

    @v_reset.setter
    def v_reset(self, value: float | None) -> None:
        held = self._held
        if held is not None:
            held.reset_mode = "soft" if value is None else "hard"
            held.v_reset = 0.0 if value is None else number("v_reset", value)
            if self._as_lif:
                held.charge = lif_charge(self.decay_input, value)

    @property
    def detach_reset(self) -> bool:
        """Whether no gradient passes through the reset."""
        return self._held.detach_reset

    @detach_reset.setter
    def detach_reset(self, value: bool) -> None:
        if self._held is not None:
            self._held.detach_reset = bool(value)

    @property
    def v_threshold(self) -> float | Tensor:
        """The first threshold, volts; a tensor after ``functional.set_threshold_margin``."""
        return value_of(self._held, "v_threshold")

    @v_threshold.setter
    def v_threshold(self, value: float | Tensor) -> None:
        held = self._held
        if held is None:
            return
        several = isinstance(value, Tensor) and value.numel() > 1
        learned = isinstance(value, Tensor) and value.requires_grad
        given = value if several or learned else number("v_threshold", value)
        if sources(held, "v_threshold") and not learned:
            held.overwrite("v_threshold", torch.as_tensor(given, dtype=torch.float64))
            return
        held.v_threshold = given
        if several and not learned:  # made from the labels of a batch
            held._non_persistent_buffers_set.add("v_threshold")

    def _step_laid_out(self, x: Tensor) -> Tensor:
        if not FUNCTIONAL or x.is_contiguous() or transformed():
            return x
        return gradient_laid_out(x, torch.contiguous_format)  # 2.0.0 starts from a contiguous membrane

    def extra_repr(self) -> str:
        return f"D={self.D}, {super().extra_repr()}, tau={brief(self.tau)}"

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
        """The residual after reset, volts, [N, *], to look at. Assigning sets the residual alone."""
        if "r" not in self._memories:  # the host's constructor asks before the memories are there
            raise AttributeError("v")
        v = self._memories["r"] * self._volts
        if not isinstance(v, Tensor) or transformed() or torch.compiler.is_compiling():
            return v
        name, parts = type(self).__name__, ", ".join(self._memories_rv)
        return ReadOnly.of(
            v,
            f"v of {name} shows its residual: an in-place change would not reach the state ({parts}). Change that: "
            f"node.carried = tuple(.. for part in node.carried), the samples of each part [N, *] that begin anew at 0",
        )

    @v.setter
    def v(self, value: Tensor | float) -> None:
        self._memories["r"] = value / self._volts

    def _stored(self) -> dict[str, str]:
        return {"v": "r"} if self.store_v_seq else {}

    def _shown(self, name: str, memory: Tensor) -> Tensor:
        volts = self._volts
        return memory if name != "v" or (not self.has_margin and volts == 1.0) else memory * volts

    @property
    def _volts(self) -> Tensor | float:
        """One threshold in volts; a tensor where each neuron has its own."""
        return self.v_threshold if self.has_margin else float(self.v_threshold)

    def __getattr__(self, name: str) -> Any:
        # The monitors of 0.0.0.0.14 call this directly and so miss the property.
        return type(self).v.fget(self) if name == "v" else super().__getattr__(name)  # type: ignore[attr-defined]


@teaching(PMSN_HAS_NOT)
class PMSNNode(ShowsPMSN, _ResidualNode):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917) as a SpikingJelly node.

    Args:
        channels: size of the channel axis; None takes it from the first input or a loaded state dict.
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [N, C, *], in both step modes; a tuple of adjacent axes
            counts as one axis of their product.
        v_threshold: volts.
        surrogate_function: as in :class:`MSFNode`; None is the published triangle of half-width 1 V.
        step_mode, store_v_seq, backend: as in :class:`MSFNode`.
        init: ``"sequence"``, ``"shd"`` or ``"imagenet"``: the published initialisations.
        store_z_seq: keep the hidden states after each step in ``z_seq`` [T, N, *, compartments - 1].

    The variants of :class:`msf_pmsn_plugins.neurons.PMSN` (``reset_mode``, ``burst``, ``coeff`` ..) come with
    :meth:`from_neuron`. Memories: ``r``, the residual in units of the threshold [N, *], and ``z``, the hidden state,
    complex [N, *, compartments - 1]. ``v`` shows the residual in volts.

    Raises:
        ValueError: a parameter out of its range, another channel count; see also :class:`SpikingJellyNode`.
    """

    kind = PMSN
    neuron: PMSN
    store_z_seq: bool = False
    z_seq: Tensor | None = None

    def __init__(
        self,
        channels: int | None = None,
        compartments: int = 5,
        channel_dim: int | Sequence[int] = 1,
        v_threshold: float = 1.0,
        surrogate_function: str | Surrogate | FireFunction | None = None,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        init: str = "sequence",
        store_z_seq: bool = False,
        backend: str = "auto",
    ) -> None:
        held = PMSN(
            channels=channels,
            compartments=compartments,
            channel_dim=channel_dim,
            v_threshold=v_threshold,
            init=init,
            backend=backend,
        )
        super().__init__(held, step_mode, store_v_seq)
        self.surrogate_function = surrogate_function
        self.store_z_seq = store_z_seq

    def __getattr__(self, name: str) -> Any:
        # The monitors of 0.0.0.0.14 call this directly, past what any object has.
        return self.__dict__.get(name) if name == "z_seq" else super().__getattr__(name)

    def _stored(self) -> dict[str, str]:
        return super()._stored() | ({"z": "z"} if self.store_z_seq else {})

    def reset(self) -> None:
        """Bring the state to its reset values and forget what was stored."""
        super().reset()
        self.z_seq = None

    @property
    def has_margin(self) -> bool:
        """Whether ``v_threshold`` is a tensor of thresholds, as ``functional.set_threshold_margin`` leaves it."""
        return self.__dict__.get("_margin") is not None

    @property
    def v_threshold(self) -> float | Tensor:
        """The threshold, volts; a tensor after ``functional.set_threshold_margin``."""
        margin = self.__dict__.get("_margin")
        return self._held.v_threshold if margin is None else margin

    @v_threshold.setter
    def v_threshold(self, value: float | Tensor) -> None:
        if self._held is None:
            return
        margin = isinstance(value, Tensor) and value.numel() > 1
        self.__dict__["_margin"] = value if margin else None
        if not margin:
            self._held.v_threshold = number("v_threshold", value)

    @counted
    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, **kwargs: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over one step: ``(x,)`` [N, *] -> ``(spikes,)``, states."""
        if not self.has_margin:
            return super().single_step_functional_forward(inputs, states, **kwargs)
        (s_seq,), states = self.multi_step_functional_forward((inputs[0].unsqueeze(0),), states)
        return (owned(s_seq.squeeze(0)),), states

    @counted
    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: State, lengths: Lengths | None = None, **kwargs: object
    ) -> tuple[tuple[Tensor], State]:
        """Pure transition over a sequence: ``(x_seq,)`` [T, N, *] -> ``(spikes,)``, states."""
        if not self.has_margin:
            return super().multi_step_functional_forward(inputs, states, lengths, **kwargs)
        s_seq, states, _kept = self._trajectory(inputs[0], states, lengths)
        return (s_seq,), states

    def _trajectory(
        self, x_seq: Tensor, states: State, lengths: Lengths | None
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        if not self.has_margin:
            return super()._trajectory(x_seq, states, lengths)
        if lengths is not None:
            raise ValueError("lengths and a tensor of thresholds (set_threshold_margin) do not go together")
        if self.neuron.overrides_step:
            raise ValueError(
                f"{type(self.neuron).__name__} has a step of its own, which knows no tensor of thresholds "
                "(set_threshold_margin)"
            )
        x_seq = floating(x_seq)
        self.sync_settings(x_seq.dtype)
        renew(self.neuron)
        states = self.materialize_states((x_seq,), states, "m")
        s_seq, kept = [], []
        for x in x_seq.unbind(0):
            s, states = self._step_with_margin(x, states)
            s_seq.append(s.to(x.dtype))
            kept.append(states)
        if not s_seq:
            return (
                torch.empty_like(x_seq),
                states,
                {"r": states[0].new_empty(x_seq.shape), "z": states[1][None][:0]},
            )
        r_seq, z_seq = (torch.stack(parts) for parts in zip(*kept, strict=True))
        out, states, _m = guarded(torch.stack(s_seq), states, None)
        return out, states, {"r": r_seq, "z": z_seq}

    def _step_with_margin(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        """One step with a threshold for each element: the settings of the kernels hold one number."""
        held, (r, z), theta = self.neuron, states, torch.as_tensor(self.v_threshold).to(states[0])
        if held.context == "global" or not bool((theta > 0).all()):
            raise ValueError("a tensor of thresholds must be positive and needs context='local'")
        settings = held.settings().but(v_threshold=theta)
        s, state, _m = pmsn_step(
            x.to(r.dtype), PMSNState(r, z), held.step_weights(x, r.dtype), settings, held.surrogate
        )
        return s, tuple(state)


@teaching(PARALLEL_IF_HAS_NOT)
class ParallelIFNode(ShowsParallelIF, _ResidualNode):
    """Integrate and fire without leak, all time steps at once: the parallel reset of PMSN as a node of its own.

    Negative inputs are clamped and a reset removes all whole thresholds; see
    :class:`msf_pmsn_plugins.neurons.ParallelIF`.

    Args:
        v_threshold: volts.
        surrogate_function, step_mode, store_v_seq, backend: as in :class:`MSFNode`; None is the triangle of half-width
            1 V.
        burst: emit the number of removed thresholds instead of one spike.

    Memory: ``r``, the residual in units of the threshold [N, *]; ``v`` shows it in volts.
    """

    kind = ParallelIF
    neuron: ParallelIF

    def __init__(
        self,
        v_threshold: float = 1.0,
        surrogate_function: str | Surrogate | FireFunction | None = None,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        burst: bool | str = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(ParallelIF(v_threshold, None, burst, backend), step_mode, store_v_seq)
        if surrogate_function is not None:
            self.surrogate_function = surrogate_function


def _pair(charge: str | tuple[str, ...]) -> tuple[str, ...]:
    return (charge,) if isinstance(charge, str) else charge


def _least(value: Any) -> float:
    """The smallest of a number or tensor; 2 of a tensor on a device, where the question would wait for it."""
    if isinstance(value, Tensor):
        return float(value.detach().min()) if value.device.type == "cpu" else 2.0
    return math.nan if isinstance(value, (str, bool)) else float(value)


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
