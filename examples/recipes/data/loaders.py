"""Samples, order and batches that repeat whatever the number of workers and processes, and go on where a run ended."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, default_collate

from .. import RecipeError
from .files import one_line

__all__ = ["Batches", "Loader", "Order", "Part", "Reader", "Samples", "randomness"]


@contextmanager
def randomness(*key: int) -> Iterator[None]:
    """Seed Python, NumPy and torch by ``key`` inside, and leave them as they were."""
    words = np.random.SeedSequence(key).generate_state(3)
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


class Samples(Dataset):
    """The samples ``indices`` of ``source``, transformed.

    With a ``seed``, the transform's random numbers are a function of (seed, epoch, sample) alone: not of the number of
    workers or processes, nor of where a run was interrupted.
    """

    def __init__(
        self, source: Any, indices: Sequence[int], transform: Callable[[Any], Any], seed: int | None = None
    ):
        self.source = source
        self.indices = indices
        self.transform = transform
        self.seed = seed

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, key):
        epoch, position = key if isinstance(key, tuple) else (0, key)
        index = int(self.indices[position])
        x, y = self.read(index)
        if self.seed is None:
            return self.transform(x), y
        with randomness(self.seed, epoch, index):
            return self.transform(x), y

    def read(self, index: int) -> Any:
        """What ``source`` has there; raises RecipeError, with its name, where it cannot be read."""
        try:
            return self.source[index]
        except RecipeError:
            raise
        except Exception as error:  # image readers raise all kinds
            name = self.source.name(index) if hasattr(self.source, "name") else f"sample {index}"
            raise RecipeError(f"cannot read {name} ({one_line(error)})") from error

    def __getitems__(self, keys):
        """The samples of a batch, or the failure of one: torch would put a worker's traceback into the message."""
        try:
            return [self[key] for key in keys]
        except RecipeError as error:
            return Failure(str(error))


@dataclass(frozen=True)
class Failure:
    """Why a batch could not be read, on its way from a worker."""

    message: str


def collate_unless_failed(collate: Callable[[list[Any]], Any], samples: list[Any] | Failure) -> Any:
    return samples if isinstance(samples, Failure) else collate(samples)


class Part(Dataset):
    """Some samples of another data set."""

    def __init__(self, source: Any, indices: np.ndarray):
        self.source = source
        self.indices = indices
        self.targets = source.targets[indices]

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.source[self.indices[index]]


class Order(DistributedSampler):
    """A new order each epoch, a function of (seed, epoch); process r of W takes every W-th sample from the r-th on.

    So the samples of a global batch do not depend on W. Yields (epoch, position), as :class:`Samples` takes it.
    """

    def __iter__(self):
        return ((self.epoch, position) for position in super().__iter__())


class Batches(BatchSampler):
    """Batches of an :class:`Order`; the first ``skip`` are left out, once."""

    skip = 0

    def __iter__(self):
        # a generator, so this runs at the first batch: torch's loader makes an iterator more than it uses
        skip, self.skip = self.skip, 0
        yield from islice(super().__iter__(), skip, None)


class Reader(DataLoader):
    """A loader that raises what its workers could not read as one RecipeError."""

    def __init__(self, samples: Samples, *args: Any, collate_fn: Callable = default_collate, **settings: Any):
        super().__init__(samples, *args, collate_fn=partial(collate_unless_failed, collate_fn), **settings)

    def __iter__(self):
        for batch in super().__iter__():
            if isinstance(batch, Failure):
                raise RecipeError(batch.message)
            yield batch


class Loader(Reader):
    """A loader whose state, the number of batches handed out in this epoch, goes into Lightning's checkpoints.

    Everything else follows from the seed and the epoch. Iterating is lazy: Lightning calls ``iter(loader)`` before it
    sets the epoch, and workers would fetch from the wrong order.
    """

    batches = 0

    def __iter__(self):
        self.batches = self.batch_sampler.skip
        for batch in super().__iter__():
            self.batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # a checkpoint of the last batch of an epoch goes on with the next epoch
        self.batch_sampler.skip = state["batches"] % len(self)
