"""What published files take from timm, einops and torchinfo."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from .stand_in import StandIn, exists, fails_to_import, install

__all__ = ["DropPath", "timm", "to_2tuple", "unused"]

MOVED = {"timm.models.layers": "timm.layers", "timm.models.registry": "timm.models._registry"}


def timm(changes: ExitStack) -> None:
    """The names of old timm: the installed one at its present place, or the few functions that recipes take."""
    if not exists("timm"):
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
            install(changes, StandIn(name, offers, lambda *_: "For more: pip install timm"))
        return
    for old, new in MOVED.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has moved
            if fails_to_import(old):
                install(changes, importlib.import_module(new), old)


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


def unused(changes: ExitStack) -> None:
    """Packages that files import and their models never use."""
    for package, (module, name) in UNUSED.items():
        if not exists(package):
            parts = module.split(".")
            for n in range(1, len(parts) + 1):
                offers = {name: _refused(package)} if n == len(parts) else {}
                install(
                    changes,
                    StandIn(".".join(parts[:n]), offers, lambda *_, p=package: f"For more: pip install {p}"),
                )


def _refused(package: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ImportError(f"this model really uses {package}: pip install {package}")

    return refuse
