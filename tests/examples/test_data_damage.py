"""Damaged files of every data set: one line before training that names file and remedy, or a correct run."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("lightning", "tonic", "torchvision", "timm", "h5py"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import torch.multiprocessing  # noqa: E402
from recipes import RecipeError  # noqa: E402
from recipes.data.events import CIFAR10DVS, DVSGesture, SpikingHeidelberg  # noqa: E402
from recipes.data.images import CIFAR, ImageNet, SequentialMNIST  # noqa: E402
from torch import distributed  # noqa: E402

from fixtures.damage import DAMAGES, Damaged, content, outcome, prepared  # noqa: E402
from fixtures.events import write_cifar10dvs, write_dvsgesture, write_shd, write_ssc  # noqa: E402
from fixtures.images import write_cifar10, write_cifar100, write_imagenet, write_mnist  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*fork.*")

# name: data module, its settings, what writes it, its files, and whether one of many may be missing
SETS = {
    "mnist": (SequentialMNIST, {}, write_mnist, "MNIST/raw/*-ubyte", False),
    "cifar10": (CIFAR, {}, write_cifar10, "*/*batch*", False),
    "cifar100": (CIFAR, {"classes": 100}, write_cifar100, "*/t*", False),
    "imagenet": (
        ImageNet,
        {"classes": 2, "size": 24, "val_fraction": 0.4},
        write_imagenet,
        "*/*/*.JPEG",
        True,
    ),
    "shd": (SpikingHeidelberg, {"steps": 10}, write_shd, "SHD/*.h5", False),
    "ssc": (SpikingHeidelberg, {"which": "SSC", "steps": 10}, write_ssc, "SSC/*.h5", False),
    "cifar10dvs": (
        CIFAR10DVS,
        {"steps": 2},
        lambda root: write_cifar10dvs(root, classes=["ship", "truck"]),
        "*/*/*.aedat4",
        True,
    ),
    "dvsgesture": (
        DVSGesture,
        {"steps": 2},
        lambda root: write_dvsgesture(root, users=2),
        "*/*/*/*.npy",
        True,
    ),
}


class Fixture:
    """A data set on the disk: a data module anew, its files, its samples while it is whole."""

    def __init__(self, name, folder):
        self.kind, self.settings, write, pattern, self.many = SETS[name]
        self.root = folder / name
        write(self.root)
        self.files = sorted(path for path in self.root.glob(pattern))
        self.whole = set.union(*content(prepared(self.make())).values())

    def make(self, **more):
        shutil.rmtree(self.root / "frames", ignore_errors=True)
        given = {"root": str(self.root), "verify": False, "batch_size": 2, **self.settings, **more}
        return self.kind(**given)

    def check(self, path, damage, **more):
        """Damage one file, and try a run."""
        with Damaged(path, damage):
            said = outcome(lambda: self.make(**more), self.whole)
        if damage == "missing" and self.many:
            assert said == "runs"
        else:
            assert str(path) in said
            assert "\n" not in said
            assert "in their place" in said
        frames = self.root / "frames"
        assert not list(frames.glob(".*")), "an unfinished folder is left"


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("damage"), {}

    def get(name):
        if name not in made:
            made[name] = Fixture(name, folder)
        return made[name]

    return get


@pytest.mark.full
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SETS)
def test_every_damage_of_every_file(name, damage, fixtures):
    fixture = fixtures(name)
    for path in fixture.files:
        fixture.check(path, damage)


@pytest.mark.parametrize("damage", ["cut at 6 tenths", "emptied", "missing", "text", "folder"])
@pytest.mark.parametrize("name", SETS)
def test_a_damaged_file(name, damage, fixtures):
    fixture = fixtures(name)
    fixture.check(fixture.files[len(DAMAGES) % len(fixture.files)], damage)


# Each pair of (workers, how they start, processes) occurs; one damage a set.
ARRANGEMENTS = [
    ("dvsgesture", "cut at 3 tenths", 2, "spawn"),
    ("cifar10dvs", "cut at 9 tenths", 2, "fork"),
    ("shd", "zeros", 2, "forkserver"),
    ("ssc", "cut at 1 tenths", 2, "spawn"),
    ("imagenet", "text", 2, "forkserver"),
    ("mnist", "cut at 5 tenths", 2, "spawn"),
    ("cifar10", "array", 2, "fork"),
    ("cifar100", "text", 2, "forkserver"),
]


@pytest.mark.parametrize(
    ("name", "damage", "workers", "start"),
    [
        pytest.param(*each, marks=() if each[3] == "fork" else pytest.mark.full, id=f"{each[0]}-{each[3]}")
        for each in ARRANGEMENTS
    ],
)
def test_a_damaged_file_read_by_workers(name, damage, workers, start, fixtures, monkeypatch):
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(start, force=True)
    try:
        fixture = fixtures(name)
        data = prepared(fixture.make(num_workers=workers))
        assert len(next(iter(data.train_dataloader()))[1]) == 2, "whole files are read by these workers"
        fixture.check(fixture.files[-1], damage, num_workers=workers)
    finally:
        torch.multiprocessing.set_start_method(before, force=True)


# -- several processes


def _rank(rank, world, folder, workers):
    """One process of a run on every set, a file of which the first process damages."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    said = {}
    for name, damage, _, start in ARRANGEMENTS:
        kind, settings, _, pattern, _ = SETS[name]
        root = folder / name
        # starting anew takes seconds each time: one set does
        start = start if name == "dvsgesture" else "fork"
        torch.multiprocessing.set_start_method(start, force=True)
        path = sorted(root.glob(pattern))[-1]
        with Damaged(path, damage) if rank == 0 else contextlib.nullcontext():
            distributed.barrier()
            data = kind(root=str(root), verify=False, batch_size=2, num_workers=workers, **settings)
            if rank == 0:
                data.prepare_data()
            distributed.barrier()  # as Lightning's, around the preparation
            try:
                data.setup()
            except RecipeError as error:
                said[name] = (str(path), str(error))
            distributed.barrier()
    (folder / f"said-{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
def test_every_process_says_what_one_of_them_found(workers, tmp_path):
    """Each ends with the same line, and none waits for the other."""
    for name, *_ in ARRANGEMENTS:
        SETS[name][2](tmp_path / name)
    torch.multiprocessing.spawn(_rank, (2, tmp_path, workers), nprocs=2)
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first.keys() == {name for name, *_ in ARRANGEMENTS}
    for path, line in first.values():
        assert path in line
        assert "\n" not in line


@pytest.mark.full
def test_a_run_of_two_processes_ends_with_a_line_from_each(tmp_path):
    write_dvsgesture(tmp_path)
    path = tmp_path / "DVSGesture/ibmGestureTrain/user02_led/7.npy"
    path.write_bytes(path.read_bytes()[:200])
    given = [
        f"--config={ROOT}/examples/configs/dvsgesture.yaml",
        f"--data.root={tmp_path}",
        "--data.verify=false",
    ]
    given += ["--data.steps=2", "--data.batch_size=4", "--data.num_workers=2", f"--out={tmp_path / 'out'}"]
    given += ["--model.network.init_args.planes=8", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    command = [sys.executable, str(ROOT / "examples" / "train.py"), "fit", *given, "--trainer.strategy=ddp"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ran.returncode == 1
    lines = [line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert all(str(path) in line for line in lines)
    assert "Traceback" not in ran.stderr
