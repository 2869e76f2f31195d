"""MSF, PMSN and the parallel integrate-and-fire neuron as snnTorch neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .. import neurons as neutral
from ..lengths import Lengths, valid_steps
from ..neurons.autograd import guarded
from ..neurons.base import State
from ..neurons.msf import msf_step
from ..neurons.shown import ShowsMSF, ShowsParallelIF, ShowsPMSN
from ..settings import MSFValues
from ..tensors import MSFParameters
from ..words import PARALLEL_IF_HAS_NOT, PMSN_HAS_NOT, teaching
from .base import RESET_MODES, Mem, SnnTorchNeuron
from .numbers import as_beta, as_threshold, one_threshold, several
from .surrogates import GradientOf, SpikeGrad

__all__ = ["MSF", "PMSN", "ParallelIF"]


@teaching()
class MSF(ShowsMSF, SnnTorchNeuron):
    """The multi-synaptic firing neuron (Nature Communications 16, 7155) as a snnTorch neuron: Leaky with D thresholds.

    Emits integer counts 0..D. What is not said is as in ``Leaky``, whose arguments come first and mean the same here;
    with D = 1 it is ``Leaky``, to the bit, except that a membrane exactly on the threshold fires. The paper's neuron is
    :meth:`published`. ``mem`` is the membrane before reset, volts, [B, *]; the next step applies the reset.

    Args:
        beta: factor on the membrane per step, in [0, 1]: a number, or a tensor, an array or a list that broadcasts
            against one step [B, *].
        threshold: first threshold, volts, a number or several likewise.
        spike_grad: see :class:`SnnTorchNeuron`; None is the host's ``atan()``, ``"published"`` the paper's rectangle of
            half-width ``threshold_step/2``.
        learn_beta: learn the decay, as the sigmoid of ``neuron.decay_logit``; ``beta`` is then its start, in (0, 1).
        learn_threshold: learn the first threshold; the spacing stays.
        reset_mechanism: ``"subtract"``: the next membrane loses ``threshold`` volts per spike, undecayed; ``"zero"``
            (the paper's): any spike resets; ``"none"``.
        state_quant: a callable applied to the membrane before it fires, such as
            ``snntorch.functional.quant.state_quant()``; runs step by step.
        reset_delay: False resets in the step of the spike, with a gradient through the reset, and returns the membrane
            after it. Spikes are the same as with True unless ``"subtract"`` is chosen, whose subtraction then decays
            too (step by step where the decay or the threshold is learned).
        D: number of thresholds.
        threshold_step: spacing of the thresholds, volts.
        thresholds: explicit thresholds in volts, strictly increasing; they replace ``D``, ``threshold`` and
            ``threshold_step``.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.

    The other arguments, errors and the call are those of :class:`SnnTorchNeuron`.
    """

    PUBLISHED: ClassVar[dict[str, Any]] = {  # the paper's constants
        "beta": 0.25,
        "reset_mechanism": "zero",
        "spike_grad": "published",
    }
    kind = neutral.MSF
    neuron: neutral.MSF
    state_quant: Any = False
    host_numbers: ClassVar[dict[str, str]] = {"threshold": "v_threshold", "beta": "decay"}

    def __init__(
        self,
        beta: float | Tensor = 0.25,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: Callable[[Tensor], Tensor] | bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
        *,
        D: int = 4,
        threshold_step: float = 1.0,
        thresholds: Sequence[float] | None = None,
        sequence: bool = False,
        backend: str = "auto",
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
        published = isinstance(spike_grad, str) and spike_grad == "published"
        super().__init__(
            neutral.MSF(
                D=D,
                decay=several(beta) if learn_beta else as_beta(beta),
                learn_decay=learn_beta,
                thresholds=thresholds,
                v_threshold=several(threshold) if learn_threshold else as_threshold(threshold),
                threshold_step=threshold_step,
                reset_mode=RESET_MODES[reset_mechanism],
                reset_delay=bool(reset_delay),
                retake=not reset_delay,
                detach_reset=bool(reset_delay),
                learn_threshold=learn_threshold,
                channel_dim=-1,
                surrogate=None if published else "atan",
                backend=backend,
            ),
            spike_grad=None if published else spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
            sequence=sequence,
        )
        self.state_quant = state_quant

    @classmethod
    def published(cls, beta: float | Tensor = 0.25, threshold: float | Tensor = 1.0, **settings: Any) -> Self:
        """The paper's neuron: decay 0.25, reset to zero, rectangular surrogate of half-width ``threshold_step/2``.

        ``settings`` are those of the constructor, and win.
        """
        return cls(**{**cls.PUBLISHED, "beta": beta, "threshold": threshold, **settings})

    @classmethod
    def from_neuron(cls, neuron: Any, **options: Any) -> Self:
        node = super().from_neuron(neuron, **options)
        if node.neuron.reset_mode != "soft":  # that is its own; one assigned later is Leaky's
            node.neuron.retake = not node.reset_delay
        return node

    @property
    def beta(self) -> Tensor:
        """The decay, 0-d, or of a learned one its present value. Assign to change it: the tensor is a copy."""
        decay = self.neuron.decay
        return decay.detach() if isinstance(decay, Tensor) else self._show(decay)

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self.neuron.decay = value if self.neuron.decay_logit is not None else as_beta(value)

    @property
    def reset_delay(self) -> bool:
        """Whether ``mem`` is the membrane before the reset. Chosen at construction."""
        return self.neuron.reset_delay

    def _fire(self, m: Tensor) -> tuple[Tensor, Tensor]:
        """What membranes ``m`` [B, *] fire, and ``m`` after the reset of the neuron's own."""
        held = self.neuron
        _rate, threshold, amount = held.parameters_of(m, m.dtype)
        alone = held.settings().but(
            charge="decay", rate=0.0, input_scale=1.0, reset_delay=False, retake=False
        )
        s, after, _m = msf_step(
            m, torch.zeros_like(m), alone, MSFParameters(None, threshold, amount), self.spike_grad
        )
        return s, after

    @property
    def _by_hand(self) -> bool:
        """Whether the neuron's own step does not do: it does not quantise."""
        return bool(self.state_quant)

    def _sync(self) -> None:
        """On torch by name a function of the host is given the gradients themselves; kernels take its slopes."""
        gradient, exact = self.spike_grad, self.neuron.backend == "torch"
        if isinstance(gradient, GradientOf) and gradient.by_steps != exact:
            gradient.by_steps = exact and not gradient.overflows

    def _again(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None] | None:
        return None if self._by_hand else super()._again(x, state, membrane)

    def _one(self, x: Tensor, state: State, membrane: bool) -> tuple[Tensor, State, Tensor | None]:
        if not self._by_hand:
            self._sync()
            return super()._one(x, state, membrane)
        held = self.neuron
        m = self.state_quant(held.step(x, state)[2])
        s, v = self._fire(m)
        if self.reset_delay:
            v = m
        elif held.settings().retake:  # the step has taken what the state still fired; here only what is new
            v = m - (s - self._fire(state[0])[0].detach()) * self._amount(m)
        return guarded(s.to(x.dtype), (v,), m)

    def _amount(self, m: Tensor) -> float | Tensor:
        """What a soft reset takes for each spike, against membranes ``m`` [B, *]."""
        return MSFValues(self.neuron.settings(), self.neuron.parameters_of(m, m.dtype)).reset

    def _all(
        self, x_seq: Tensor, state: State, membrane: bool, lengths: Lengths | None
    ) -> tuple[Tensor, State, Tensor | None]:
        if not self._by_hand or len(x_seq) == 0:
            self._sync()
            return super()._all(x_seq, state, membrane, lengths)
        s_seq: list[Tensor] = []
        m_seq: list[Any] = []
        live_seq = torch.ones(x_seq.shape[:2], dtype=torch.bool, device=x_seq.device)
        if lengths is not None:
            live_seq = valid_steps(x_seq, lengths)
        for x, live in zip(x_seq.unbind(0), live_seq, strict=True):
            live = live.reshape([*live.shape, *[1] * (x.dim() - live.dim())])
            s, after, m = self._one(torch.where(live, x, 0.0), state, True)
            state = (torch.where(live, after[0], state[0]),)
            s_seq.append(torch.where(live, s, 0.0))
            m_seq.append(m)
        return torch.stack(s_seq), state, torch.stack(m_seq) if membrane else None

    def fire(self, mem: Tensor) -> Tensor:
        """Counts of the membranes ``mem`` [B, *] in volts, times the graded factor."""
        s = self._fire(self.state_quant(mem) if self.state_quant else mem)[0]
        return s * self.graded_spikes_factor.to(s.dtype)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """How many thresholds ``"subtract"`` removes from ``mem``, else 1 where it fires; without a gradient."""
        s = self._fire(mem)[0].detach()
        return s if self.reset_mechanism == "subtract" else s.clamp(max=1)


@teaching(PMSN_HAS_NOT)
class PMSN(ShowsPMSN, SnnTorchNeuron):
    """The parallel multi-compartment spiking neuron (arXiv 2408.14917) as a snnTorch neuron.

    ``mem`` is the membrane of the soma before its reset, volts, [B, *]: a tensor that brings the residual and the
    hidden compartments along when it is passed back. Where no tensor can carry them (compiled and exported graphs) it
    is the tuple ``(v, z)``, which is taken everywhere: the residual in volts [B, *], without a gradient, and the hidden
    state, complex [B, *, compartments - 1].

    Args:
        channels: size of the channel axis; None takes it from the first input or a loaded state dict.
        compartments: hidden ones plus the soma, 2 to 17.
        channel_dim: the channel axis in the per-step tensor [B, C, *], for sequences too; a tuple of adjacent axes
            counts as one axis of their product.
        threshold: volts.
        state_quant: must be False, the hidden state is complex.
        init: ``"sequence"``, ``"shd"`` or ``"imagenet"``: the published initialisations.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.

    The variants of :class:`msf_pmsn_plugins.neurons.PMSN` (``reset_mode``, ``burst``, ``coeff`` ..) come with
    :meth:`from_neuron`. The other arguments, errors and the call are those of :class:`SnnTorchNeuron`. Default
    surrogate: triangle of half-width 1 V. Its reset removes all whole thresholds.
    """

    carries = True
    kind = neutral.PMSN
    neuron: neutral.PMSN

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
        *,
        init: str = "sequence",
        sequence: bool = False,
        backend: str = "auto",
    ) -> None:
        if state_quant:
            raise ValueError(
                "state_quant is not supported by PMSN: its hidden state is complex, and no quantiser of snnTorch "
                "fits. Quantise the weights or the input instead"
            )
        super().__init__(
            neutral.PMSN(
                channels=channels,
                compartments=compartments,
                channel_dim=channel_dim,
                v_threshold=one_threshold(threshold),
                init=init,
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

    def _to_mem(self, state: State) -> Mem:
        r, z = state
        return r * float(self.neuron.v_threshold), z

    def _to_state(self, mem: State) -> State:
        v, z = mem
        return v / float(self.neuron.v_threshold), z


@teaching(PARALLEL_IF_HAS_NOT)
class ParallelIF(ShowsParallelIF, SnnTorchNeuron):
    """Integrate and fire without leak, all time steps at once: the parallel reset of PMSN as a neuron of its own.

    ``mem`` is the membrane before reset, volts, [B, *], and carries the residual, as in :class:`PMSN`. Negative inputs
    are clamped and a reset removes all whole thresholds; see :class:`msf_pmsn_plugins.neurons.ParallelIF`.

    Args:
        threshold: volts.
        spike_grad: as in :class:`SnnTorchNeuron`; None is the triangle of half-width 1 V.
        burst: emit the number of removed thresholds instead of one spike.
        backend: ``"auto"`` or the name of a backend of :mod:`msf_pmsn_plugins.backends`.

    The other arguments are those of :class:`SnnTorchNeuron`.
    """

    carries = True
    kind = neutral.ParallelIF
    neuron: neutral.ParallelIF

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeGrad = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
        *,
        burst: bool | str = False,
        sequence: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            neutral.ParallelIF(one_threshold(threshold), burst=burst, backend=backend),
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

    def _to_mem(self, state: State) -> Mem:
        # In a tuple: a bare tensor would be a membrane that has lost its state.
        return (state[0] * float(self.neuron.v_threshold),)

    def _to_state(self, mem: State) -> State:
        return (mem[0] / float(self.neuron.v_threshold),)
