"""How the recipes' data files are identified and made, and how events are counted into frames."""

import codecs
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

for name in ("lightning", "tonic", "torchvision", "h5py"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from recipes import RecipeError  # noqa: E402
from recipes.data.events import CIFAR10DVS, DVSGesture, SpikingHeidelberg  # noqa: E402
from recipes.data.files import Fault, identify, twins, unpickle, whole  # noqa: E402
from recipes.data.images import CIFAR, ImageNet, SequentialMNIST  # noqa: E402
from recipes.data.shapes import MovingShapes  # noqa: E402
from recipes.data.sines import Sines  # noqa: E402

from fixtures.damage import prepared, refused  # noqa: E402
from fixtures.events import write_cifar10dvs, write_dvsgesture, write_shd  # noqa: E402
from fixtures.images import write_cifar10, write_imagenet, write_mnist  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# -- folders and labels


@pytest.mark.parametrize("change", ["case", "name", "missing", "more"])
def test_class_folders_of_both_parts_are_the_same(change, tmp_path):
    """Else the labels of one part would be shifted against the other's."""
    write_imagenet(tmp_path, classes=3)
    folder = tmp_path / "val" / "n00000001"
    if change == "case":
        folder.rename(folder.with_name("N00000001"))
    elif change == "name":
        folder.rename(folder.with_name("zebra"))
    elif change == "missing":
        shutil.rmtree(folder)
    else:
        shutil.copytree(folder, folder.with_name("a"))
    message = refused(ImageNet, tmp_path, classes=3, size=24, val_fraction=0.4)
    assert "the class folders of" in message
    assert "name them alike, in case too" in message


def test_an_empty_class_folder_is_named(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "train" / "n00000000").rename(tmp_path / "kept")
    (tmp_path / "train" / "n00000000").mkdir()
    assert f"{tmp_path / 'train' / 'n00000000'} has no images" in refused(ImageNet, tmp_path, classes=2)


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (
            ("ibmGestureTrain/user01_led/3.npy", "ibmGestureTrain/user01_led/11.npy"),
            "is not named by its label",
        ),
        (
            ("ibmGestureTrain/user01_led/3.npy", "ibmGestureTrain/user01_led/3_b.npy"),
            "is not named by its label",
        ),
        (("ibmGestureTrain/user01_led/3.npy", "ibmGestureTrain/3.npy"), r"does not lie in"),
        (("ibmGestureTrain/user01_led", "ibmGestureTrain/person1"), r"does not lie in"),
        (("ibmGestureTest", "IbmGestureTest"), "ibmGestureTest is missing"),
    ],
)
def test_files_that_lie_elsewhere_are_not_left_out_in_silence(move, said, tmp_path):
    write_dvsgesture(tmp_path)
    source, target = (tmp_path / "DVSGesture" / name for name in move)
    source.rename(target)
    assert said in refused(DVSGesture, tmp_path, steps=2)


def test_folder_names_as_documented(tmp_path):
    """user01 as well as user01_led."""
    write_dvsgesture(tmp_path)
    for folder in list(tmp_path.rglob("user*")):
        folder.rename(folder.with_name(folder.name.partition("_")[0]))
    assert len(prepared(DVSGesture(root=str(tmp_path), verify=False, steps=2)).samples["test"]) == 22


def test_recordings_of_an_unknown_class_are_named(tmp_path):
    write_cifar10dvs(tmp_path, classes=["ship", "truck"])
    (tmp_path / "CIFAR10DVS" / "ship").rename(tmp_path / "CIFAR10DVS" / "Ship")
    assert "lies in no class folder of" in refused(CIFAR10DVS, tmp_path, steps=2)


@pytest.mark.parametrize("batch", ["data_batch_2", "test_batch"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: entry["labels"].pop(), "images but int64[3] labels|images but int64[19] labels"),
        (lambda entry: entry["labels"].__setitem__(0, 10), "its labels lie in"),
        (lambda entry: entry["labels"].__setitem__(0, -1), "its labels lie in -1"),
        (lambda entry: entry["labels"].__setitem__(0, 1.5), "labels"),
        (lambda entry: entry.__setitem__("data", entry["data"].astype(float)), "no rows of 3072 bytes"),
        (lambda entry: entry.__setitem__("data", entry["data"][:, :3000]), "no rows of 3072 bytes"),
        (lambda entry: entry.pop("labels"), "'labels'"),
        (lambda entry: entry.pop("data"), "'data'"),
    ],
)
def test_a_batch_of_cifar_is_checked_by_itself(batch, change, said, tmp_path):
    """One label fewer would shift all later labels."""
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / batch
    entry = pickle.loads(path.read_bytes(), encoding="latin1")
    change(entry)
    path.write_bytes(pickle.dumps(entry, 2))
    message = refused(CIFAR, tmp_path)
    assert str(path) in message
    assert any(part in message for part in said.split("|"))


def test_mnist_of_another_size_or_type(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    good = path.read_bytes()
    path.write_bytes(good[:8] + (14).to_bytes(4, "big") + (56).to_bytes(4, "big") + good[16:])
    assert "images of 28 x 28" in refused(SequentialMNIST, tmp_path)
    path.write_bytes(good[:2] + b"\x0d" + good[3:])
    assert "begins with 00000d03" in refused(SequentialMNIST, tmp_path)
    path.write_bytes(good + b"\0")
    assert "its header says [20, 28, 28]" in refused(SequentialMNIST, tmp_path)


def test_pickles_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(Fault, match=r"it holds posix\.mkdir, but only arrays and plain values are read"):
        unpickle(path)
    assert not (tmp_path / "made").exists()
    kept = {"a": np.arange(6.0).reshape(2, 3), "b": [1, "x", None], "c": np.float32(2.5)}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(kept, protocol))
        got = unpickle(path)
        assert (got.pop("a") == kept["a"]).all()
        assert got == {"b": kept["b"], "c": kept["c"]}


# -- settings


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (CIFAR, {"batch_size": 0}, "batch_size must be 1 or more"),
        (CIFAR, {"num_workers": -1}, r"num_workers and data\.seed 0 or more"),
        (CIFAR, {"val_fraction": 1.0}, r"val_fraction must lie in \(0, 1\), got 1.0"),
        (CIFAR, {"mixup": -0.1}, "mixup and data.cutmix must be 0 or more"),
        (CIFAR, {"mix_prob": 1.5}, r"mix_prob in \[0, 1\]"),
        (DVSGesture, {"steps": 0}, "steps must be positive"),
        (SpikingHeidelberg, {"duration": 0.0}, "must be positive"),
        (CIFAR, {"seed": -1}, "data.seed 0 or more"),
        (CIFAR, {"erasing": 2.0}, r"erasing must lie in \[0, 1\], got 2.0"),
        (ImageNet, {"erasing": -1.0}, r"erasing must lie in \[0, 1\], got -1.0"),
        (ImageNet, {"size": 0}, "size must be 1 or more"),
        (Sines, {"amplitudes": 0}, "amplitudes must be 1 to 50, got 0"),
        (Sines, {"amplitudes": 51}, "amplitudes must be 1 to 50, got 51"),
    ],
)
def test_settings_out_of_range(kind, settings, said):
    with pytest.raises(RecipeError, match=said):
        kind(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (CIFAR, "mixup"),
        (CIFAR, "cutmix"),
        (CIFAR, "mix_prob"),
        (CIFAR, "erasing"),
        (SpikingHeidelberg, "duration"),
        (DVSGesture, "noise"),
        (MovingShapes, "window"),
        (MovingShapes, "interval"),
    ],
)
def test_settings_that_are_no_number(kind, name, value):
    with pytest.raises(RecipeError, match=rf"data\.{name}.* got .*{value}"):
        kind(**{name: value})


@pytest.mark.parametrize("policy", ["typo", "randm9", "rand-x3"])
@pytest.mark.parametrize("kind", [CIFAR, ImageNet])
def test_policies_that_timm_does_not_know(kind, policy):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(RecipeError, match=f"data.policy '{policy}' is no policy of this data set"):
        kind(policy=policy).transform(train=True)


PIXELS = partial(CIFAR, pixels=True)


@pytest.mark.parametrize("kind", [Sines, SequentialMNIST, SpikingHeidelberg, PIXELS])
def test_mixing_where_there_are_no_images_of_classes(kind, tmp_path):
    assert "mixup and cutmix mix classes of images" in refused(kind, tmp_path / "none", mixup=0.5)


# -- which file, and where made files lie


def key(folder):
    """Of the frames that are in a folder now, by the parts of the set."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_a_replaced_file_of_the_same_name_size_and_time_has_new_frames(tmp_path):
    write_dvsgesture(tmp_path)
    path = next(tmp_path.rglob("ibmGestureTest/user01_led/3.npy"))
    first = prepared(DVSGesture(root=str(tmp_path), verify=False, steps=2)).samples["test"].source
    facts, values = path.stat(), np.load(path)
    values[:, 0] = 127 - values[:, 0]
    np.save(path, values)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    again = prepared(DVSGesture(root=str(tmp_path), verify=False, steps=2)).samples["test"].source
    index = first.source.files.index(path)
    assert (again[index][0] == first[index][0][..., ::-1]).all()


def test_equal_names_times_and_sizes_do_not_make_test_frames_of_training_frames(tmp_path):
    write_dvsgesture(tmp_path)
    for path in tmp_path.rglob("*.npy"):
        os.utime(path, ns=(1, 1))
    data = prepared(DVSGesture(root=str(tmp_path), verify=False, steps=2))
    train, test = (data.samples[split].source for split in ("train", "test"))
    assert train.folder != test.folder
    assert (train[0][0] != test[0][0]).any()


@pytest.mark.parametrize("full", [False, True])
def test_files_are_told_apart(full, tmp_path):
    """Beyond the ends of a file only the full hash sees a change; by the ends, time and inode count too."""
    path = tmp_path / "file"
    path.write_bytes(bytes(200_000))
    os.utime(path, ns=(10**9, 10**9))
    facts, known = path.stat(), identify([path], full)
    assert identify([path], full) == known
    with path.open("r+b") as file:  # in place: the inode stays
        file.seek(100_000)
        file.write(b"x")
    os.utime(path, ns=(10**9, 10**9))
    assert (identify([path], full) != known) is full
    for place in (0, 199_999):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        os.utime(path, ns=(10**9, 10**9))
        now = identify([path], full)
        assert now != known
        known = now
    os.utime(path, ns=(10**9, 10**9 + 1))
    assert (identify([path], full) == known) is full, "one nanosecond"
    shutil.copy2(path, tmp_path / "copy")
    assert identify([tmp_path / "copy"], full) != known
    assert path.stat().st_ino == facts.st_ino


def test_files_of_equal_content_are_found_under_any_name(tmp_path):
    one, two, copy, link, other = (tmp_path / name for name in ("one", "two", "copy", "link", "other"))
    for path, content in ((one, b"abc"), (two, b"abd"), (copy, b"abc"), (other, b"abcd")):
        path.write_bytes(content)
    link.symlink_to(two)
    assert twins([one, two], [other]) == []
    assert twins([one, two, other], [copy, link]) == [(one, copy), (two, link)]
    with pytest.raises(Fault, match="gone is missing"):
        twins([one], [tmp_path / "gone"])


def test_frames_lie_where_the_user_says(tmp_path):
    write_dvsgesture(tmp_path / "set")
    data = prepared(
        DVSGesture(root=str(tmp_path / "set"), verify=False, steps=2, cache=str(tmp_path / "mine"))
    )
    assert data.samples["test"].source.folder.parent == tmp_path / "mine"
    assert not (tmp_path / "set" / "frames").exists()


@contextmanager
def unprivileged():
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    # Python may lie where that user cannot read, and remembers for good a codec that it did not find.
    for codec in ("cp437", "latin1", "ascii", "utf-16", "idna", "raw_unicode_escape", "unicode_escape"):
        codecs.lookup(codec)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user reaches."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o777)
    shutil.rmtree(folder)


def everybody(folder, mode, file_mode=0o444):
    for path in [folder, *folder.rglob("*")]:
        path.chmod(mode if path.is_dir() else file_mode)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagenet", "shd", "cifar10dvs", "dvsgesture"])
def test_a_read_only_folder_is_not_damaged(name, open_folder, monkeypatch):
    kind, settings, write = {
        "mnist": (SequentialMNIST, {}, write_mnist),
        "cifar10": (CIFAR, {}, write_cifar10),
        "imagenet": (ImageNet, {"classes": 2, "val_fraction": 0.4}, write_imagenet),
        "shd": (SpikingHeidelberg, {"steps": 5}, write_shd),
        "cifar10dvs": (CIFAR10DVS, {"steps": 2}, lambda root: write_cifar10dvs(root, classes=["ship"])),
        "dvsgesture": (DVSGesture, {"steps": 2}, write_dvsgesture),
    }[name]
    root, user = open_folder / "set", open_folder / "user"
    root.mkdir()
    write(root)
    everybody(root, 0o555)
    user.mkdir()
    user.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(user))
    with unprivileged():
        data = prepared(kind(root=str(root), verify=False, **settings))
        assert data.samples["test"][0]
    if name in ("shd", "dvsgesture"):
        assert data.samples["test"].source.folder.parent == user / "msf-pmsn-plugins" / "frames"
    # a file that may not be read is named, and not called damaged
    path = max((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.chmod(0)
    shutil.rmtree(user / "msf-pmsn-plugins", ignore_errors=True)
    with unprivileged():
        message = refused(kind, root, **settings)
    assert f"{path} may not be read by this user" in message
    assert "damaged" not in message


def test_a_folder_that_may_not_be_read_is_not_left_out(open_folder):
    root = open_folder / "set"
    write_dvsgesture(root)
    everybody(root, 0o555)
    hidden = next(root.rglob("user02_led"))
    hidden.chmod(0)
    with unprivileged():
        assert f"{hidden} may not be read by this user" in refused(DVSGesture, root, steps=2)


def test_a_download_into_a_read_only_folder(open_folder):
    root = open_folder / "set"
    root.mkdir()
    root.chmod(0o555)
    with unprivileged():
        message = refused(SequentialMNIST, root, download=True)
    assert "MNIST could not be made" in message
    assert "Permission denied" in message


# -- full disks and killed processes


@contextmanager
def largest_file(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["shd", "cifar10dvs", "dvsgesture"])
def test_a_full_disk_ends_with_one_line_and_leaves_nothing(name, workers, tmp_path):
    kind, write = {
        "shd": (SpikingHeidelberg, write_shd),
        "cifar10dvs": (CIFAR10DVS, lambda root: write_cifar10dvs(root, classes=["ship"])),
        "dvsgesture": (DVSGesture, write_dvsgesture),
    }[name]
    write(tmp_path)
    before = set(tmp_path.rglob("*"))
    with largest_file(2000):
        message = refused(kind, tmp_path, steps=2, num_workers=workers)
    assert "could not be made" in message
    assert "GiB free there" in message
    assert "File too large" in message
    assert "give another --data.cache" in message
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "frames"}
    prepared(kind(root=str(tmp_path), verify=False, steps=2))  # the same process goes on, with space


def test_space_is_checked_before_the_frames_are_made(tmp_path, monkeypatch):
    write_dvsgesture(tmp_path)
    monkeypatch.setattr(
        "recipes.data.frames.shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10_000})
    )
    message = refused(DVSGesture, tmp_path, steps=2)
    assert "has 0.00 GiB free, the frames of 22 recordings need about" in message
    assert "give another --data.cache" in message
    assert not list((tmp_path / "frames").iterdir())


@pytest.mark.parametrize("damage", ["cut", "index", "missing", "bit"])
def test_damaged_frames_are_named(damage, tmp_path):
    write_dvsgesture(tmp_path)
    folder = prepared(DVSGesture(root=str(tmp_path), steps=2, verify=False)).samples["test"].source.folder
    path = folder / ("index.npz" if damage == "index" else "frames.bin")
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-20] ^= 1
    path.write_bytes(content if damage == "bit" else content[:-5])
    if damage == "missing":
        path.unlink()
    if damage == "bit":
        samples = prepared(DVSGesture(root=str(tmp_path), steps=2, verify=False)).samples["test"]
        with pytest.raises(RecipeError, match=r"frames\.bin .*the checksum of .*npy differs; remove"):
            samples[len(samples) - 1]
        with pytest.raises(RecipeError, match="it is made again"):
            samples.source._open(True)
    else:
        assert f"remove the folder {folder}, it is made again" in refused(DVSGesture, tmp_path, steps=2)


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_makes_is_not(tmp_path):
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(ROOT / "examples")!r})
        from pathlib import Path
        from recipes.data.files import whole

        def build(folder):
            (folder / "half").write_text("x")
            print("building", flush=True)
            time.sleep(600)

        whole(Path({str(tmp_path)!r}) / sys.argv[1], build)
    """)
    started = [
        subprocess.Popen([sys.executable, "-c", script, name], stdout=subprocess.PIPE)
        for name in ("dead", "alive")
    ]
    try:
        for process in started:
            assert process.stdout.readline() == b"building\n"
        assert len(list(tmp_path.iterdir())) == 2
        started[0].send_signal(signal.SIGKILL)
        started[0].wait()
        whole(tmp_path / "other", lambda folder: (folder / "file").write_text("x") and None)
        assert sorted(path.name.partition(".partial")[0] for path in tmp_path.iterdir()) == [
            ".alive",
            "other",
        ]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_batch_that_cannot_be_read_is_one_line_with_workers_too(tmp_path):
    write_imagenet(tmp_path)
    for workers in (0, 2):
        data = prepared(
            ImageNet(
                root=str(tmp_path), verify=False, classes=2, size=24, val_fraction=0.4, num_workers=workers
            )
        )
        path = next((tmp_path / "val").rglob("*_1.JPEG"))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(RecipeError) as error:
            list(data.test_dataloader())
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
        assert torch.cat([y for _, y in data.test_dataloader()]).tolist() == [0, 0, 1, 1]
