"""``spikingjelly.clock_driven`` and ``spikingjelly.cext`` on the installed SpikingJelly."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

from torch import nn

from ... import hosts
from .layers import LAYOUTS, containers, layers
from .nodes import cext_nodes, check_backend, nodes
from .originals import where
from .stand_in import StandIn, exists, fails_to_import, install, set_until_exit
from .surrogates import surrogate_bases
from .zoo import ACCELERATING, MODELS, ann2snn, models, recurrent

__all__ = ["old_spikingjelly"]

OLD, CEXT = "spikingjelly.clock_driven", "spikingjelly.cext"
PARTS = ("base", "surrogate", "neuron", "functional", "layer", "encoding", "rnn", "ann2snn")

# What 0.0.0.0.12 has under these names, and 2.0.0 too, with the same arguments and the same bits. PiecewiseLeakyReLU
# is not among them: its derivative is another one in 2.0.0.
SURROGATES = (
    "PiecewiseQuadratic",
    "PiecewiseExp",
    "Sigmoid",
    "SoftSign",
    "ATan",
    "NonzeroSignLogAbs",
    "Erf",
    "SquarewaveFourierSeries",
    "S2NN",
    "QPseudoSpike",
)
ENCODERS = ("PoissonEncoder", "PeriodicEncoder", "LatencyEncoder", "WeightedPhaseEncoder")
FUNCTIONS = (
    "reset_net",
    "set_threshold_margin",
    "redundant_one_hot",
    "first_spike_index",
    "multi_step_forward",
    "seq_to_ann_forward",
    "spike_similar_loss",
    "kernel_dot_product",
    "temporal_efficient_training_cross_entropy",
    "kaiming_normal_conv_linear_weight",
)


def old_spikingjelly(changes: ExitStack, layout: str) -> None:
    """Make the old names of SpikingJelly resolve until ``changes`` ends."""
    host = _host()
    if exists(OLD):
        real = {part: importlib.import_module(f"{OLD}.{part}") for part in PARTS}
        neuron, layer = real["neuron"], real["layer"]
        if neuron.cupy is None:
            for cls in _constructors(neuron, real["base"].MemoryModule):
                set_until_exit(changes, cls, "__init__", _without_cupy(cls.__init__))
        for name, container in containers(layout).items():
            set_until_exit(changes, layer, name, container)
    else:
        parts = {part: _part(part, layout) for part in PARTS}
        zoo = {name: _model(name) for name in MODELS}
        parts["model"] = StandIn(f"{OLD}.model", dict(zoo), where)
        root = StandIn(OLD, dict(parts), where)
        install(changes, root)
        for module in [*parts.values(), *zoo.values()]:
            install(changes, module)
    install(changes, StandIn(f"{OLD}.accelerating", dict(ACCELERATING), where))
    if not exists(f"{CEXT}.neuron") or fails_to_import(f"{CEXT}.neuron"):
        if CEXT not in sys.modules:
            if exists(CEXT):
                importlib.import_module(CEXT)
            else:
                install(changes, StandIn(CEXT, {}, where))
        install(
            changes,
            StandIn(
                f"{CEXT}.neuron",
                cext_nodes(sys.modules[f"{OLD}.neuron"], sys.modules[f"{OLD}.surrogate"]),
                where,
            ),
        )
    _accept_backends(changes, host)


def _host() -> ModuleType:
    """The host SpikingJelly; through it the installed ``base``, ``functional``, ``neuron`` and ``surrogate``."""
    return hosts.load("spikingjelly")


def _new(part: str) -> ModuleType:
    """A part of the installed ``activation_based``."""
    return importlib.import_module(f"{_host().base.__package__}.{part}")


def _constructors(module: ModuleType, base: type) -> set[Any]:
    """The classes of a module derived from ``base`` that have a constructor of their own."""
    classes = {cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base)}
    return {cls for cls in classes if "__init__" in vars(cls)}


def _without_cupy(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes ``backend='cupy'`` for ``'torch'``, and no CuPy in inference."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        if given.arguments.get("backend") == "cupy":
            given.arguments["backend"] = "torch"
        if given.arguments.get("cupy_fp32_inference"):
            given.arguments["cupy_fp32_inference"] = False
        init(*given.args, **given.kwargs)

    return constructor


def _accept_backends(changes: ExitStack, host: ModuleType) -> None:
    """Let nodes of ``activation_based`` take ``backend='cupy'``, and ``functional.set_backend`` exist."""
    memory = host.base.MemoryModule
    if hasattr(host.base, "check_backend_library"):  # 0.0.0.0.14: all goes through one property
        if host.base.cupy is None:
            setter = memory.backend.fset

            def set_backend(self: Any, value: str) -> None:
                setter(self, "torch" if value == "cupy" else value)

            set_until_exit(changes, memory, "backend", memory.backend.setter(set_backend))
        return
    for cls in _constructors(host.neuron, memory):
        if "backend" not in inspect.signature(cls.__init__).parameters:
            set_until_exit(changes, cls, "__init__", _with_backend(cls.__init__))
    set_until_exit(changes, host.functional, "set_backend", _set_backend)


def _with_backend(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes and checks ``backend``; 2.0.0 chooses its kernels by itself."""

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, backend: str = "torch", **kwargs: Any) -> None:
        check_backend(backend)
        init(self, *args, **kwargs)

    return constructor


def _set_backend(net: nn.Module, backend: str, instance: Any = (nn.Module,)) -> None:
    """Choose the backend of all nodes that have a choice; stock nodes of 2.0.0 have none."""
    check_backend(backend)
    for module in net.modules():
        if isinstance(module, instance) and backend in getattr(module, "supported_backends", ()):
            module.backend = backend


@functools.cache  # one class, however often the context is entered: isinstance must hold
def _part(part: str, layout: str) -> StandIn:
    offers: dict[str, Any]
    if part == "base":
        offers = {"MemoryModule": _new("base").MemoryModule}
    elif part == "surrogate":
        # under the old name: the swap then takes gradients through the object, as the original does
        offers = {name: _renamed(getattr(_new(part), name), f"{OLD}.{part}") for name in SURROGATES}
        offers |= surrogate_bases(f"{OLD}.{part}")
    elif part == "neuron":
        offers = nodes(_new("base").MemoryModule, _part("surrogate", LAYOUTS[0]).Sigmoid, OLD)
    elif part == "functional":
        offers = {name: getattr(_new(part), name) for name in FUNCTIONS}
    elif part == "encoding":
        offers = {name: getattr(_new(part), name) for name in ENCODERS}
    elif part == "rnn":
        offers = recurrent(_new(part), f"{OLD}.{part}")
    elif part == "ann2snn":
        offers = ann2snn(_new(part), f"{OLD}.{part}")
    else:
        offers = layers(_new("layer"), layout)
    if part != "layer" and layout != LAYOUTS[0]:
        return _part(part, LAYOUTS[0])
    return StandIn(f"{OLD}.{part}", offers, where)


@functools.cache
def _model(name: str) -> StandIn:
    return StandIn(f"{OLD}.model.{name}", models(_new(f"model.{name}"), _new("layer").BatchNorm2d), where)


def _renamed(cls: type, module: str) -> type:
    return type(cls.__name__, (cls,), {"__module__": module, "__doc__": cls.__doc__})
