"""Old import names, so that published model files import and build as they are.

::

    with swap.legacy_imports():
        from model import spikformer  # spikingjelly.clock_driven, backend='cupy', timm.models.layers ..
        net = spikformer(...)

What a name stands for: on SpikingJelly 0.0.0.0.14 its own ``clock_driven``; on 2.0.0, which has none, the nodes below.
They have the original's equations in its order of operations, its arguments and its ``state_dict`` keys, and compute
with torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import hosts
from ..charges import CHARGES

__all__ = ["legacy_imports"]

OLD, CEXT = "spikingjelly.clock_driven", "spikingjelly.cext"
LAYOUTS = ("module", "sequential")
PARTS = ("base", "surrogate", "neuron", "functional", "layer", "encoding")

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
) + (
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
) + (
    "seq_to_ann_forward",
    "spike_similar_loss",
    "kernel_dot_product",
    "temporal_efficient_training_cross_entropy",
    "kaiming_normal_conv_linear_weight",
)

_active = threading.Lock()


@contextmanager
def legacy_imports(*, seq_to_ann: str = "module") -> Iterator[None]:
    """Let published model files import and build unchanged on SpikingJelly 2.0.0 and 0.0.0.0.14, without CuPy.

    Inside the context these resolve: ``spikingjelly.clock_driven`` (neuron, layer, functional, surrogate, encoding),
    ``spikingjelly.cext.neuron``, ``backend='cupy'`` on nodes and ``functional.set_backend`` (computed with torch where
    CuPy cannot be had), ``timm.models.layers``, ``timm.models.registry``, ``timm.models.vision_transformer._cfg`` (the
    installed timm at its present place, else the few functions that recipes take from it), and einops and torchinfo
    where they are not installed, for files that import them without use.

    On exit ``sys.modules`` and every changed attribute are as before, also after an exception. Models that were built
    inside stay usable: import and build inside, run where you like.

    Args:
        seq_to_ann: the child names of ``SeqToANNContainer`` and ``MultiStepContainer``. ``"module"``: those of the
            2021 snapshot that SEW ResNet's files and checkpoints are made for (``conv1.module.0.weight``);
            ``"sequential"``: those of the releases (``conv1.0.weight``). Either loads the state dict of the other.

    Raises:
        RuntimeError: it is active already. The names belong to the whole process, so there is one at a time: neither
            nested nor in two threads. Other threads see the old names as well while it is active.
        ImportError: SpikingJelly is not installed; or, inside, a name that is not offered.
        ValueError: an unknown ``seq_to_ann``.
    """
    if seq_to_ann not in LAYOUTS:
        raise ValueError(f"seq_to_ann must be one of {LAYOUTS}, got {seq_to_ann!r}")
    if not _active.acquire(blocking=False):
        raise RuntimeError(
            "legacy_imports() is active already, here or in another thread. It changes import names of the whole "
            "process: leave the first context before you enter another"
        )
    try:
        with ExitStack() as changes:
            _spikingjelly(changes, seq_to_ann)
            _timm(changes)
            _unused(changes)
            yield
    finally:
        _active.release()


def _set(changes: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until the context ends."""
    if name in vars(owner):
        changes.callback(setattr, owner, name, vars(owner)[name])
    else:
        changes.callback(delattr, owner, name)
    setattr(owner, name, value)


def _install(changes: ExitStack, module: ModuleType, name: str | None = None) -> None:
    """Make a module importable until the context ends, as ``name`` or its own."""
    name = name or module.__name__
    old = sys.modules.get(name)
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        _set(changes, sys.modules[parent], child, module)
    if old is None:
        changes.callback(sys.modules.pop, name, None)
    else:
        changes.callback(sys.modules.__setitem__, name, old)


class _StandIn(ModuleType):
    """A module that stands for another one and says what it offers when asked for more."""

    def __init__(self, name: str, offers: dict[str, Any], hint: str) -> None:
        super().__init__(name, f"Stand-in for {name}.")
        self.__path__: list[str] = []  # a package: its parts are found in sys.modules
        self.__hint__ = hint
        self.__all__ = sorted(offers)
        vars(self).update(offers)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        offered = ", ".join(self.__all__) or "nothing"
        raise ImportError(
            f"{self.__name__} has no {name!r} under legacy_imports(); it offers {offered}. {self.__hint__}"
        )


NEWER = "For more use SpikingJelly 0.0.0.0.14, which has the original"


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


# SpikingJelly ---------------------------------------------------------------------------------------------------------


def _spikingjelly(changes: ExitStack, layout: str) -> None:
    host = _host()
    if _exists(OLD):
        real = {part: importlib.import_module(f"{OLD}.{part}") for part in PARTS}
        neuron, layer = real["neuron"], real["layer"]
        if neuron.cupy is None:
            for cls in _constructors(neuron, real["base"].MemoryModule):
                _set(changes, cls, "__init__", _without_cupy(cls.__init__))
        for name, container in _containers(layout).items():
            _set(changes, layer, name, container)
    else:
        parts = {part: _part(part, layout) for part in PARTS}
        root = _StandIn(OLD, dict(parts), NEWER)
        _install(changes, root)
        for module in parts.values():
            _install(changes, module)
    if not _exists(f"{CEXT}.neuron") or _unimportable(f"{CEXT}.neuron"):
        if CEXT not in sys.modules:
            if _exists(CEXT):
                importlib.import_module(CEXT)
            else:
                _install(changes, _StandIn(CEXT, {}, NEWER))
        _install(changes, _StandIn(f"{CEXT}.neuron", _cext_nodes(sys.modules[f"{OLD}.neuron"]), NEWER))
    _accept_backends(changes, host)


def _host() -> ModuleType:
    """The host SpikingJelly; through it the installed ``base``, ``functional``, ``neuron``."""
    return hosts.load("spikingjelly")


def _new(part: str) -> ModuleType:
    """A part of the installed ``activation_based``."""
    return importlib.import_module(f"{_host().base.__package__}.{part}")


def _unimportable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return True
    return False


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

            _set(changes, memory, "backend", memory.backend.setter(set_backend))
        return
    for cls in _constructors(host.neuron, memory):
        if "backend" not in inspect.signature(cls.__init__).parameters:
            _set(changes, cls, "__init__", _with_backend(cls.__init__))
    _set(changes, host.functional, "set_backend", _set_backend)


def _with_backend(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that takes and checks ``backend``; 2.0.0 chooses its kernels by itself."""

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, backend: str = "torch", **kwargs: Any) -> None:
        _check_backend(backend)
        init(self, *args, **kwargs)

    return constructor


def _check_backend(backend: str) -> str:
    if backend not in ("torch", "cupy"):
        raise NotImplementedError(f"backend={backend!r}: under legacy_imports() it can be 'torch' or 'cupy'")
    return "torch"


def _set_backend(net: nn.Module, backend: str, instance: Any = (nn.Module,)) -> None:
    """Choose the backend of all nodes that have a choice; stock nodes of 2.0.0 have none."""
    _check_backend(backend)
    for module in net.modules():
        if isinstance(module, instance) and backend in getattr(module, "supported_backends", ()):
            module.backend = backend


# The parts of clock_driven, for a SpikingJelly without them -----------------------------------------------------------


@functools.cache  # one class, however often the context is entered: isinstance must hold
def _part(part: str, layout: str) -> _StandIn:
    offers: dict[str, Any]
    if part == "base":
        offers = {"MemoryModule": _new("base").MemoryModule}
    elif part == "surrogate":
        # under the old name: the swap then takes gradients through the object, as the original does
        offers = {name: _renamed(getattr(_new(part), name), f"{OLD}.{part}") for name in SURROGATES}
    elif part == "neuron":
        offers = _nodes(_new("base").MemoryModule, _part("surrogate", LAYOUTS[0]).Sigmoid)
    elif part == "functional":
        offers = {name: getattr(_new(part), name) for name in FUNCTIONS}
    elif part == "encoding":
        offers = {name: getattr(_new(part), name) for name in ENCODERS}
    else:
        offers = _layers(layout)
    if part != "layer" and layout != LAYOUTS[0]:
        return _part(part, LAYOUTS[0])
    return _StandIn(f"{OLD}.{part}", offers, NEWER)


def _renamed(cls: type, module: str) -> type:
    return type(cls.__name__, (cls,), {"__module__": module, "__doc__": cls.__doc__})


def _nodes(memory_module: Any, sigmoid: Callable[[], nn.Module]) -> dict[str, type]:
    """The nodes of ``clock_driven.neuron``: charge, fire, reset; 2.0.0's memories."""

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

    class IFNode(BaseNode):
        def __init__(self, *args: Any, cupy_fp32_inference: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

        def neuronal_charge(self, x: Tensor) -> None:
            self.v = self.v + x

    class LIFNode(BaseNode):
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

    class ParametricLIFNode(BaseNode):
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

    offers: dict[str, Any] = {cls.__name__: cls for cls in (BaseNode, IFNode, LIFNode, ParametricLIFNode)}
    for single in (IFNode, LIFNode, ParametricLIFNode):
        offers["MultiStep" + single.__name__] = _multi_step(single)
    for name, cls in offers.items():
        cls.__name__ = cls.__qualname__ = name
        cls.__module__ = f"{OLD}.neuron"
    return offers


def _multi_step(single: Any) -> type:
    """The node that takes [T, N, *] and steps through it."""

    class MultiStep(single):
        def __init__(self, *args: Any, backend: str = "torch", lava_s_cale: int = 64, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.backend = _check_backend(backend)
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


def _layers(layout: str) -> dict[str, Any]:
    new = _new("layer")
    offers: dict[str, Any] = {"MultiStepTemporalWiseAttention": new.TemporalWiseAttention}
    for name in ("Dropout", "Dropout2d"):
        offers[name] = getattr(new, name)
        offers["MultiStep" + name] = _multi_step_dropout(getattr(new, name))
    for n in "123":
        name = f"ThresholdDependentBatchNorm{n}d"
        offers["MultiStep" + name] = getattr(new, name)
    return offers | _containers(layout)


def _multi_step_dropout(single: Any) -> type:
    def __init__(self: Any, p: float = 0.5) -> None:
        single.__init__(self, p, step_mode="m")

    return type(
        "MultiStep" + single.__name__, (single,), {"__init__": __init__, "__module__": f"{OLD}.layer"}
    )


def _child_names(layout: str, count: int) -> list[str]:
    if layout == "sequential":
        return [f"{i}." for i in range(count)]
    return ["module."] if count == 1 else [f"module.{i}." for i in range(count)]


@functools.cache
def _containers(layout: str) -> dict[str, type]:
    """``SeqToANNContainer`` and ``MultiStepContainer`` with the child names of the layout."""
    (other,) = set(LAYOUTS) - {layout}

    class Module(nn.Module):
        def __init__(self, *args: nn.Module) -> None:
            super().__init__()
            self.module = args[0] if len(args) == 1 else nn.Sequential(*args)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    kind: Any = nn.Sequential if layout == "sequential" else Module

    class Container(kind):
        def __init__(self, *args: nn.Module) -> None:
            super().__init__(*args)
            self._count = len(args)

        def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
            """Take the other layout's keys too."""
            names = [_child_names(name, self._count) for name in (layout, other)]
            for mine, theirs in zip(*names, strict=True):
                for key in [k for k in state_dict if k.startswith(prefix + theirs)]:
                    state_dict[prefix + mine + key.removeprefix(prefix + theirs)] = state_dict.pop(key)
            super()._load_from_state_dict(state_dict, prefix, *args)

    class SeqToANNContainer(Container):
        """[T, N, *] through stateless layers, time and batch together."""

        def forward(self, x_seq: Tensor) -> Tensor:
            y = super().forward(x_seq.flatten(0, 1))
            return y.view(*x_seq.shape[:2], *y.shape[1:])

    class MultiStepContainer(Container):
        """[T, N, *] through single-step modules, step by step."""

        def forward(self, x_seq: Tensor) -> Tensor:
            return torch.stack([super(MultiStepContainer, self).forward(x) for x in x_seq])

    offers: dict[str, type] = {cls.__name__: cls for cls in (SeqToANNContainer, MultiStepContainer)}
    for name, cls in offers.items():
        cls.__qualname__, cls.__module__ = name, f"{OLD}.layer"
    return offers


@functools.cache
def _cext_nodes(neuron: Any) -> dict[str, type]:
    """The nodes of ``cext.neuron``: those of ``clock_driven`` with other arguments, and ``w`` of shape [1].

    The original runs CUDA kernels: equal to rounding.
    """
    surrogate = sys.modules[f"{OLD}.surrogate"]

    def function(name: str, alpha: float) -> Any:
        if name not in ("ATan", "Sigmoid"):
            raise ValueError(
                f"surrogate_function must be 'ATan' or 'Sigmoid' in spikingjelly.cext, got {name!r}"
            )
        return getattr(surrogate, name)(alpha)

    def node(name: str) -> type:
        parametric, leaky = "Parametric" in name, "LIF" in name

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            own = dict(given.arguments)
            own["surrogate_function"] = function(own["surrogate_function"], own.pop("alpha"))
            if leaky:
                own["decay_input"] = not own.pop("detach_input")
            base.__init__(self, **own)
            if parametric:
                self.w = nn.Parameter(self.w.detach().reshape(1))

        base = getattr(neuron, name)
        own = [("init_tau" if parametric else "tau", 2.0 if parametric else 100.0), ("detach_input", False)]
        common = [("v_threshold", 1.0), ("v_reset", 0.0), ("surrogate_function", "ATan"), ("alpha", 2.0)]
        names = (own if leaky else []) + common + [("detach_reset", False)]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(n, kind, default=d) for n, d in names])
        return type(
            name, (base,), {"__init__": __init__, "__module__": f"{CEXT}.neuron", "__doc__": base.__doc__}
        )

    kinds = ("IFNode", "LIFNode", "ParametricLIFNode")
    return {name: node(name) for kind in kinds for name in (kind, "MultiStep" + kind)}


# timm and others ----------------------------------------------------------------------------------------------------

MOVED = {"timm.models.layers": "timm.layers", "timm.models.registry": "timm.models._registry"}


def _timm(changes: ExitStack) -> None:
    if not _exists("timm"):
        layers = {"DropPath": DropPath, "to_2tuple": to_2tuple, "trunc_normal_": nn.init.trunc_normal_}
        register_model, create_model = _registry()
        parts: dict[str, dict[str, Any]] = {
            "timm": {},
            "timm.models": {"create_model": create_model},
            "timm.layers": layers,
            "timm.models.layers": layers,
            "timm.models.registry": {"register_model": register_model},
            "timm.models.vision_transformer": {"_cfg": _cfg},
        }
        for name, offers in parts.items():
            _install(changes, _StandIn(name, offers, "For more: pip install timm"))
        return
    for old, new in MOVED.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has moved
            if _unimportable(old):
                _install(changes, importlib.import_module(new), old)


class DropPath(nn.Module):
    """Drop whole samples (axis 0) with a probability in training, and scale the others up: stochastic depth."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(keep)
        if keep > 0.0 and self.scale_by_keep:
            mask.div_(keep)
        return x * mask


def to_2tuple(value: Any) -> Any:
    """A pair of a number; an iterable as it is."""
    return value if isinstance(value, Iterable) and not isinstance(value, str) else (value, value)


def _registry() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``register_model`` and ``create_model``, for as long as the context lasts."""
    models: dict[str, Callable[..., Any]] = {}

    def register_model(function: Callable[..., Any]) -> Callable[..., Any]:
        models[function.__name__] = function
        return function

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        if name not in models:
            raise ValueError(f"no model {name!r} was registered; there are: {', '.join(models) or 'none'}")
        given = {key: value for key, value in kwargs.items() if value is not None}
        return models[name](pretrained=pretrained, **given)

    return register_model, create_model


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    """What a recipe says about its inputs, as it says it."""
    return {"url": url, **kwargs}


# Imported by published model files, and never used by their models.
UNUSED = {"einops": ("einops.layers.torch", "Rearrange"), "torchinfo": ("torchinfo", "summary")}


def _unused(changes: ExitStack) -> None:
    for package, (module, name) in UNUSED.items():
        if not _exists(package):
            parts = module.split(".")
            for n in range(1, len(parts) + 1):
                offers = {name: _refused(package)} if n == len(parts) else {}
                _install(changes, _StandIn(".".join(parts[:n]), offers, f"For more: pip install {package}"))


def _refused(package: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"this model really uses {package}: pip install {package}")

    return refuse
