"""The settings of a run's network and data, by their names on the command line, and what they may be later."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from . import RecipeError

__all__ = ["named", "of_run", "require_same"]

FREE = ("root", "cache", "num_workers", "download", "verify")
"""Settings of the data that say where they lie and how they are read."""
BY_EPOCH = ("batch_size", "seed", "mix_until")
"""Those that another epoch may have otherwise: see :class:`recipes.resume.Last`."""
IN_TRAINING = ("drop_last", "mixup", "cutmix", "mix_prob")
"""Those that no validation or test has."""


def named(config: Mapping[str, Any], name: str) -> dict[str, str]:
    """The values of one class of a configuration and of those within it: {"model.network.neuron.D": "4"}."""
    return dict(_flat(config, name))


def of_run(network: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run, from the parts of its configuration that say what is trained on what."""
    return {**named(network, "model.network"), **named(data, "data")}


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and "class_path" in value:
        yield name, str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    else:
        yield name, str(value)


def require_same(
    was: Mapping[str, str], now: Mapping[str, str], stage: str, division: Collection[str]
) -> None:
    """Compare the settings of a checkpoint with those of this start.

    A run that goes on keeps all of them. One that is validated or tested keeps its network, and the ``division`` of the
    data: with another one it would be judged by samples that it was trained on. Of other differences it warns.

    Raises:
        RecipeError: settings that must not differ do.
    """
    kept = {f"data.{name}" for name in division}
    free = {f"data.{name}" for name in (*FREE, *BY_EPOCH, *(() if stage == "fit" else IN_TRAINING))}
    changed = sorted(
        name for name in was.keys() | now.keys() if was.get(name) != now.get(name) and name not in free
    )

    def said(names: list[str]) -> str:
        # of another class only its name
        heads = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
        return "; ".join(
            f"{name} {was.get(name, 'not given')}, now {now.get(name, 'none')}" for name in heads
        )

    refused = [name for name in changed if stage == "fit" or name in kept or not name.startswith("data")]
    if refused:
        start = ", or another --out without --ckpt_path" if stage == "fit" else ""
        raise RecipeError(f"the checkpoint is of a run with {said(refused)}: give the same settings{start}")
    if changed:
        rank_zero_warn(
            f"the checkpoint is of a run with {said(changed)}; give the same settings to see how it does on those data"
        )
