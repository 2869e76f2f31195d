"""What an op and its kernels must know that is no tensor: one frozen object, from the module to the backend.

``torch.library`` wants flat schemas: :func:`schema`, :func:`flatten` and :func:`restore` are the way there and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

from torch import Tensor

from .tensors import MSFParameters

__all__ = ["MSFSettings", "MSFValues", "PMSNSettings", "asks", "flatten", "restore", "schema"]


class _Settings:
    """A frozen dataclass. Its hash is made once: settings are the key of what backends remember."""

    names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls.names = tuple(cls.__annotations__)

    def but(self, **changes: Any) -> Self:
        """These settings with ``changes``; ``dataclasses.replace`` is none that torch.compile traces before 2.7."""
        return type(self)(**{**dict(zip(self.names, flatten(self), strict=True)), **changes})

    def __hash__(self) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = hash(flatten(self))
        return found


@dataclass(frozen=True)
class MSFSettings(_Settings):
    """The numbers and words of one MSF op.

    Args:
        charge: a key of :data:`~msf_pmsn_plugins.charges.CHARGES`.
        thresholds: ascending, volts; where the first is a tensor (``MSFParameters.threshold``), distances from it.
        rate: what the charge calls ``k``, where it is a number.
        input_scale: factor on the input (charge ``"decay"`` only).
        v_reset: potential after a hard reset, volts.
        reset_mode: a key of :data:`~msf_pmsn_plugins.resets.RESETS`.
        reset_amount: what a soft reset subtracts per spike, volts, where it is a number.
        reset_delay: reset at the next step, after its charge (snnTorch): the state is the membrane before the reset.
        retake: before a step fires, what its state still fires is subtracted too, undecayed (snnTorch's ``"subtract"``
            without a delay); in it no gradient passes to tensors of :class:`~msf_pmsn_plugins.tensors.MSFParameters`.
        detach_reset: no gradient through the reset.
        surrogate, width: a key of :data:`~msf_pmsn_plugins.surrogate.SURROGATES` and its parameter; the name ``""``:
            the backward is given the slopes.
        keep: what the forward leaves for the backward: ``"none"``, ``"code"`` (one byte an element) or
            ``"membrane"``; or, for no backward, ``"state"``: the state after each step.
    """

    charge: str
    thresholds: tuple[float, ...]
    rate: float = 0.0
    input_scale: float = 1.0
    v_reset: float = 0.0
    reset_mode: str = "hard"
    reset_amount: float = 1.0
    reset_delay: bool = False
    retake: bool = False
    detach_reset: bool = True
    surrogate: str = "rectangular"
    width: float = 0.5
    keep: str = "membrane"

    __hash__ = _Settings.__hash__


@dataclass(frozen=True)
class PMSNSettings(_Settings):
    """The numbers and words of one PMSN op.

    Args:
        v_threshold: volts.
        reset_mode: a key of :data:`~msf_pmsn_plugins.neurons.pmsn.RESET_MODES`.
        burst: ``""`` (one spike), or counts with the surrogate read at the distance to the ``"nearest"`` threshold
            or by the published ``"sawtooth"``.
        fixed: the residual in fixed point and the drive by the plain recurrence: every chunking has equal bits.
        surrogate, width: a key of :data:`~msf_pmsn_plugins.surrogate.SURROGATES` and its parameter; the name ``""``:
            the backward is given the slopes.
        keep_drive, keep_membrane: return the drive of the soma, its membrane before the reset.
        keep_residual: return the residual after every step, [T, L, C, K], in place of the last one.
        state_grad: make the gradient of the hidden state, the largest tensor of short sequences.
    """

    v_threshold: float = 1.0
    reset_mode: str = "floor"
    burst: str = ""
    fixed: bool = False
    surrogate: str = "triangle"
    width: float = 1.0
    keep_drive: bool = True
    keep_membrane: bool = False
    keep_residual: bool = False
    state_grad: bool = True

    __hash__ = _Settings.__hash__


class MSFValues:
    """The numbers of one step of MSF, each a float or a tensor that broadcasts against it."""

    def __init__(self, settings: MSFSettings, parameters: MSFParameters) -> None:
        rate, first, reset = parameters
        self.rate: float | Tensor = settings.rate if rate is None else rate
        self.reset: float | Tensor = settings.reset_amount if reset is None else reset
        self.thresholds: Sequence[float | Tensor] = settings.thresholds
        if first is not None:
            self.thresholds = [first + distance for distance in settings.thresholds]


Settings = TypeVar("Settings", MSFSettings, PMSNSettings)

_SCHEMA = {"str": "str", "float": "float", "bool": "bool", "tuple[float, ...]": "float[]"}


def schema(kind: type[Any]) -> str:
    """The fields of a settings class as arguments in a schema of ``torch.library``."""
    return ", ".join(f"{_SCHEMA[str(field.type)]} {field.name}" for field in fields(kind))


def flatten(settings: Any) -> tuple[Any, ...]:
    """The values of ``settings`` in the order of :func:`schema`."""
    return tuple([getattr(settings, name) for name in settings.names])


def restore(kind: type[Settings], values: Iterable[Any]) -> Settings:
    """The inverse of :func:`flatten`."""
    arguments: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return kind(*arguments)


def asks(settings: MSFSettings | PMSNSettings, parameters: tuple[Tensor | None, ...] = ()) -> tuple[str, ...]:
    """What a backend must know to run these settings, as words that complete "has no ..".

    A surrogate is none of them: one that a backend does not know comes to it as slopes.
    """
    words = [f"reset {settings.reset_mode!r}"]
    if isinstance(settings, MSFSettings):
        words.append(f"charge {settings.charge!r}")
        words += ["delayed reset"] * settings.reset_delay + ["undecayed reset at once"] * settings.retake
    else:
        words += ["membranes out"] * settings.keep_membrane + ["residuals out"] * settings.keep_residual
    for name in MSFParameters._fields:
        words += [f"tensor of {name}s"] * (getattr(parameters, name, None) is not None)
    return tuple(words)
