"""What train.py has trained, read again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .data.base import Data

__all__ = ["instantiate"]


def instantiate(config: Path, checkpoint: Path) -> tuple[nn.Module, Data]:
    """The network that train.py trained, with its weights, and its data module, from the ``config.yaml`` of the run."""
    from jsonargparse import ArgumentParser
    from yaml import safe_load

    settings = safe_load(config.read_text())
    parser = ArgumentParser()
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
