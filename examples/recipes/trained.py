"""What train.py has trained, read again."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from . import RecipeError
from .arguments import at_least_one, output, said
from .checkpoints import WholeCheckpoints
from .data.base import Data
from .data.files import one_line, reading
from .settings import of_run, require_same

__all__ = ["add_arguments", "draw", "instantiate"]


def add_arguments(parser: ArgumentParser) -> None:
    """The options of a command that takes a run of train.py and gives figures."""
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of a run of train.py ...")
    parser.add_argument("--checkpoint", type=Path, required=True, help="... and a checkpoint of it")
    parser.add_argument("--json", type=output, help="write the figures here")
    parser.add_argument("--threads", type=at_least_one, default=1)


def instantiate(config: Path, checkpoint: Path) -> tuple[nn.Module, Data]:
    """The network that train.py trained, with its weights, and its data module, from the ``config.yaml`` of the run.

    Raises:
        RecipeError: files that are no such two, or not of one run.
    """
    made, settings = _made(config)
    held = _read(checkpoint)
    was = {name: value for name, value in held.get("settings", settings).items() if name != "data.samples"}
    require_same(was, settings, "test", made.data.division)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in held["state_dict"].items() if k.startswith(prefix)}
    try:
        made.model.network.load_state_dict(weights)
    except RuntimeError as error:
        own = made.model.network.state_dict()
        wrong = [name for name in {**own, **weights} if _shape(own, name) != _shape(weights, name)]
        raise RecipeError(
            f"{checkpoint} holds the weights of another network than {config}: {len(wrong)} tensors differ in name or "
            f"size, {wrong[0] if wrong else one_line(error)} for one; give both of one run"
        ) from error
    return made.model.network, made.data


def _made(config: Path) -> tuple[Any, dict[str, str]]:
    """Network and data of a configuration, and their settings by name."""
    from jsonargparse import ArgumentError
    from jsonargparse import ArgumentParser as TypedParser
    from yaml import safe_load

    with reading(config):
        settings = safe_load(config.read_text())
    try:
        chosen = {"model": {"network": settings["model"]["network"]}, "data": settings["data"]}
    except (TypeError, KeyError) as error:
        raise RecipeError(
            f"{config} is no config.yaml of a run of train.py: it has no model.network and data"
        ) from error
    parser = TypedParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model.network", required=True)
    parser.add_subclass_arguments(Data, "data", required=True)
    try:
        parsed = parser.parse_object(chosen)
        build = getattr(parser, "instantiate", None) or parser.instantiate_classes
        made = build(parsed)
    except ArgumentError as error:
        raise RecipeError(f"{config}: {said(error)}") from error
    except (ValueError, TypeError) as error:  # of a constructor: it says what it expects
        raise RecipeError(f"{config}: {one_line(error)}") from error
    full = parsed.as_dict()
    return made, of_run(full["model"]["network"], full["data"])


def _read(checkpoint: Path) -> dict[str, Any]:
    held = WholeCheckpoints().load_checkpoint(checkpoint)
    weights = held.get("state_dict") if isinstance(held, dict) else None
    if not isinstance(weights, dict) or not any(name.startswith("network.") for name in weights):
        raise RecipeError(f"{checkpoint} is no checkpoint of train.py: it holds no state_dict of a network")
    return held


def _shape(tensors: dict[str, Tensor], name: str) -> Any:
    return getattr(tensors.get(name), "shape", None)


def draw(data: Data, count: int) -> None:
    """Leave ``count`` of the test part, the same at every call; the first ones of a set are often of one class."""
    part = data.samples["test"]
    chosen = np.random.default_rng(0).permutation(len(part))[:count]
    part.indices = np.asarray(part.indices)[np.sort(chosen)]
