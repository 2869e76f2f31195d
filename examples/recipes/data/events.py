"""Event recordings, read by tonic and kept on disk as frames: SHD, SSC, CIFAR10-DVS, DVS128 Gesture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tonic
import torch
from tonic.cached_dataset import load_from_disk_cache, save_to_disk_cache
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from .. import RecipeError
from .base import Data, whole

__all__ = ["CIFAR10DVS", "DVSGesture", "SpikingHeidelberg"]


class _Local:
    """A tonic data set that never goes to the network by itself."""

    def __init__(self, root: Path, *args: Any, verify: bool = True, **settings: Any):
        self.verify = verify
        super().__init__(str(root), *args, **settings)

    def _check_exists(self):
        return not self.verify or super()._check_exists()

    def download(self):
        raise RecipeError(
            f"{self.location_on_system} is missing or holds only a part of {type(self).__name__} "
            f"(archive {self.filename} and its files). Remove it and give --data.download true; "
            "--data.verify false takes the folder as it is."
        )


# The names are those of the folders, so they stay tonic's.
class SHD(_Local, tonic.datasets.SHD):
    pass


class SSC(_Local, tonic.datasets.SSC):
    pass


class CIFAR10DVSEvents(_Local, tonic.datasets.CIFAR10DVS):
    pass


class DVSGestureEvents(_Local, tonic.datasets.DVSGesture):
    pass


CIFAR10DVSEvents.__name__ = "CIFAR10DVS"
DVSGestureEvents.__name__ = "DVSGesture"


def cache_key(source: Any, transform: Any, files: Sequence[str]) -> str:
    """A short text that changes with the transform's settings, the files (name, size, time) and tonic's version.

    Raises:
        ValueError: a transform whose ``repr`` does not show its settings.
    """
    shown = repr(transform)
    if " at 0x" in shown:
        raise ValueError(f"the frames of {shown} cannot be kept: its repr does not show its settings")
    text = [type(source).__name__, tonic.__version__, shown]
    for file in files:
        facts = Path(file).stat()
        text.append(f"{Path(file).name} {facts.st_size} {facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


class _Save(Dataset):
    """Reading sample i writes its frames to ``folder``: a pass of a loader fills the cache, with workers."""

    def __init__(self, source: Any, folder: Path):
        self.source = source
        self.folder = folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        try:
            frames, label = self.source[index]
        except Exception as error:  # the readers of event files raise all kinds
            name = self.source.data[index] if len(self.source.data) > index else f"sample {index}"
            raise RecipeError(
                f"cannot read {name} of {type(self.source).__name__} ({type(error).__name__}: {error})"
            ) from error
        save_to_disk_cache(frames, label, self.folder / f"{index}.hdf5")
        return 0


class Frames(Dataset):
    """The frames of ``source`` under ``source.transform``, on disk in a folder of their own; made at the first use.

    tonic's DiskCachedDataset finds a sample by its number alone, so another transform would read the old frames, and a
    half-written file could be taken for a whole one. Here the folder's name holds :func:`cache_key`, and the folder is
    there only when it is complete.
    """

    def __init__(self, source: Any, files: Sequence[str], labels: np.ndarray, cache: Path, workers: int = 0):
        name = type(source).__name__
        self.folder = cache / f"{name}-{cache_key(source, source.transform, files)}"
        self.targets = labels

        def build(folder: Path) -> None:
            # a generator of its own: a run that makes frames draws the same numbers as one that finds them
            own = torch.Generator()
            loader = DataLoader(_Save(source, folder), batch_size=None, num_workers=workers, generator=own)
            for _ in tqdm(loader, desc=f"{name} to frames, once"):
                pass

        whole(self.folder, build)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        frames, _ = load_from_disk_cache(self.folder / f"{index}.hdf5")
        return frames, int(self.targets[index])


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


def counts(frames: np.ndarray, cut: bool = False) -> Tensor:
    """Frames as float32 [T, C, ..], an axis of size 1 left out; ``cut`` ends them with the last event."""
    x = torch.from_numpy(frames).float()
    x = x.squeeze(1) if x.dim() == 3 else x
    if cut:
        fired = x.flatten(1).any(1).nonzero()
        x = x[: int(fired[-1]) + 1] if len(fired) else x[:1]
    return x


def pad(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of different length as x [N, T, ..] with zeros at their ends, labels [N], lengths [N]."""
    xs, labels = zip(*samples, strict=True)
    return pad_sequence(xs, batch_first=True), torch.tensor(labels), torch.tensor([len(x) for x in xs])


class Events(Data):
    """Recordings of events that become frames, kept under ``root/frames``."""

    def prepare_data(self):
        super().prepare_data()
        self.sources()  # one process makes the frames

    def frames(self, source: Any, files: Sequence[str], labels: Any) -> Frames:
        return Frames(source, files, np.asarray(labels, dtype=int), self.root / "frames", self.num_workers)


class SpikingHeidelberg(Events):
    """Spoken digits (SHD, 20 classes) or commands (SSC, 35) as spikes of 700 channels: [T, N, 700] counts.

    Args:
        which: "SHD", or "SSC", which brings a validation set of its own.
        steps, duration: so many bins on [0, duration] seconds. The published script numbers its bins from 1 and so
            leaves the first of 250 empty; here bin 0 is used, and events after ``duration`` are left out.
        variable: each sample ends with the bin of its last event instead. Batches are padded and carry lengths [N].
    """

    layout = "TNC"

    def __init__(
        self,
        which: Literal["SHD", "SSC"] = "SHD",
        steps: int = 250,
        duration: float = 1.4,
        variable: bool = False,
        **common: Any,
    ):
        super().__init__(**common)
        self.which = which
        self.classes = 20 if which == "SHD" else 35
        self.steps = steps
        self.duration = duration
        self.variable = variable
        if variable:
            self.collate = pad
        name = which.lower()
        self.tree = (
            f"{which}/{name}_{{{'train,test' if which == 'SHD' else 'train,valid,test'}}}.h5 and .h5.zip"
        )

    def fetch(self):
        def build(folder: Path) -> Path:
            if self.which == "SHD":
                for train in (True, False):
                    tonic.datasets.SHD(str(folder), train=train)
            else:
                for split in ("train", "valid", "test"):
                    tonic.datasets.SSC(str(folder), split=split)
            return folder / self.which

        whole(self.root / self.which, build)

    def open(self, split):
        import h5py

        window = self.duration * 1e6 / self.steps
        to_frames = tonic.transforms.ToFrame(
            sensor_size=(700, 1, 1), time_window=window, start_time=0, end_time=self.duration * 1e6
        )
        if self.which == "SHD":
            if split == "val":
                return None
            source = SHD(self.root, train=split == "train", transform=to_frames, verify=self.verify)
            wanted = {"train": 8156, "test": 2264}
        else:
            name = "valid" if split == "val" else split
            source = SSC(self.root, split=name, transform=to_frames, verify=self.verify)
            wanted = {"train": 75_466, "val": 9_981, "test": 20_382}
        path = Path(source.location_on_system) / source.data_filename
        with h5py.File(path, "r") as file:
            labels = file["labels"][()]
        if self.verify and len(labels) != wanted[split]:
            raise RecipeError(f"{path} has {len(labels)} samples, {self.which} has {wanted[split]}")
        return self.frames(source, [str(path)], labels)

    def transform(self, train):
        return partial(counts, cut=self.variable)


class _Camera(Events):
    """Recordings of a DVS128 camera: [T, N, 2, 128, 128] counts of events by polarity.

    Args:
        steps: frames of a recording.
        split_by: "count": as many events in each frame (published for CIFAR10-DVS); "time": equal time.
        augment: flip half of the training samples, then for each one of: nothing, shear (0.3), shift by 5 pixels along
            either axis, rotation by up to 30 degrees, a square cut out; the same for all frames.
    """

    layout = "TNCHW"

    def __init__(
        self,
        steps: int = 16,
        split_by: Literal["count", "time"] = "count",
        augment: bool = True,
        **common: Any,
    ):
        super().__init__(**common)
        self.steps = steps
        self.split_by = split_by
        self.augment = augment
        self.augmented = augment

    def to_frames(self):
        bins = {"n_event_bins" if self.split_by == "count" else "n_time_bins": self.steps}
        return tonic.transforms.ToFrame(sensor_size=(128, 128, 2), **bins)

    def transform(self, train):
        if not (train and self.augment):
            return counts
        one_of = [
            v2.Identity(),
            v2.RandomAffine(0, shear=(-17.19, 17.19)),  # tan 17.19 degrees = 0.309, that is 0.3 rad
            v2.RandomAffine(0, translate=(5 / 128, 0)),
            v2.RandomAffine(0, translate=(0, 5 / 128)),
            v2.RandomRotation(30),
            v2.RandomErasing(p=1.0, scale=(0.001, 0.11), ratio=(1.0, 1.0)),
        ]
        return v2.Compose([counts, v2.RandomHorizontalFlip(), v2.RandomChoice(one_of)])


class CIFAR10DVS(_Camera):
    """CIFAR10-DVS. As published, the first 90 % of each class (by file name) train and the others test."""

    classes = 10
    tree = "CIFAR10DVS/CIFAR10DVS.zip and CIFAR10DVS/<class>/*.aedat4"

    def fetch(self):
        whole(
            self.root / "CIFAR10DVS",
            lambda folder: Path(tonic.datasets.CIFAR10DVS(str(folder)).location_on_system),
        )

    def open(self, split):
        if split == "val":
            return None
        source = CIFAR10DVSEvents(self.root, transform=self.to_frames(), verify=self.verify)
        if self.verify and len(source) != 10_000:
            raise RecipeError(
                f"CIFAR10-DVS has 10000 recordings, {len(source)} are in {source.location_on_system}"
            )
        by_name = sorted(
            range(len(source)), key=lambda i: source.data[i]
        )  # tonic keeps the order of the disk
        source.data = [source.data[i] for i in by_name]
        source.targets = [source.targets[i] for i in by_name]
        frames = self.frames(source, source.data, source.targets)
        train = np.zeros(len(frames), dtype=bool)
        for label in np.unique(frames.targets):
            members = np.flatnonzero(frames.targets == label)
            train[members[: int(np.ceil(0.9 * len(members)))]] = True
        return Part(frames, np.flatnonzero(train if split == "train" else ~train))


class DVSGesture(_Camera):
    """DVS128 Gesture, in tonic's form: 11 classes, one recording for each gesture."""

    classes = 11
    tree = "DVSGesture/ibmGesture{Train,Test}.tar.gz and ibmGesture{Train,Test}/user*/<label>.npy"

    def fetch(self):
        def build(folder: Path) -> Path:
            for train in (True, False):
                source = tonic.datasets.DVSGesture(str(folder), train=train)
            return Path(source.location_on_system)

        whole(self.root / "DVSGesture", build)

    def open(self, split):
        if split == "val":
            return None
        source = DVSGestureEvents(
            self.root, train=split == "train", transform=self.to_frames(), verify=self.verify
        )
        return self.frames(source, source.data, source.targets)
