"""The nodes of this package: dataclasses on ``nir.NIRNode``; docs/nir.md says what their fields mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .libraries import nir

FORMAT = 1  # of the nodes below: raise it when a field changes its meaning


class Node(nir.NIRNode):
    """A node of one input and one output, of ``shape`` [C, *] each: one step without the batch."""

    shape: Any

    def __post_init__(self) -> None:
        self.shape = np.asarray(self.shape, dtype=np.int64)
        self.input_type = {"input": self.shape}
        self.output_type = {"output": self.shape}

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> Any:
        if int(kwargs.get("version", FORMAT)) > FORMAT:
            raise ValueError(
                f"this {cls.__name__} node has format {int(kwargs['version'])}, and this msf-pmsn-plugins reads up "
                f"to {FORMAT}: it was written by a newer one, upgrade"
            )
        return super().from_dict(kwargs)


@dataclass(eq=False, kw_only=True)
class MSF(Node):
    """Multi-synaptic firing."""

    shape: Any
    thresholds: Any
    threshold_step: float
    charge: str
    train_charge: str
    rate: Any
    learned: int
    input_scale: float
    v_reset: float
    reset: str
    reset_delay: int
    detach_reset: int
    channel_dim: Any
    surrogate: str
    width: float
    graded_spikes_factor: Any = 1.0
    first_threshold: Any = field(default_factory=lambda: np.zeros(0))
    learned_threshold: int = 0
    reset_step: Any = field(default_factory=lambda: np.zeros(0))
    learned_reset_step: int = 0
    version: int = FORMAT
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class PMSN(Node):
    """Parallel multi-compartment spiking neuron."""

    shape: Any
    log_dt: Any
    log_A_real: Any
    A_imag: Any
    VinvB_real: Any
    VinvB_imag: Any
    CV_real: Any
    CV_imag: Any
    D: Any
    tied: int
    channel_dim: Any
    v_threshold: float
    init: str
    reset_mode: str
    burst: str
    coeff: float
    residual: str
    context: str
    dt_scale: float
    surrogate: str
    width: float
    graded_spikes_factor: Any = 1.0
    version: int = FORMAT
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class ParallelIF(Node):
    """PMSN's soma without compartments."""

    shape: Any
    v_threshold: float
    burst: str
    surrogate: str
    width: float
    graded_spikes_factor: Any = 1.0
    version: int = FORMAT
    metadata: dict[str, Any] = field(default_factory=dict)


OURS = {node.__name__: node for node in (MSF, PMSN, ParallelIF)}
