"""What data sets of images with boxes share: augmentation, checks of the boxes, padded batches."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import RecipeError
from ..detection.prophesee import BoxFilter
from .base import Data
from .drawing import DRAWINGS, Drawing
from .loaders import Samples, randomness
from .scenes import Augmentation, Scene

__all__ = ["Batch", "DetectionData", "DetectionSamples", "Sample"]


class Sample(NamedTuple):
    """An item as tensors: ``x`` float32 [C, H, W] or [T, C, H, W]; ``labels`` [rows, 5] class, cx, cy, w, h in its
    pixels; for validation and test ``truth`` [n, 6], x1, y1, x2, y2 in pixels of the image, class, and 1 where it is a
    crowd; ``ratio`` by which the image was enlarged.
    """

    x: Tensor
    labels: Tensor
    truth: Tensor
    ratio: float


class Batch(NamedTuple):
    """Samples together; ``truth`` [N, n, 6] is padded by the class -1."""

    x: Tensor
    labels: Tensor
    truth: Tensor
    ratio: Tensor


def collated(samples: list[Sample]) -> Batch:
    return Batch(
        torch.stack([sample.x for sample in samples]),
        torch.stack([sample.labels for sample in samples]),
        pad_sequence([sample.truth for sample in samples], batch_first=True, padding_value=-1.0),
        torch.tensor([sample.ratio for sample in samples]),
    )


class DetectionSamples(Samples):
    """Scenes as training items, mixed with others of the same part, or as they are.

    Until epoch ``plain_from`` they are mixed; the random numbers are a function of (seed, epoch, scene) alone.
    """

    plain_from: int | None = None

    def __init__(
        self,
        source: Any,
        indices: np.ndarray,
        augmentation: Augmentation,
        drawing: Drawing,
        steps: int | None,
        seed: int | None,
    ):
        super().__init__(source, indices, lambda x: x, seed)
        self.transform = None  # type: ignore[assignment]  # the augmentation needs more than one scene
        self.augmentation = augmentation
        self.drawing = drawing
        self.steps = steps

    def boxes(self, position: int) -> np.ndarray:
        return self.source.boxes(int(self.indices[position]))

    def scene(self, position: int) -> Scene:
        return self.read(int(self.indices[position]))

    def __getitem__(self, key):
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if self.seed is None:
            return self.plain(position)
        mixed = self.plain_from is None or epoch < self.plain_from
        augmentation = self.augmentation if mixed else self.augmentation.without_mixing()
        with randomness(self.seed, epoch, int(self.indices[position])):
            item = augmentation(_Others(self), position, self.drawing)
        return Sample(self.tensor(item.image), torch.from_numpy(item.labels), torch.zeros(0, 6), item.ratio)

    def plain(self, position: int) -> Sample:
        scene = self.scene(position)
        item = self.augmentation.plain().finish(scene, self.drawing)
        truth = [np.column_stack([scene.boxes, np.zeros(len(scene.boxes))])]
        truth.append(np.column_stack([scene.crowd, np.ones(len(scene.crowd))]))
        return Sample(
            self.tensor(item.image),
            torch.from_numpy(item.labels),
            torch.from_numpy(np.concatenate(truth).astype(np.float32)),
            item.ratio,
        )

    def tensor(self, image: np.ndarray) -> Tensor:
        """Bytes as they are, 0..255: neither mean nor deviation is taken out."""
        x = torch.from_numpy(np.ascontiguousarray(image)).movedim(2, 0).float()
        return x if self.steps is None else x.unflatten(0, (self.steps, -1))


class _Others:
    """The scenes of a part, by position."""

    def __init__(self, samples: DetectionSamples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, position):
        return self.samples.scene(position)

    def boxes(self, position):
        return self.samples.boxes(position)


class DetectionData(Data):
    """A set of images with boxes; batches are :class:`Batch`.

    A source (what :meth:`open` gives) has ``source[i]``, a :class:`Scene`, ``boxes(i)``, ``shape(i)`` (height, width)
    and ``name(i)``.

    Args:
        height, width: of the network's input; images are letterboxed into it.
        mosaic, mixup_boxes, colour, flip: probabilities in training, see :class:`recipes.data.scenes.Augmentation`.
        scale: least and greatest of the affine map after a mosaic.
        rows: of labels in training with mosaic; further boxes are dropped.
        drawing: "torchvision", or "opencv", which is faster and draws as the published code does.
    """

    augmented = True
    channels = 3
    names: tuple[str, ...] = ()
    """Of the classes, for pictures."""
    keep: BoxFilter | None = None
    """Detections that it leaves out count nowhere, as labels of that size do not."""

    def __init__(
        self,
        height: int = 640,
        width: int = 640,
        mosaic: float = 0.0,
        mixup_boxes: float = 0.0,
        colour: float = 0.0,
        flip: float = 0.5,
        scale: tuple[float, float] = (0.1, 2.0),
        rows: int = 120,
        drawing: Literal["torchvision", "opencv"] = "torchvision",
        **common: Any,
    ):
        super().__init__(**common)
        for name, value in {
            "mosaic": mosaic,
            "mixup_boxes": mixup_boxes,
            "colour": colour,
            "flip": flip,
        }.items():
            if not 0 <= value <= 1:
                raise RecipeError(f"data.{name} is a probability, got {value}")
        if min(height, width) < 32 or rows < 1:
            raise RecipeError(
                f"data.height and data.width must be 32 or more and data.rows 1 or more, got {height}, {width}, {rows}"
            )
        if self.mixup or self.cutmix:
            raise RecipeError(
                "data.mixup and data.cutmix mix classes; images with boxes take data.mixup_boxes"
            )
        self.augmentation = Augmentation(
            height, width, mosaic, mixup_boxes, colour, flip, scale=tuple(scale), rows=rows
        )
        self.drawing: Drawing = DRAWINGS[drawing]()

    collate = staticmethod(collated)

    @property
    def steps(self) -> int | None:
        """Frames of a sample, None for images."""
        return None

    def labels(self, source):
        """The class of the first box, -1 where there is none: what validation samples are drawn by."""
        firsts = (source.boxes(i) for i in range(len(source)))
        return np.array([int(boxes[0, 4]) if len(boxes) else -1 for boxes in firsts])

    def gather(self, source, indices, train):
        seed = self.seed if train else None
        if train and self.augmentation.colour and self.channels != 3:
            raise RecipeError(f"data.colour changes BGR images, these have {self.channels} channels; give 0")
        if train:
            self._name_unseen(source, indices)
        return DetectionSamples(source, indices, self.augmentation, self.drawing, self.steps, seed)

    def _name_unseen(self, source: Any, indices: np.ndarray) -> None:
        """Say which classes have no box among the training images ``indices``."""
        seen = np.unique(np.concatenate([source.boxes(int(i))[:, 4] for i in indices]))
        unseen = np.setdiff1d(np.arange(self.classes), seen)
        if len(unseen):
            names = ", ".join(self.names[k] if self.names else f"class {k}" for k in unseen[:4])
            rank_zero_warn(
                f"{len(unseen)} of {self.classes} classes of {type(self).__name__} have no box in training and will "
                f"not be found: {names}{', ..' if len(unseen) > 4 else ''}; label some, or take the classes out"
            )

    def arrange(self, batch):
        return batch._replace(x=batch.x.transpose(0, 1)) if self.layout.startswith("T") else batch

    def mix(self, batch):
        return batch

    def picture(self, x: Tensor) -> Tensor:
        """A sample's x as it looks, uint8 [3, H, W] in the order red, green, blue."""
        return x.flip(0).clamp(0, 255).byte()

    def _check(self, split, source):
        where = f"{type(self).__name__} in {self.root.resolve()}"
        if len(source) == 0:
            raise RecipeError(f"no {split} images of {where}: {self.tree}")
        empty = []
        for i in range(len(source)):
            boxes = source.boxes(i)
            if not len(boxes):
                empty.append(i)
                continue
            require_inside(boxes, source.shape(i), source.name(i))
            if boxes[:, 4].min() < 0 or boxes[:, 4].max() >= self.classes:
                raise RecipeError(
                    f"{source.name(i)} has a box of class {int(boxes[:, 4].max())}, but {where} has {self.classes} "
                    f"classes (0..{self.classes - 1}); correct it, or data.classes and model.network.classes"
                )
        if len(empty) == len(source):
            raise RecipeError(
                f"no {split} image of {where} has a box; nothing can be learned from it: {self.tree}"
            )
        if empty:
            rank_zero_warn(
                f"{len(empty)} of {len(source)} {split} images have no boxes and stay as background, the first is "
                f"{source.name(empty[0])}; take them out to leave them out"
            )


def require_inside(boxes: np.ndarray, shape: tuple[int, int], name: str) -> None:
    """Raise RecipeError for a box [n, 5] that is no rectangle or has no part in an image of this height and width."""
    height, width = shape
    low, high = boxes[:, :2], boxes[:, 2:4]
    shaped = np.isfinite(boxes).all(1) & (low <= high).all(1)
    inside = (low < (width, height)).all(1) & (high > 0).all(1)
    for good, fault in (
        (shaped, "a box that is no rectangle"),
        (inside, f"a box outside of its {width} x {height} pixels"),
    ):
        if not good.all():
            x1, y1, x2, y2 = boxes[~good][0, :4]
            raise RecipeError(
                f"{name} has {fault}: {x1:g}, {y1:g} to {x2:g}, {y2:g}; correct it or take it out"
            )
