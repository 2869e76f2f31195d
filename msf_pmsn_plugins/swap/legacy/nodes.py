"""The nodes of ``clock_driven.neuron`` and ``cext.neuron``, for a SpikingJelly without them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...charges import CHARGES

__all__ = ["cext_nodes", "check_backend", "nodes"]


def check_backend(backend: str) -> str:
    """``"torch"``, for a name that old files give; raises NotImplementedError for others."""
    if backend not in ("torch", "cupy"):
        raise NotImplementedError(f"backend={backend!r}: under legacy_imports() it can be 'torch' or 'cupy'")
    return "torch"


def nodes(memory_module: Any, sigmoid: Callable[[], nn.Module], old: str) -> dict[str, type]:
    """The nodes of ``clock_driven.neuron``, by name.

    Args:
        memory_module: the host's class for modules with memories.
        sigmoid: makes the default surrogate.
        old: the import name of ``clock_driven``.
    """
    base = _base_node(memory_module, sigmoid)
    singles = (_if_node(base), _lif_node(base), _parametric_lif_node(base))
    offers: dict[str, Any] = {cls.__name__: cls for cls in (base, *singles)}
    for single in singles:
        offers["MultiStep" + single.__name__] = _multi_step(single)
    for name, cls in offers.items():
        cls.__name__ = cls.__qualname__ = name
        cls.__module__ = f"{old}.neuron"
    return offers


def _base_node(memory_module: Any, sigmoid: Callable[[], nn.Module]) -> Any:
    """Charge, fire, reset, with 2.0.0's memories."""

    class BaseNode(memory_module):
        v: Any

        def __init__(
            self,
            v_threshold: float = 1.0,
            v_reset: float | None = 0.0,
            surrogate_function: Any = None,
            detach_reset: bool = False,
        ) -> None:
            for name, value in {"v_threshold": v_threshold, "v_reset": v_reset}.items():
                if not isinstance(value, float) and not (name == "v_reset" and value is None):
                    raise TypeError(f"{name} must be a float, got {value!r}")
            super().__init__()
            self.register_memory("v", 0.0 if v_reset is None else v_reset)
            self.register_memory("v_threshold", v_threshold)
            self.register_memory("v_reset", v_reset)
            self.detach_reset = detach_reset
            self.surrogate_function = sigmoid() if surrogate_function is None else surrogate_function

        def supported_step_mode(self) -> tuple[str, ...]:
            return ("s",)

        @property
        def step_mode(self) -> str:
            """The class decides: ``functional.set_step_mode`` changes nothing, as it does in the original."""
            return self.supported_step_mode()[0]

        @step_mode.setter
        def step_mode(self, value: str) -> None: ...

        def neuronal_charge(self, x: Tensor) -> None:
            raise NotImplementedError(f"{type(self).__name__} must define neuronal_charge(x)")

        def neuronal_fire(self) -> Tensor:
            return self.surrogate_function(self.v - self.v_threshold)

        def neuronal_reset(self, spike: Tensor) -> None:
            spike = spike.detach() if self.detach_reset else spike
            if self.v_reset is None:
                self.v = self.v - spike * self.v_threshold
            else:
                self.v = (1.0 - spike) * self.v + spike * self.v_reset

        def forward(self, x: Tensor) -> Tensor:
            self.neuronal_charge(x)
            spike = self.neuronal_fire()
            self.neuronal_reset(spike)
            return spike

        def extra_repr(self) -> str:
            return f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, detach_reset={self.detach_reset}"

    return BaseNode


def _if_node(base: Any) -> Any:
    class IFNode(base):
        v: Any

        def __init__(self, *args: Any, cupy_fp32_inference: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

        def neuronal_charge(self, x: Tensor) -> None:
            self.v = self.v + x

    return IFNode


def _lif_node(base: Any) -> Any:
    class LIFNode(base):
        v: Any

        def __init__(
            self,
            tau: float = 2.0,
            decay_input: bool = True,
            *args: Any,
            cupy_fp32_inference: bool = False,
            **kwargs: Any,
        ) -> None:
            if not isinstance(tau, float) or tau <= 1.0:
                raise ValueError(f"tau must be a float above 1, got {tau!r}")
            super().__init__(*args, **kwargs)
            self.tau = tau
            self.decay_input = decay_input

        def neuronal_charge(self, x: Tensor) -> None:
            if self.v_reset is None or self.v_reset == 0.0:
                charge = "lif_rest_zero_decay_input" if self.decay_input else "lif_product"
            else:
                charge = "lif_decay_input" if self.decay_input else "lif"
            self.v = CHARGES[charge].forward(x, self.v, self.tau, self.v_reset or 0.0, 1.0)

        def extra_repr(self) -> str:
            return f"{super().extra_repr()}, tau={self.tau}"

    return LIFNode


def _parametric_lif_node(base: Any) -> Any:
    class ParametricLIFNode(base):
        v: Any

        def __init__(
            self, init_tau: float = 2.0, decay_input: bool = True, *args: Any, **kwargs: Any
        ) -> None:
            if not isinstance(init_tau, float) or init_tau <= 1.0:
                raise ValueError(f"init_tau must be a float above 1, got {init_tau!r}")
            super().__init__(*args, **kwargs)
            self.decay_input = decay_input
            self.w = nn.Parameter(torch.as_tensor(-math.log(init_tau - 1.0)))

        def neuronal_charge(self, x: Tensor) -> None:
            at_zero = self.v_reset is None or self.v_reset == 0.0
            if self.decay_input:
                charge = "plif_decay_input"
            else:
                charge = "plif_product" if at_zero else "plif"
            self.v = CHARGES[charge].forward(x, self.v, self.w.sigmoid(), self.v_reset or 0.0, 1.0)

        def extra_repr(self) -> str:
            return f"{super().extra_repr()}, tau={1.0 / self.w.detach().sigmoid().item():g}"

    return ParametricLIFNode


def _multi_step(single: Any) -> type:
    """The node that takes [T, N, *] and steps through it."""

    class MultiStep(single):
        def __init__(self, *args: Any, backend: str = "torch", lava_s_cale: int = 64, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.backend = check_backend(backend)
            self.register_memory("v_seq", None)

        def supported_step_mode(self) -> tuple[str, ...]:
            return ("m",)

        def forward(self, x_seq: Tensor) -> Tensor:
            if x_seq.dim() < 2:
                raise ValueError(
                    f"{type(self).__name__} takes [T, N, *], time first; got {tuple(x_seq.shape)}"
                )
            steps, membranes = [], []
            for t in range(len(x_seq)):  # not unbind: the layout of its gradient gives sums of other bits
                steps.append(super().forward(x_seq[t]))
                membranes.append(self.v)
            self.v_seq = torch.stack(membranes)
            return torch.stack(steps)

        def extra_repr(self) -> str:
            return f"{super().extra_repr()}, backend={self.backend}"

    return MultiStep


# The original runs CUDA kernels: equal to rounding.
@functools.cache
def cext_nodes(neuron: Any, surrogate: Any) -> dict[str, type]:
    """The nodes of ``cext.neuron``: those of ``clock_driven`` with other arguments, and ``w`` of shape [1]."""
    kinds = ("IFNode", "LIFNode", "ParametricLIFNode")
    names = [name for kind in kinds for name in (kind, "MultiStep" + kind)]
    return {name: _cext_node(getattr(neuron, name), surrogate) for name in names}


def _cext_node(base: Any, surrogate: Any) -> type:
    name = base.__name__
    parametric, leaky = "Parametric" in name, "LIF" in name
    signature = _cext_signature(parametric, leaky)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        own = dict(given.arguments)
        function, alpha = own.pop("surrogate_function"), own.pop("alpha")
        if function not in ("ATan", "Sigmoid"):
            raise ValueError(
                f"surrogate_function must be 'ATan' or 'Sigmoid' in spikingjelly.cext, got {function!r}"
            )
        if leaky:
            own["decay_input"] = not own.pop("detach_input")
        base.__init__(self, surrogate_function=getattr(surrogate, function)(alpha), **own)
        if parametric:
            self.w = nn.Parameter(self.w.detach().reshape(1))

    body = {"__init__": __init__, "__module__": "spikingjelly.cext.neuron", "__doc__": base.__doc__}
    return type(name, (base,), body)


def _cext_signature(parametric: bool, leaky: bool) -> inspect.Signature:
    own = [("init_tau" if parametric else "tau", 2.0 if parametric else 100.0), ("detach_input", False)]
    common = [("v_threshold", 1.0), ("v_reset", 0.0), ("surrogate_function", "ATan"), ("alpha", 2.0)]
    names = (own if leaky else []) + common + [("detach_reset", False)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Signature([inspect.Parameter(n, kind, default=d) for n, d in names])
