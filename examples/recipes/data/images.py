"""Images: MNIST pixel by pixel, CIFAR, ImageNet; in the files that torchvision fetches."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from .. import RecipeError
from .base import Data
from .files import Fault, Locked, find, reading, require_apart, unpickle, whole

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
        raise ImportError(f"augmentation {policy!r} is timm's: pip install '.[examples]'") from error
    mean, std = statistics
    try:
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
    except (AssertionError, ValueError, KeyError) as error:  # it asserts its notation
        raise RecipeError(
            f"data.policy {policy!r} is no policy of this data set and no AutoAugment in timm's notation, such as "
            "rand-m9-n1-mstd0.4"
        ) from error


def require_probability(erasing: float) -> None:
    if not 0 <= erasing <= 1:
        raise RecipeError(f"data.erasing must lie in [0, 1], got {erasing}")


class Pictures(Dataset):
    """Images held in memory, uint8 [N, H, W] or [N, H, W, 3], and their labels."""

    def __init__(self, data: np.ndarray, targets: np.ndarray):
        self.data = data
        self.targets = targets

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Image.fromarray(self.data[index]), int(self.targets[index])


def read_idx(path: Path, axes: int) -> np.ndarray:
    """An array of bytes in MNIST's format: 0, 0, 8 for bytes, the number of axes, big-endian sizes, the bytes.

    Raises:
        Fault: see :func:`reading`.
    """
    with reading(path):
        content = path.read_bytes()
        if content[:4] != bytes([0, 0, 8, axes]):
            raise ValueError(f"it begins with {content[:4].hex()}, not with 000008{axes:02x}")
        shape = struct.unpack_from(f">{axes}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        if len(values) != np.prod(shape):
            raise ValueError(f"it has {len(values)} values, its header says {list(shape)}")
        return values.reshape(shape)


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
        folder, part = self.root / "MNIST" / "raw", "train" if split == "train" else "t10k"
        images = read_idx(folder / f"{part}-images-idx3-ubyte", 3)
        labels = read_idx(folder / f"{part}-labels-idx1-ubyte", 1)
        wanted = 60_000 if split == "train" else 10_000
        if self.verify and len(images) != wanted:
            raise Fault(f"MNIST has {wanted} {split} images, {len(images)} are in {folder}")
        if images.shape[1:] != (28, 28):
            raise Fault(
                f"MNIST has images of 28 x 28, those in {folder} are {images.shape[1]} x {images.shape[2]}"
            )
        if len(labels) != len(images):
            raise Fault(f"{len(images)} MNIST {split} images but {len(labels)} labels in {folder}")
        return Pictures(images, labels)

    def transform(self, train):
        return v2.Compose([*to_tensor(), partial(pixel_by_pixel, order=self.pixels)])


def read_cifar(path: Path, key: str, classes: int) -> Pictures:
    """One of CIFAR's pickled batches: rows of 3 x 32 x 32 bytes, and labels under ``key``.

    Raises:
        Fault: see :func:`reading`; rows and labels that do not fit each other, or labels out of range.
    """
    batch = unpickle(path)
    with reading(path):
        data, labels = batch["data"], np.asarray(batch[key])
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(data), 3072):
            raise ValueError("its data are no rows of 3072 bytes")
        if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
            raise ValueError(f"it has {len(data)} images but {labels.dtype}{list(labels.shape)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"its labels lie in {labels.min()}..{labels.max()}, not in 0..{classes - 1}")
    return Pictures(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int64))


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
        require_probability(erasing)
        self.classes = classes
        self.layout = "TNC" if pixels else "NCHW"
        self.policy = policy
        self.erasing = erasing
        self.augmented = policy != "none"
        folder = datasets.CIFAR10.base_folder if classes == 10 else datasets.CIFAR100.base_folder
        self.tree = f"{folder}/ as in the archive of Python pickles"
        self.folder = folder

    def fetch(self):
        def build(folder: Path) -> Path:
            (datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100)(folder, download=True)
            return folder / self.folder

        whole(self.root / self.folder, build)

    def open(self, split):
        if split == "val":
            return None
        kind = datasets.CIFAR10 if self.classes == 10 else datasets.CIFAR100
        batches = []
        for name, checksum in kind.train_list if split == "train" else kind.test_list:
            path = self.root / self.folder / name
            if self.verify:
                with reading(path):
                    if path.exists() and not check_integrity(path, checksum):
                        raise ValueError(
                            "its checksum is not the publisher's; --data.verify false takes it as it is"
                        )
            batches.append(read_cifar(path, "labels" if self.classes == 10 else "fine_labels", self.classes))
        return Pictures(
            *(np.concatenate([getattr(b, part) for b in batches]) for part in ("data", "targets"))
        )

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


class ImageFiles(Dataset):
    """Images in the folders of their classes; class k is the k-th of ``names``."""

    def __init__(self, folder: Path, names: list[str]):
        files = [find(folder / name, *IMG_EXTENSIONS) for name in names]
        for name, mine in zip(names, files, strict=True):
            if not mine:
                raise Fault(f"{folder / name} has no images ({', '.join(IMG_EXTENSIONS)})")
        self.files = [path for mine in files for path in mine]
        self.targets = np.repeat(np.arange(len(names)), [len(mine) for mine in files])

    def __len__(self):
        return len(self.files)

    def name(self, index: int) -> str:
        return str(self.files[index])

    def __getitem__(self, index):
        with reading(self.files[index]), Image.open(self.files[index]) as image:
            return image.convert("RGB"), int(self.targets[index])


def class_names(folder: Path) -> list[str]:
    """The folders in ``folder``, sorted; those that begin with a dot are none."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except PermissionError as error:
        raise Locked(f"{folder} may not be read by this user") from error
    except OSError as error:
        raise Fault(f"{folder} is missing or no folder") from error


ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""How JPEG and PNG files begin and end."""


def require_whole(path: Path) -> None:
    """Raise Fault for an image that is cut; one that does not end as its format does is decoded to see."""
    with reading(path), path.open("rb") as file:
        end = ENDS.get(file.read(2))
        if end is not None:
            file.seek(-len(end), 2)
            if file.read() == end:
                return
        with Image.open(path) as image:
            image.load()


def require_all_whole(paths: Iterable[Path]) -> None:
    """:func:`require_whole` of all of them."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(require_whole, paths):
            pass


class ImageNet(Data):
    """ImageNet, or any folder of images by class: [N, 3, size, size], normalised. Give ``verify`` false for your own.

    The published validation images are the test set here; ``val_fraction`` of the training images selects the model.

    Args:
        size: of the (square) crop; test images are resized to 8/7 of it and cropped at the centre.
        policy: "plain": random crop and flip (PMSN paper), or an AutoAugment in timm's notation (MSF paper).
        erasing: probability of random erasing, with timm's policies.
        classes: number of class folders.
    """

    layout = "NCHW"
    augmented = True
    tree = "train/<class>/*.JPEG and val/<class>/*.JPEG"

    @property
    def remedy(self):
        return "put the publisher's files, or your own images, in their place"

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
        require_probability(erasing)
        if size < 1:
            raise RecipeError(f"data.size must be 1 or more, got {size}")
        self.classes = classes
        self.size = size
        self.policy = policy
        self.erasing = erasing

    def open(self, split):
        if split == "val":
            return None
        # one list of classes for both parts: a folder more or less in one would shift all later labels
        names, others = class_names(self.root / "train"), class_names(self.root / "val")
        if names != others:
            differ = sorted(set(names) ^ set(others))
            raise RecipeError(
                f"the class folders of {self.root / 'train'} and {self.root / 'val'} differ in {len(differ)} names "
                f"({', '.join(differ[:4])}{', ..' if len(differ) > 4 else ''}); name them alike, in case too"
            )
        if len(names) != self.classes:
            raise RecipeError(
                f"{self.root / 'train'} has {len(names)} class folders, data.classes is {self.classes}"
            )
        source = ImageFiles(self.root / ("train" if split == "train" else "val"), names)
        wanted = 1_281_167 if split == "train" else 50_000
        if self.verify and len(source) != wanted:
            raise Fault(
                f"ImageNet has {wanted} {split} images, {len(source)} are in {self.root}; for your own images give "
                "--data.verify false"
            )
        return source

    def examine(self, sources):
        require_all_whole(path for source in sources.values() if source is not None for path in source.files)
        if not self.verify:  # the published parts are
            require_apart(sources["train"].files, sources["test"].files)

    def transform(self, train):
        if train and self.policy != "plain":
            return timm_transform(self.size, self.policy, self.erasing, IMAGENET)
        if train:
            shape: list[Any] = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
        else:
            shape = [v2.Resize(round(self.size * 8 / 7)), v2.CenterCrop(self.size)]
        return v2.Compose([*shape, *to_tensor(*IMAGENET)])
