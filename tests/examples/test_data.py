"""The data sets of the recipes: the real loaders on small files in the real formats, without a network."""

import random
import socket
import sys
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

for name in ("lightning", "spikingjelly", "tonic", "torchvision", "timm", "h5py"):
    pytest.importorskip(name)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from PIL import Image  # noqa: E402
from recipes import RecipeError  # noqa: E402
from recipes.data import frames as made_frames  # noqa: E402
from recipes.data.base import hold_out  # noqa: E402
from recipes.data.events import CIFAR10DVS, DVSGesture, SpikingHeidelberg  # noqa: E402
from recipes.data.files import whole  # noqa: E402
from recipes.data.images import CIFAR, CIFAR_STATISTICS, ImageNet, SequentialMNIST  # noqa: E402
from recipes.data.loaders import Batches, Loader, Order, Samples, randomness  # noqa: E402
from recipes.data.sines import Sines  # noqa: E402

from fixtures import WRITERS, writer  # noqa: E402
from fixtures.events import write_aedat4, write_dvsgesture, write_shd  # noqa: E402
from fixtures.images import write_imagenet, write_mnist  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def local(self, address):
        assert self.family == socket.AF_UNIX, (
            "a test went to the network"
        )  # loader workers talk through such sockets
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    write = writer(tmp_path_factory.mktemp("fixtures"))
    return lambda name: str(write(name))


def ready(kind, root, **settings):
    """A data module after what Lightning calls before a run."""
    data = kind(**{"root": str(root), "verify": False, "batch_size": 4, **settings})
    data.prepare_data()
    data.setup()
    return data


def batch(data, split="val"):
    loader = data.train_dataloader() if split == "train" else data._ordered(split)
    return data.arrange(next(iter(loader)))


# -- every data set


SETS = {
    "smnist": (SequentialMNIST, "MNIST", {}, "TNC", (784, 4, 1), 10),
    "cifar10": (CIFAR, "CIFAR10", {}, "NCHW", (4, 3, 32, 32), 10),
    "cifar10-trivial": (CIFAR, "CIFAR10", {"policy": "trivial", "erasing": 0.5}, "NCHW", (4, 3, 32, 32), 10),
    "cifar10-timm": (CIFAR, "CIFAR10", {"policy": "rand-m9-n1-mstd0.4"}, "NCHW", (4, 3, 32, 32), 10),
    "cifar10-pixels": (CIFAR, "CIFAR10", {"pixels": True}, "TNC", (1024, 4, 3), 10),
    "cifar100": (CIFAR, "CIFAR100", {"classes": 100}, "NCHW", (4, 3, 32, 32), 100),
    "imagenet": (
        ImageNet,
        "ImageNet",
        {"classes": 2, "size": 24, "val_fraction": 0.4},
        "NCHW",
        (4, 3, 24, 24),
        2,
    ),
    "imagenet-timm": (
        ImageNet,
        "ImageNet",
        {"classes": 2, "size": 24, "val_fraction": 0.4, "policy": "rand-m9-mstd0.5"},
        "NCHW",
        (4, 3, 24, 24),
        2,
    ),
    "shd": (SpikingHeidelberg, "SHD", {"steps": 20}, "TNC", (20, 4, 700), 20),
    "ssc": (SpikingHeidelberg, "SSC", {"which": "SSC", "steps": 20}, "TNC", (20, 4, 700), 35),
    "cifar10dvs": (CIFAR10DVS, "CIFAR10DVS", {"steps": 3}, "TNCHW", (3, 4, 2, 128, 128), 10),
    "dvsgesture": (DVSGesture, "DVSGesture", {"steps": 3}, "TNCHW", (3, 4, 2, 128, 128), 11),
}


@pytest.mark.parametrize("name", SETS)
def test_batches(name, fixtures):
    kind, files, settings, layout, shape, classes = SETS[name]
    data = ready(kind, fixtures(files), **settings)
    assert (data.layout, data.classes) == (layout, classes)
    for split in ("train", "val", "test"):
        x, y = batch(data, split)
        assert x.shape == shape
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert x.std() > 0
        assert y.dtype == torch.int64
        assert y.shape == (4,)
        assert 0 <= y.min() <= y.max() < classes


@pytest.mark.parametrize("name", [name for name, case in SETS.items() if case[1] != "SSC"])
def test_validation_samples_come_out_of_the_training_set_only(name, fixtures):
    kind, files, settings, *_ = SETS[name]
    data = ready(kind, fixtures(files), **settings)
    train, val, test = (data.samples[split] for split in ("train", "val", "test"))
    assert train.source is val.source is not test.source
    assert not set(train.indices) & set(val.indices)
    assert len(train) + len(val) == len(train.source)
    labels = data.labels(train.source)
    assert set(labels[val.indices]) == set(labels), "every class is held out"
    again = ready(kind, fixtures(files), **settings, seed=7)
    assert (again.samples["val"].indices == val.indices).all(), "the split does not depend on the seed"


# -- numbers by hand


def test_mnist_pixels_in_reading_and_in_the_published_order(fixtures):
    root = fixtures("MNIST")
    raw = np.frombuffer(Path(root, "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    images = torch.from_numpy(raw.reshape(-1, 784).copy()).float() / 255
    x, y = batch(ready(SequentialMNIST, root), "test")
    torch.testing.assert_close(x[:, :, 0].T, images[:4], rtol=1e-6, atol=0)
    assert y.tolist() == [0, 1, 2, 3]
    permuted, _ = batch(ready(SequentialMNIST, root, permuted=True), "test")
    np.random.seed(1111)
    order = np.random.permutation(784)  # as the published script draws it
    assert torch.equal(permuted[:, :, 0], x[order, :, 0])
    assert not torch.equal(permuted, x)


def test_cifar_is_normalised_and_read_row_by_row(fixtures):
    image, _ = ready(CIFAR, fixtures("CIFAR10")).samples["test"][0]
    pixels, _ = ready(CIFAR, fixtures("CIFAR10"), pixels=True).samples["test"][0]
    assert torch.equal(pixels[33], image[:, 1, 1])
    source = ready(CIFAR, fixtures("CIFAR10")).samples["test"].source
    mean, std = CIFAR_STATISTICS[10]
    red = source.data[0][5, 7, 0] / 255
    assert image[0, 5, 7].item() == pytest.approx((red - mean[0]) / std[0], abs=1e-6)


def test_spikes_fall_into_their_bins(fixtures):
    """Each bin against a count of the file's own times; bin 0 is [0, 1.4 / steps)."""
    import h5py

    root = fixtures("SHD")
    data = ready(SpikingHeidelberg, root, steps=250)
    with h5py.File(Path(root, "SHD/shd_test.h5")) as file:
        for i in range(5):
            x, y = data.samples["test"][i]
            counts = np.zeros((250, 700))
            microseconds = (file["spikes/times"][i].astype(np.float64) * 1e6).astype(int)
            np.add.at(counts, (microseconds // 5600, file["spikes/units"][i]), 1)
            assert (x.numpy() == counts).all()
            assert y == file["labels"][i]


def test_variable_length_brings_lengths_and_zeros(fixtures):
    data = ready(SpikingHeidelberg, fixtures("SHD"), steps=70, variable=True, batch_size=7)
    whole_ones = ready(SpikingHeidelberg, fixtures("SHD"), steps=70, batch_size=7)
    x, y, lengths = batch(data, "test")
    full, same = batch(whole_ones, "test")
    assert torch.equal(y, same)
    assert x.shape == (int(lengths.max()), 7, 700)
    assert len(set(lengths.tolist())) > 3
    for i, n in enumerate(lengths):
        assert torch.equal(x[:n, i], full[:n, i])
        assert full[n - 1, i].any(), "the last step has an event"
        assert not full[n:, i].any(), "no event is cut off"
        assert not x[n:, i].any()


def test_aedat4_events_become_frames_of_equal_count(tmp_path):
    """8 events, 4 frames: two in each, at their polarity, row and column."""
    t = np.arange(8) * 1000
    x, y = np.arange(8), np.arange(8) + 50
    p = np.array([0, 1] * 4, bool)
    for label in ("airplane", "truck"):
        (tmp_path / "CIFAR10DVS" / label).mkdir(parents=True)
        for i in range(10):
            write_aedat4(tmp_path / "CIFAR10DVS" / label / f"{i}.aedat4", t, x, y, p)
    data = ready(CIFAR10DVS, tmp_path, steps=4, augment=False)
    frames, _ = data.samples["train"][0]
    expected = torch.zeros(4, 2, 128, 128)
    expected[np.arange(8) // 2, p.astype(int), y, x] = 1
    assert torch.equal(frames, expected)


def test_gestures_have_their_time_in_milliseconds_and_their_label_in_the_name(tmp_path):
    folder = tmp_path / "DVSGesture"
    write_dvsgesture(tmp_path)
    rows = np.array([[3, 7, 1, 0], [4, 8, 0, 1], [5, 9, 1, 2], [6, 10, 0, 3.0]])
    for path in folder.rglob("10.npy"):
        np.save(path, rows)
    data = ready(DVSGesture, tmp_path, steps=2, augment=False)
    index = int(np.flatnonzero(data.labels(data.samples["test"].source) == 10)[0])
    frames, label = data.samples["test"][index]
    assert label == 10
    assert frames.nonzero().tolist() == [[0, 0, 8, 4], [0, 1, 7, 3], [1, 0, 10, 6], [1, 1, 9, 5]]


def test_the_first_nine_tenths_of_each_class_train(fixtures):
    data = ready(CIFAR10DVS, fixtures("CIFAR10DVS"), steps=2)
    test = data.samples["test"].source
    assert Counter(test.targets.tolist()) == dict.fromkeys(range(10), 1)
    source = test.source
    assert (np.diff(source.targets) >= 0).all()
    assert test.indices.tolist() == list(range(9, 100, 10)), "the last name of each class"


def test_sines_are_the_published_ones():
    data = Sines()
    data.setup()
    assert [len(data.samples[split]) for split in ("train", "val", "test")] == [22_800, 320, 320]
    # drawn by Python's generator, seed 42: amplitudes of training, phases, amplitudes of the test
    random.seed(42)
    drawn = [random.uniform(1, 4) for _ in range(50)]
    phases = [random.uniform(0, 2 * np.pi) for _ in range(8)]
    tested = [random.uniform(1, 4) for _ in range(10)]
    n = np.arange(300)
    last, _ = data.samples["train"][22_799]
    expected = (drawn[49] * np.sin(2 * np.pi * n / 64 + phases[7])).astype(np.float32)
    assert (last[:, 0].numpy() == expected).all()
    x, y = batch(data, "test")
    assert x.shape == (300, 64, 1)
    assert torch.equal(x, y)
    expected = (tested[0] * np.sin(2 * np.pi * n / 8 + np.pi / 2)).astype(np.float32)
    assert (x[:, 0, 0].numpy() == expected).all()


# -- order, augmentation, several processes


def test_hold_out_takes_its_share_of_every_class():
    targets = np.array([0] * 50 + [1] * 10 + [2] * 3 + [3])
    kept, held = hold_out(targets, 0.1)
    assert Counter(targets[held].tolist()) == {0: 5, 1: 1, 2: 1}, "the only sample of a class stays"
    assert sorted([*kept, *held]) == list(range(64))
    assert Counter(targets[hold_out(targets, 0.99)[0]].tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert (hold_out(targets, 0.1, seed=1)[1] != held).any()
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 0"):
        hold_out(targets, 0)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(processes):
    samples = list(range(48))

    def batches(world):
        orders = [Order(samples, world, rank, shuffle=True, seed=3) for rank in range(world)]
        for order in orders:
            order.set_epoch(2)
        keys = [list(order) for order in orders]
        size = 12 // world
        return [
            sorted(key for mine in keys for key in mine[i * size : (i + 1) * size]) for i in range(48 // 12)
        ]

    assert batches(processes) == batches(1)
    assert {epoch for keys in batches(1) for epoch, _ in keys} == {2}


def test_augmentation_is_a_function_of_seed_epoch_and_sample(fixtures):
    def images(epoch, seed=0, workers=0):
        data = ready(
            CIFAR,
            fixtures("CIFAR10"),
            policy="rand-m9-n1-mstd0.4",
            erasing=0.25,
            seed=seed,
            num_workers=workers,
        )
        loader = data.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        return torch.cat([x for x, _ in loader])

    first = images(0)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(images(0), first), "not of the global generators"
    assert torch.equal(images(0, workers=2), first), "nor of the workers"
    data = ready(CIFAR, fixtures("CIFAR10"), policy="rand-m9-n1-mstd0.4")
    a, b, c = (torch.stack([data.samples["train"][epoch, i][0] for i in range(10)]) for epoch in (0, 1, 0))
    assert torch.equal(a, c)
    assert not torch.equal(a, b), "another epoch, another augmentation"
    assert not torch.equal(images(0, seed=1), first)


def test_augmentation_leaves_the_global_generators_alone():
    before = random.random.__self__.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with randomness(1, 2, 3):
        drawn = random.random(), np.random.rand(), torch.rand(()).item()
    with randomness(1, 2, 3):
        assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_was(workers):
    samples = Samples([(torch.tensor(float(i)), i) for i in range(12)], range(12), torch.nn.Identity())

    def loader():
        order = Order(samples, 1, 0, shuffle=True, seed=0)
        made = Loader(samples, batch_sampler=Batches(order, 3, False), num_workers=workers)
        order.set_epoch(1)
        return made

    whole_epoch = [y.tolist() for _, y in loader()]
    first = loader()
    iterator = iter(first)
    seen = [next(iterator)[1].tolist() for _ in range(2)]
    assert first.state_dict() == {"batches": 2}, "workers read further ahead"
    second = loader()
    second.load_state_dict(first.state_dict())
    assert [y.tolist() for _, y in second] == whole_epoch[2:]
    assert seen == whole_epoch[:2]
    assert [y.tolist() for _, y in second] == whole_epoch, "the next epoch is whole"


@pytest.mark.parametrize("axes", [4, 5], ids=["images", "frames"])
def test_mixing_gives_probabilities_and_ends(axes):
    data = CIFAR(mixup=0.5, cutmix=1.0, mix_until=3)
    data.trainer = type("Trainer", (), {"current_epoch": 2})()
    torch.manual_seed(0)
    x = torch.rand(*[6, 5, 3, 8, 8][5 - axes :]) if axes == 5 else torch.rand(6, 3, 8, 8)
    mixed, y = data.mix((x, torch.arange(len(x))))
    assert type(mixed) is torch.Tensor
    assert mixed.shape == x.shape
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(y.sum(1), torch.ones(len(x)))
    assert ((y > 0).sum(1) == 2).all()
    # each sample is what its probabilities say: cut or mixed, of itself and its neighbour, in that share
    share = y[0, 0]
    blended = torch.allclose(mixed[0], share * x[0] + (1 - share) * x[-1], atol=1e-6)
    cut = ((mixed[0] == x[0]) | (mixed[0] == x[-1])).all() and (
        mixed[0] == x[0]
    ).float().mean() - share < 1e-6
    assert blended or cut
    data.trainer.current_epoch = 3
    assert data.mix((x, torch.arange(len(x))))[0] is x


def test_frames_are_augmented_alike_at_every_step(fixtures):
    data = ready(DVSGesture, fixtures("DVSGesture"), steps=2)
    transform = data.transform(True)
    frame = np.random.default_rng(0).integers(0, 3, (1, 2, 128, 128)).astype(np.int16)
    changed = 0
    for key in range(40):
        with randomness(key):
            x = transform(np.repeat(frame, 3, 0))
        assert torch.equal(x[0], x[1])
        assert torch.equal(x[0], x[2])
        changed += not torch.equal(x[0], torch.from_numpy(frame[0]).float())
    assert 20 < changed < 40, "flips, shifts, turns .. and sometimes nothing"


# -- frames on disk


def test_frames_are_read_from_disk_and_made_again_for_another_transform(tmp_path, monkeypatch):
    write_dvsgesture(tmp_path, users=2)
    made = []
    make = made_frames._make
    monkeypatch.setattr(made_frames, "_make", lambda pack, *rest: made.append(len(pack)) or make(pack, *rest))
    before = torch.get_rng_state()
    first = ready(DVSGesture, tmp_path, steps=3, augment=False)
    assert sum(made) == 44
    assert torch.equal(torch.get_rng_state(), before), "a run that makes frames is one that reads them"
    again = ready(DVSGesture, tmp_path, steps=3, augment=False)
    assert sum(made) == 44, "read, not made"
    assert torch.equal(first.samples["test"][4][0], again.samples["test"][4][0])
    for settings in ({"steps": 5}, {"steps": 3, "split_by": "time"}):
        other = ready(DVSGesture, tmp_path, augment=False, **settings)
        assert other.samples["test"][4][0].shape[0] == settings["steps"]
    assert sum(made) == 132
    path = next((tmp_path / "DVSGesture" / "ibmGestureTest").rglob("3.npy"))
    np.save(path, np.load(path)[:100])
    ready(DVSGesture, tmp_path, steps=3)
    assert sum(made) == 154, "other files, other frames (of the test part)"


def test_frames_of_a_transform_that_hides_its_settings_are_refused():
    class Hidden:
        pass

    source = made_frames.Separate("Set", [], [], None)
    with pytest.raises(ValueError, match="its repr does not show its settings"):
        made_frames.cache_key(source, "train", Hidden(), verify=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_frames_are_not_taken_for_whole_ones(workers, tmp_path):
    write_dvsgesture(tmp_path, users=2)
    bad = tmp_path / "DVSGesture" / "ibmGestureTrain" / "user01_led" / "7.npy"
    good = bad.read_bytes()
    bad.write_bytes(good[:200])
    with pytest.raises(RecipeError, match=r"7\.npy is cut or of another type") as error:
        ready(DVSGesture, tmp_path, steps=2, num_workers=workers)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "frames").glob("*"))
    bad.write_bytes(good)
    assert len(ready(DVSGesture, tmp_path, steps=2, num_workers=workers).samples["test"]) == 22


@pytest.mark.parametrize(
    "error",
    [URLError("Name or service not known"), ConnectionResetError("reset by peer"), TimeoutError("timed out")],
)
def test_a_network_that_failed_is_not_called_a_full_disk(tmp_path, error):
    def build(folder):
        raise error

    with pytest.raises(RecipeError, match="could not be fetched: .*; check the network") as raised:
        whole(tmp_path / "MNIST", build)
    assert "space" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_whole_folders(tmp_path):
    def interrupted(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        whole(tmp_path / "set", interrupted)
    with pytest.raises(RecipeError, match=r"set could not be made \(.* GiB free there\): .*No space left"):
        whole(tmp_path / "set", full)
    assert list(tmp_path.iterdir()) == []

    def build(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        return folder / "inner"

    whole(tmp_path / "set", build)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    whole(tmp_path / "set", full)  # is there: not built again


FETCHED = {
    "MNIST": (SequentialMNIST, {}, "torchvision.datasets.MNIST", lambda source: source.root),
    "CIFAR10": (CIFAR, {}, "torchvision.datasets.CIFAR10", lambda source: source.root),
    "SHD": (
        SpikingHeidelberg,
        {"steps": 5},
        "tonic.datasets.SHD",
        lambda source: Path(source.location_on_system).parent,
    ),
}


@pytest.mark.parametrize("name", FETCHED)
def test_an_interrupted_download_is_not_taken_for_a_whole_one(name, tmp_path, monkeypatch):
    """The library's own download, here of a fixture: first it is interrupted, then it finishes."""
    kind, settings, library, where = FETCHED[name]

    def download(source):
        WRITERS[name](where(source))
        if not finished:
            raise KeyboardInterrupt

    monkeypatch.setattr(f"{library}.download", download)
    if name == "CIFAR10":  # torchvision compares checksums right after a download
        monkeypatch.setattr(f"{library}._check_integrity", lambda source: True)
        monkeypatch.setattr(f"{library}._load_meta", lambda source: None)
    finished = False
    with pytest.raises(KeyboardInterrupt):
        ready(kind, tmp_path, download=True, **settings)
    assert list(tmp_path.iterdir()) == []
    finished = True
    assert len(ready(kind, tmp_path, download=True, **settings).samples["test"]) == 20
    monkeypatch.setattr(f"{library}.download", None)
    ready(kind, tmp_path, download=True, **settings)  # is there: not fetched again


# -- errors


@pytest.mark.parametrize(
    "name", ["smnist", "cifar10", "cifar100", "imagenet", "shd", "ssc", "cifar10dvs", "dvsgesture"]
)
def test_missing_data_are_named_and_not_downloaded_unasked(name, tmp_path):
    kind, _, settings, *_ = SETS[name]
    with pytest.raises(RecipeError) as error:
        ready(kind, tmp_path, **settings, verify=True)
    assert str(tmp_path) in str(error.value)
    assert ("your own images" if kind is ImageNet else "--data.download true") in str(error.value)


def test_a_part_of_a_set_is_told_from_the_whole(fixtures):
    with pytest.raises(RecipeError, match="MNIST has 60000 train images, 20 are in"):
        ready(SequentialMNIST, fixtures("MNIST"), verify=True)
    with pytest.raises(RecipeError, match="data_batch_1 .*its checksum is not the publisher's"):
        ready(CIFAR, fixtures("CIFAR10"), verify=True)
    with pytest.raises(RecipeError, match="ImageNet has 1281167 train images, 8 are in"):
        ready(ImageNet, fixtures("ImageNet"), classes=2, verify=True)
    with pytest.raises(RecipeError, match="has 40 samples, SHD has 8156"):
        ready(SpikingHeidelberg, fixtures("SHD"), verify=True)
    with pytest.raises(RecipeError, match="CIFAR10-DVS has 10 x 1000 recordings, 100 are in"):
        ready(CIFAR10DVS, fixtures("CIFAR10DVS"), verify=True)
    with pytest.raises(RecipeError, match="DVSGesture has 1077 train recordings, 22 are in"):
        ready(DVSGesture, fixtures("DVSGesture"), verify=True)


def test_truncated_files(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=r"SequentialMNIST in .* is missing or damaged"):
        ready(SequentialMNIST, tmp_path)

    write_shd(tmp_path)
    path = tmp_path / "SHD" / "shd_test.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RecipeError, match=r"SpikingHeidelberg in .* is missing or damaged.*[Tt]runcated"):
        ready(SpikingHeidelberg, tmp_path)

    write_imagenet(tmp_path)
    data = ready(ImageNet, tmp_path, classes=2, val_fraction=0.5)
    for path in tmp_path.glob("val/*/*.JPEG"):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RecipeError, match=r"_0\.JPEG is cut or of another type"):
        batch(data, "test")
    with pytest.raises(RecipeError, match=r"_0\.JPEG is cut or of another type"):
        ready(ImageNet, tmp_path, classes=2, val_fraction=0.5)


def test_an_image_of_training_is_not_tested(tmp_path):
    write_imagenet(tmp_path)
    first = min(tmp_path.glob("train/*/*.JPEG"))
    copy = tmp_path / "val" / first.parent.name / "other.JPEG"
    copy.write_bytes(first.read_bytes())
    message = (
        rf"1 of the files of training are in the test too, the first is {first}, as {copy}; take them out"
    )
    with pytest.raises(RecipeError, match=message):
        ready(ImageNet, tmp_path, classes=2, val_fraction=0.5)


def test_labels_and_class_folders_are_counted(tmp_path, fixtures):
    with pytest.raises(RecipeError, match=r"has 2 class folders, data\.classes is 1000"):
        ready(ImageNet, fixtures("ImageNet"))
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(
        RecipeError, match=r"test labels of SequentialMNIST lie in 0\.\.11, but it has 10 classes"
    ):
        ready(SequentialMNIST, tmp_path)
    path.write_bytes(path.read_bytes()[:4] + (19).to_bytes(4, "big") + path.read_bytes()[8:-1])
    with pytest.raises(RecipeError, match="20 MNIST test images but 19 labels"):
        ready(SequentialMNIST, tmp_path)


def test_grey_images_of_a_folder_have_three_channels(fixtures):
    grey = sorted(Path(fixtures("ImageNet"), "val").rglob("*_0.JPEG"))[0]
    assert Image.open(grey).mode == "L"
    x, _ = ready(ImageNet, fixtures("ImageNet"), classes=2, size=24).samples["test"][0]
    assert x.shape == (3, 24, 24)
    # (each channel has its own mean and standard deviation)
    plain = (
        x * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    torch.testing.assert_close(plain[0], plain[1])


def test_a_batch_must_be_filled(fixtures):
    data = ready(CIFAR, fixtures("CIFAR10"), batch_size=64, drop_last=True)
    with pytest.raises(RecipeError, match="10 training samples do not fill one batch of 64"):
        data.train_dataloader()
