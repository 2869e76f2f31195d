"""Images: MNIST pixel by pixel, CIFAR, ImageNet. All are read by torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from .. import RecipeError
from .base import Data, whole

__all__ = ["CIFAR", "ImageNet", "SequentialMNIST"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# as both papers' scripts normalise
CIFAR_STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ((0.50707517, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}


def to_tensor(mean: tuple[float, ...] = (), std: tuple[float, ...] = ()) -> list[Any]:
    """From an image to float32 [C, H, W] in [0, 1], normalised where a mean is given."""
    steps: list[Any] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return [*steps, v2.Normalize(mean, std)] if mean else steps


def pixel_by_pixel(image: Tensor, order: np.ndarray | slice = slice(None)) -> Tensor:
    """[C, H, W] -> [H W, C], row by row or in the given order."""
    return image.flatten(1).T[order]


def timm_transform(size: int, policy: str, erasing: float, statistics: Any, **settings: Any) -> Callable:
    """timm's training transform: crop, flip, AutoAugment in timm's notation, normalise, erase."""
    try:
        from timm.data import create_transform
    except ImportError as error:
        raise ImportError(
            f"augmentation {policy!r} is timm's: pip install 'msf-pmsn-plugins[examples]'"
        ) from error
    mean, std = statistics
    return create_transform(
        size,
        is_training=True,
        auto_augment=policy,
        re_prob=erasing,
        re_mode="pixel",
        interpolation="bicubic",
        mean=mean,
        std=std,
        **settings,
    )


class SequentialMNIST(Data):
    """MNIST pixel by pixel: [784, N, 1] in [0, 1], not standardised.

    Args:
        permuted: in the published order (NumPy's legacy generator, seed 1111), the same for every image.
    """

    layout = "TNC"
    classes = 10
    tree = "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte"

    def __init__(self, permuted: bool = False, **common: Any):
        super().__init__(**common)
        self.pixels = np.random.RandomState(1111).permutation(784) if permuted else np.arange(784)

    def fetch(self):
        def build(folder: Path) -> Path:
            datasets.MNIST(folder, download=True)
            return folder / "MNIST"

        whole(self.root / "MNIST", build)

    def open(self, split):
        if split == "val":
            return None
        source = datasets.MNIST(self.root, train=split == "train")
        wanted = 60_000 if split == "train" else 10_000
        if self.verify and len(source) != wanted:
            raise RecipeError(f"MNIST has {wanted} {split} images, {len(source)} are in {self.root}")
        if len(source.targets) != len(source):
            raise RecipeError(
                f"{len(source)} MNIST {split} images but {len(source.targets)} labels in {self.root}"
            )
        return source

    def transform(self, train):
        return v2.Compose([*to_tensor(), partial(pixel_by_pixel, order=self.pixels)])


class _Unchecked:
    """A CIFAR folder taken as it is: files must exist, their checksums are not compared."""

    def _check_integrity(self):
        files = [name for name, _ in self.train_list + self.test_list]
        return all(check_integrity(Path(self.root) / self.base_folder / name) for name in files)

    def _load_meta(self):
        self.classes = list(range(100 if "fine" in self.meta["key"] else 10))


class UncheckedCIFAR10(_Unchecked, datasets.CIFAR10):
    pass


class UncheckedCIFAR100(_Unchecked, datasets.CIFAR100):
    pass


class CIFAR(Data):
    """CIFAR-10 or CIFAR-100: images [N, 3, 32, 32], or pixel by pixel [1024, N, 3]; normalised per channel.

    Args:
        classes: 10 or 100.
        pixels: as sequences of 1024 pixels.
        policy: training augmentation. "none"; "trivial": flip, TrivialAugmentWide and erasing by torchvision (PMSN
            paper); or an AutoAugment in timm's notation such as "rand-m9-n1-mstd0.4": flip, that, erasing by timm (MSF
            paper).
        erasing: probability of random erasing.
    """

    def __init__(
        self,
        classes: Literal[10, 100] = 10,
        pixels: bool = False,
        policy: str = "none",
        erasing: float = 0.0,
        **common: Any,
    ):
        super().__init__(**common)
        self.classes = classes
        self.layout = "TNC" if pixels else "NCHW"
        self.policy = policy
        self.erasing = erasing
        self.augmented = policy != "none"
        folder = datasets.CIFAR10.base_folder if classes == 10 else datasets.CIFAR100.base_folder
        self.tree = f"{folder}/ as in the archive of Python pickles"
        self.folder = folder
        if pixels and (self.mixup or self.cutmix):
            raise ValueError("mixup and cutmix are for images; give pixels=False")

    def fetch(self):
        def build(folder: Path) -> Path:
            (datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100)(folder, download=True)
            return folder / self.folder

        whole(self.root / self.folder, build)

    def open(self, split):
        if split == "val":
            return None
        if self.verify:
            kind = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
        else:
            kind = UncheckedCIFAR10 if self.classes == 10 else UncheckedCIFAR100
        return kind(self.root, train=split == "train")

    def transform(self, train):
        statistics = CIFAR_STATISTICS[self.classes]
        plain = v2.Compose(to_tensor(*statistics))
        if not train or self.policy == "none":
            return v2.Compose([plain, pixel_by_pixel]) if self.layout == "TNC" else plain
        if self.policy == "trivial":
            before = [
                v2.RandomHorizontalFlip(),
                v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
            ]
            return v2.Compose([*before, plain, v2.RandomErasing(self.erasing)])
        return timm_transform(32, self.policy, self.erasing, statistics, scale=(1.0, 1.0), ratio=(1.0, 1.0))


class ImageNet(Data):
    """ImageNet, or any folder of images by class: [N, 3, size, size], normalised.

    The published validation images are the test set here; ``val_fraction`` of the training images selects the model.

    Args:
        size: of the (square) crop; test images are resized to 8/7 of it and cropped at the centre.
        policy: "plain": random crop and flip (PMSN paper), or an AutoAugment in timm's notation (MSF paper).
        erasing: probability of random erasing, with timm's policies.
        classes: number of class folders.
    """

    layout = "NCHW"
    augmented = True
    tree = "train/<class>/*.JPEG and val/<class>/*.JPEG, as torchvision's ImageFolder reads them"

    def __init__(
        self,
        classes: int = 1000,
        size: int = 224,
        policy: str = "plain",
        erasing: float = 0.0,
        val_fraction: float = 0.01,
        **common: Any,
    ):
        super().__init__(val_fraction=val_fraction, **common)
        self.classes = classes
        self.size = size
        self.policy = policy
        self.erasing = erasing

    def open(self, split):
        if split == "val":
            return None
        source = datasets.ImageFolder(self.root / ("train" if split == "train" else "val"))
        if len(source.classes) != self.classes:
            raise RecipeError(
                f"{source.root} has {len(source.classes)} class folders, data.classes is {self.classes}"
            )
        return source

    def transform(self, train):
        if train and self.policy != "plain":
            return timm_transform(self.size, self.policy, self.erasing, IMAGENET)
        if train:
            shape: list[Any] = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
        else:
            shape = [v2.Resize(round(self.size * 8 / 7)), v2.CenterCrop(self.size)]
        return v2.Compose([*shape, *to_tensor(*IMAGENET)])
