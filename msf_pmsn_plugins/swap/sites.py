"""Find the neurons of a model: by class, by the class names of copies, or as named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from ..hosts import host_of_neuron, load
from ..neurons.nodes import held_by
from .attached import patched
from .spec import Activation, Read, Reading, given

__all__ = [
    "Found",
    "find",
    "is_ours",
    "like_neurons",
    "readings_of",
    "steps_of",
]


@dataclass(frozen=True)
class Found:
    """A neuron and who can read it: ``role`` is ``"stock"``, ``"relative"``, ``"own"`` or ``"activation"``."""

    path: str
    module: nn.Module
    host: ModuleType
    role: str
    reading: Reading | None = None


def find(model: nn.Module, neuron_classes: Sequence[type] | Mapping[type, Reading]) -> Iterator[Found]:
    """Every neuron of ``model`` but ours, shared ones once per path; raise TypeError for classes that are none."""
    registered = readings_of(neuron_classes)
    for path, module in model.named_modules(remove_duplicate=False):
        if is_ours(module):
            continue
        reading = next((registered[cls] for cls in type(module).__mro__ if cls in registered), None)
        framework = _framework(module)
        if reading is not None:
            role = "activation" if isinstance(reading, Activation) else "own"
            yield Found(path, module, load(framework or "spikingjelly"), role, reading)
        elif framework is not None:
            host = load(framework)
            yield Found(path, module, host, "stock" if _is_stock(host, module) else "relative")


def readings_of(neuron_classes: Sequence[type] | Mapping[type, Reading]) -> dict[type, Reading]:
    """How to read each of ``neuron_classes``; raise TypeError for one that is none."""
    if isinstance(neuron_classes, type):
        name = neuron_classes.__name__
        raise TypeError(f"neuron_classes are several: say ({name},), or {{{name}: swap.Read(..)}}")
    found: dict[type, Reading] = {}
    found.update(
        neuron_classes if isinstance(neuron_classes, Mapping) else dict.fromkeys(neuron_classes, Read())
    )
    for cls, reading in found.items():
        if not isinstance(cls, type):
            raise TypeError(f"neuron_classes names classes, as MyLIF, got an object: {cls!r}")
        if not isinstance(reading, Read | Activation):
            raise TypeError(
                f"{cls.__name__} is read by a swap.Read or swap.Activation, got {given(reading, Read, Activation)}"
            )
    return found


def _is_stock(host: ModuleType, module: nn.Module) -> bool:
    return host.is_stock(module) and not patched(module)  # one may compute otherwise


def is_ours(module: nn.Module) -> bool:
    """Whether ``module`` is, holds, or lies inside one of our neurons."""
    return held_by(module) is not None


def _framework(module: nn.Module) -> str | None:
    """The framework whose neuron ``module`` is, or is written after: a base class of one's own may be a copy alone."""
    name = host_of_neuron(module)
    if name is None and hasattr(module, "v_threshold"):
        copied = any(cls.__name__ == "BaseNode" for cls in type(module).__mro__)
        return "spikingjelly" if copied else None
    return name


# Names that neurons have; of a module with children, no name that parts of spiking networks have.
SOUNDS = r"LIF|IF$|IFNode|[Ss]pik|[Nn]euron|mem_update|^[Ff]ire"
PARTS = r"(?i)block|conv|layer|atten|attn|net|mlp|former|linear|embed|stem|stage|head|pool|norm|encoder|yolo|model"
THRESHOLDS = ("v_threshold", "threshold", "thresh", "v_th", "vth", "Vth", "V_th")


def like_neurons(model: nn.Module, sites: Iterable[str] = ()) -> dict[str, str]:
    """What is no site, holds none and looks like a neuron: path -> class name."""
    known = set(sites)
    holders = {".".join(path.split(".")[:n]) for path in known for n in range(path.count(".") + 1)}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        parts = path.split(".")
        inside = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if inside & (known | found.keys()) or path in holders | {""} or any(map(is_ours, module.modules())):
            continue
        name = getattr(module, "original_name", type(module).__name__)  # of a scripted one
        part = "matmul" in name.lower() or (any(module.children()) and re.search(PARTS, name))
        named = re.search(SOUNDS, name) and not part
        if named or any(name in vars(module) or name in module._buffers for name in THRESHOLDS):
            found[path] = name
    return found


def steps_of(module: Any) -> str:
    """``"s"`` or ``"m"`` of a framework's neuron: its word, or, where it has none, that of its class's name."""
    supported = list(module.supported_step_mode()) if hasattr(module, "supported_step_mode") else []
    mode = supported[0] if len(supported) == 1 else getattr(module, "step_mode", None)
    if mode in ("s", "m"):
        return mode
    return "m" if any(cls.__name__.startswith("MultiStep") for cls in type(module).__mro__) else "s"
