"""What all data sets share: settings, splits, loaders, and errors that teach."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from .. import RecipeError
from ..processes import joined, of_all_processes
from .files import Fault, Locked, one_line, places
from .loaders import Batches, Loader, Order, Reader, Samples

__all__ = ["Data", "hold_out"]

SPLITS = ("train", "val", "test")


def hold_out(targets: Sequence[int], fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay, and a random ``fraction`` of each class that is held out; sorted.

    At least one sample of a class is held out, and at least one stays; a class of one sample stays.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held out fraction must lie in (0, 1), got {fraction}")
    generator = np.random.default_rng(seed)
    targets = np.asarray(targets)
    held = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        held[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def agree(error: RecipeError | None) -> None:
    """Raise on every process what went wrong on one of them, so that each ends with that line and none waits."""
    said = of_all_processes(None if error is None else str(error))
    first = next((message for message in said if message is not None), None)
    if first is not None:
        raise RecipeError(first) from error


class Data(LightningDataModule):
    """A data set with a training, a validation and a test part; batches (x, y) or (x, y, lengths), time first.

    Args:
        root: folder that holds the data set.
        batch_size: samples of a batch, over all processes together.
        num_workers: processes that read, for each training process.
        val_fraction: part of each class of the training set held out for model selection, where the data set brings
            no validation set. The same samples for every seed.
        seed: of the order and the augmentation; follows ``seed_everything``.
        download: fetch what is missing, where the library can.
        verify: check that the set is complete, by the checksums and counts of its publisher. False takes the folder as
            it is: a part of the set, or your own data in its format; labels, ranges and types are checked all the same.
        cache: folder for what is made from the files, such as frames of events. By default ``root/frames``, or the
            user's cache folder where that cannot be written.
        drop_last: leave out a last training batch that is not full.
        mixup, cutmix: parameter of their beta distribution, 0 for none; one of them is drawn where both are given.
        mix_prob, mix_until: mix that share of the batches, up to this epoch.
    """

    layout: str
    """Axes of x: "NCHW", "TNC", "TNCHW", or "NCL" for signals that the network cuts into steps."""
    classes: int | None = None
    """Number of classes, None for regression."""
    tree: str
    """The files under ``root``, for error messages."""
    division: tuple[str, ...] = ()
    """The settings on which it depends which samples are tested; "samples" is how many each part has."""
    # a rank may be left without validation samples
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 64,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        seed: int = 0,
        download: bool = False,
        verify: bool = True,
        cache: str | None = None,
        drop_last: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        mix_until: int | None = None,
    ):
        super().__init__()
        if batch_size < 1 or num_workers < 0 or seed < 0:
            raise RecipeError(
                f"data.batch_size must be 1 or more, data.num_workers and data.seed 0 or more, got {batch_size}, "
                f"{num_workers} and {seed}"
            )
        if not 0 < val_fraction < 1:
            raise RecipeError(f"data.val_fraction must lie in (0, 1), got {val_fraction}")
        if not (0 <= mixup < math.inf and 0 <= cutmix < math.inf and 0 <= mix_prob <= 1):
            raise RecipeError(
                f"data.mixup and data.cutmix must be 0 or more and data.mix_prob in [0, 1], got {mixup}, {cutmix} and "
                f"{mix_prob}"
            )
        self.root = Path(os.path.expanduser(root))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.val_fraction = val_fraction
        self.seed = seed
        self.download = download
        self.verify = verify
        self.cache = cache
        self.drop_last = drop_last
        self.mixup = mixup
        self.cutmix = cutmix
        self.mix_prob = mix_prob
        self.mix_until = mix_until
        self.samples: dict[str, Samples] = {}
        self._prepared: dict[str, Any] | RecipeError | None = None

    # -- what a data set says about itself

    @property
    def about(self) -> str:
        """Its name, and how it is divided where a setting says that."""
        return type(self).__name__

    def fetch(self) -> None:
        """Download what is missing, each folder by :func:`whole`."""
        raise RecipeError(f"{type(self).__name__} has no free download; put its files in place: {self.tree}")

    def open(self, split: str) -> Dataset | None:
        """The samples of "train", "val" or "test" before the transform; None: take "val" from "train"."""
        raise NotImplementedError

    def transform(self, train: bool) -> Callable[[Any], Any]:
        """What turns a sample's x into a tensor, without the batch axis."""
        raise NotImplementedError

    def labels(self, source: Any) -> np.ndarray:
        return np.asarray(source.targets)

    augmented = False
    """The training transform draws random numbers."""

    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def arrange(self, batch: Any) -> Any:
        """A collated batch, [N, ...], with the axes of ``layout``."""
        x, *rest = batch
        return (x.transpose(0, 1) if self.layout.startswith("T") else x, *rest)

    def places(self) -> list[Path]:
        """Folders for what is made from the files, first choice first."""
        return places(self.cache, self.root / "frames")

    # -- Lightning

    def prepare_data(self) -> None:
        """In one process of a machine: fetch, make what is made once, and look at every file."""
        try:
            if self.download:
                self.fetch()
            sources = self.sources()
            self._guarded(lambda: self.examine(sources))
            self._prepared = sources
        except RecipeError as error:
            if not joined():
                raise
            self._prepared = error  # the others wait: setup tells them

    def examine(self, sources: dict[str, Any]) -> None:
        """Look for damage in what :meth:`open` does not read; raises Fault."""

    def sources(self) -> dict[str, Any]:
        """What :meth:`open` gives for each split, or an error that says what is needed."""
        if (self.mixup or self.cutmix) and (self.classes is None or self.layout == "TNC"):
            raise RecipeError(
                f"mixup and cutmix mix classes of images; {type(self).__name__} gives {self.layout} here"
            )
        return self._guarded(lambda: {split: self.open(split) for split in SPLITS})

    def _guarded(self, read: Callable[[], Any]) -> Any:
        """What ``read`` gives; a fault of a file becomes one line with what the data set needs."""
        try:
            return read()
        except Locked as error:
            raise RecipeError(f"{type(self).__name__} in {self.root.resolve()}: {one_line(error)}") from error
        except Fault as error:
            raise RecipeError(
                f"{type(self).__name__} in {self.root.resolve()} is missing or damaged: {one_line(error)}; needed: "
                f"{self.tree}; {self.remedy}"
            ) from error

    @property
    def remedy(self) -> str:
        return (
            "put the publisher's files in their place, or move away what is there of them and give "
            "--data.download true"
        )

    def setup(self, stage: str | None = None) -> None:
        if self.samples:
            return
        error = None
        try:
            sources = self._checked()
        except RecipeError as raised:
            error = raised
        agree(error)
        indices = {split: np.arange(len(source)) for split, source in sources.items() if source is not None}
        if sources["val"] is None:
            sources["val"] = sources["train"]
            indices["train"], indices["val"] = hold_out(self.labels(sources["train"]), self.val_fraction)
            if len(indices["val"]) == 0:
                raise RecipeError(
                    f"no class of {type(self).__name__} has two training samples, of which one could be held out for "
                    "validation; add samples"
                )
        for split in SPLITS:
            self.samples[split] = self.gather(sources[split], indices[split], split == "train")

    def gather(self, source: Any, indices: np.ndarray, train: bool) -> Samples:
        """The samples ``indices`` of ``source``, transformed for training or not."""
        seed = self.seed if train and self.augmented else None
        return Samples(source, indices, self.transform(train), seed)

    def _checked(self) -> dict[str, Any]:
        """The sources of all splits, once their labels are found right."""
        prepared, self._prepared = self._prepared, None
        if isinstance(prepared, RecipeError):
            raise prepared
        sources = self.sources() if prepared is None else prepared
        for split, source in sources.items():
            if source is not None and self.classes is not None:
                self._check(split, source)
        return sources

    def _check(self, split: str, source: Any) -> None:
        labels = self.labels(source)
        if labels.shape != (len(source),) or (len(labels) and labels.dtype.kind not in "iu"):
            raise RecipeError(
                f"{type(self).__name__} has {len(source)} {split} samples, their labels are "
                f"{labels.dtype}{list(labels.shape)}; one integer for each is needed"
            )
        if len(labels) == 0:
            raise RecipeError(
                f"no {split} samples of {type(self).__name__} in {self.root.resolve()}: {self.tree}"
            )
        if labels.min() < 0 or labels.max() >= self.classes:
            raise RecipeError(
                f"the {split} labels of {type(self).__name__} lie in {labels.min()}..{labels.max()}, "
                f"but it has {self.classes} classes (0..{self.classes - 1})"
            )

    def _share(self) -> tuple[int, int, int]:
        """Number of processes, this one, its part of a batch."""
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if self.batch_size % world:
            raise RecipeError(
                f"batch_size is for all processes: {self.batch_size} does not divide among {world}"
            )
        return world, rank, self.batch_size // world

    def train_dataloader(self) -> Loader:
        world, rank, size = self._share()
        order = Order(self.samples["train"], world, rank, shuffle=True, seed=self.seed)
        batches = Batches(order, size, self.drop_last)
        if len(batches) == 0:
            raise RecipeError(
                f"{len(order)} training samples do not fill one batch of {size}; lower data.batch_size"
            )
        return Loader(self.samples["train"], batch_sampler=batches, **self._settings())

    def _ordered(self, split: str) -> DataLoader:
        world, rank, size = self._share()
        # no padding to equal shares: every sample counts once
        mine = range(rank, len(self.samples[split]), world)
        return Reader(self.samples[split], size, sampler=mine, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": self.collate,
            "pin_memory": torch.cuda.is_available(),
            # its own, so that starting workers leaves torch's random numbers alone
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def val_dataloader(self) -> DataLoader:
        return self._ordered("val")

    def test_dataloader(self) -> DataLoader:
        return self._ordered("test")

    def mix(self, batch: Any) -> Any:
        """A collated training batch after mixup or cutmix; its y are then class probabilities [N, classes]."""
        ways = [v2.MixUp(alpha=self.mixup, num_classes=self.classes)] if self.mixup else []
        ways += [v2.CutMix(alpha=self.cutmix, num_classes=self.classes)] if self.cutmix else []
        ended = self.mix_until is not None and self.trainer.current_epoch >= self.mix_until
        if not ways or ended or torch.rand(()) >= self.mix_prob:
            return batch
        x, y = batch
        # as a video, torchvision mixes [N, T, C, H, W] too
        mixed, y = v2.RandomChoice(ways)(tv_tensors.Video(x) if x.dim() == 5 else x, y)
        return mixed.as_subclass(Tensor), y
