"""The processes of one run."""

from __future__ import annotations

from typing import Any

from torch import distributed

__all__ = ["joined", "of_all_processes"]


def joined() -> bool:
    """Whether other processes take part in this run."""
    return distributed.is_available() and distributed.is_initialized()


def of_all_processes(mine: Any) -> list[Any]:
    """What each process has, in the order of their ranks."""
    if not joined():
        return [mine]
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, mine)
    return everyone
