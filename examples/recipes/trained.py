"""What train.py has trained, read again."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import torch
from torch import nn

from .arguments import at_least_one, output
from .data.base import Data

__all__ = ["add_arguments", "instantiate"]


def add_arguments(parser: ArgumentParser) -> None:
    """The options of a command that takes a run of train.py and gives figures."""
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of a run of train.py ...")
    parser.add_argument("--checkpoint", type=Path, required=True, help="... and a checkpoint of it")
    parser.add_argument("--json", type=output, help="write the figures here")
    parser.add_argument("--threads", type=at_least_one, default=1)


def instantiate(config: Path, checkpoint: Path) -> tuple[nn.Module, Data]:
    """The network that train.py trained, with its weights, and its data module, from the ``config.yaml`` of the run."""
    from jsonargparse import ArgumentParser as TypedParser
    from yaml import safe_load

    settings = safe_load(config.read_text())
    parser = TypedParser()
    parser.add_subclass_arguments(nn.Module, "network")
    parser.add_subclass_arguments(Data, "data")
    parsed = parser.parse_object({"network": settings["model"]["network"], "data": settings["data"]})
    made = (
        parser.instantiate(parsed) if hasattr(parser, "instantiate") else parser.instantiate_classes(parsed)
    )
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    made.network.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )
    return made.network, made.data
