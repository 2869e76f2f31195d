"""Biological signals: the real formats, protocols that keep people and trials apart, and what is refused."""

import pickle
import shutil
import sys
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

for name in ("lightning", "pyedflib"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from recipes import RecipeError  # noqa: E402
from recipes.data.emotion import DEAP  # noqa: E402
from recipes.data.motor import EEGMMIDB, FISTS, MONTAGE  # noqa: E402
from recipes.data.signals import divide  # noqa: E402
from recipes.data.sleep import SleepEDF  # noqa: E402

from fixtures import damage  # noqa: E402
from fixtures.damage import DAMAGES, Damaged, prepared  # noqa: E402
from fixtures.signals import (  # noqa: E402
    SLEEP,
    START,
    write_deap,
    write_edf,
    write_mmidb,
    write_night,
    write_sleep,
)

# name: data module, its settings, what writes it, its files, shape of a batch of 2, classes
SETS = {
    "sleep": (SleepEDF, {"folds": 4}, write_sleep, "*/*.edf", (2, 1, 3000), 5),
    "deap": (DEAP, {"folds": 4, "seconds": 20}, write_deap, "*/*.dat", (2, 32, 2560), 2),
    "mmidb": (EEGMMIDB, {"folds": 3}, write_mmidb, "*/*.edf", (2, 64, 480), 4),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    for name, (_, _, write, *_) in SETS.items():
        write(folder / name)
    return folder


def ready(name, root, **more):
    kind, settings, *_ = SETS[name]
    return prepared(kind(root=str(root), **{"verify": False, "batch_size": 2, **settings, **more}))


def refused(name, root, **more):
    kind, settings, *_ = SETS[name]
    return damage.refused(kind, root, **{**settings, **more})


def parts(data, what):
    """People, trials or windows of each split."""
    found = {}
    for split, samples in data.samples.items():
        source = samples.source
        values = {"people": source.source.people, "trials": source.source.trials}.get(what)
        found[split] = set(
            (np.arange(len(source.source)) if values is None else values)[source.indices].tolist()
        )
    return found


@pytest.mark.parametrize("name", SETS)
def test_batches(name, roots):
    *_, shape, classes = SETS[name]
    data = ready(name, roots / name)
    assert (data.layout, data.classes, len(data.names)) == ("NCL", classes, classes)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        x, y = data.arrange(next(iter(loader)))
        assert x.shape == shape
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert 0 <= y.min() <= y.max() < classes
    assert f"fold 0 of {data.folds} by people, {classes} classes" in data.about


@pytest.mark.parametrize("protocol", ["cross", "within"])
@pytest.mark.parametrize("name", SETS)
def test_no_person_and_no_trial_is_in_two_parts_and_each_is_tested_once(name, protocol, roots):
    person = {"sleep": "02", "deap": "s02", "mmidb": "S002"}[name] if protocol == "within" else None
    folds = {"sleep": 4, "deap": 3, "mmidb": 3}[name] if protocol == "within" else SETS[name][1]["folds"]
    what = "people" if protocol == "cross" else "trials"
    tested = Counter()
    for fold in range(folds):
        data = ready(name, roots / name, protocol=protocol, person=person, fold=fold, folds=folds)
        for kind in (what, "windows"):
            train, val, test = parts(data, kind).values()
            assert not train & val
            assert not train & test
            assert not val & test
        tested.update(parts(data, "windows")["test"])
        if person is not None:
            assert {one for split in parts(data, "people").values() for one in split} == {person}
    assert set(tested.values()) == {1}
    assert len(tested) == len(data.samples["test"].source.source), "every window is tested in one fold"


def test_windows_of_a_trial_stay_together(roots):
    """Shuffled windows would meet their neighbours again in the test part."""
    data = ready("deap", roots / "deap", protocol="within", person="s01", folds=3, seconds=1)
    train, val, test = parts(data, "trials").values()
    assert len(train | val | test) == 6
    assert len(data.samples["test"]) == 60 * len(test)


def test_the_split_depends_on_nothing_but_the_fold(roots):
    first = parts(ready("sleep", roots / "sleep", fold=1), "people")
    assert parts(ready("sleep", roots / "sleep", fold=1, seed=7), "people") == first
    assert parts(ready("sleep", roots / "sleep", fold=2), "people")["test"] != first["test"]


def test_folds_are_dealt_by_hand():
    people = [f"{k:02d}" for k in range(7)]
    found = divide(people, 1, 3, 0.25)
    assert found["test"] == {"03", "04"}
    assert len(found["val"]) == 1
    assert found["train"] | found["val"] == {"00", "01", "02", "05", "06"}
    for fold, folds in ((3, 3), (-1, 3), (0, 8)):
        with pytest.raises(RecipeError, match=f"fold {fold} of {folds} does not exist for 7 people"):
            divide(people, fold, folds, 0.1)
    with pytest.raises(RecipeError, match="folds leave 0 of 7"):
        divide(people, 0, 1, 0.1)


# -- numbers by hand


def test_sleep_windows_are_the_labelled_ones_of_the_night(roots):
    import pyedflib

    data = ready("sleep", roots / "sleep")
    windows = data.samples["test"].source.source
    night = [i for i, trial in enumerate(windows.trials) if trial.startswith("00 night 1")]
    # WW1123344RR?MWWW and the wake that the hypnogram goes on with, to the end of nine minutes
    assert windows.targets[night].tolist() == [0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4, 0, 0, 0, 0, 0]
    with pyedflib.EdfReader(str(roots / "sleep/sleep-cassette/SC4001E0-PSG.edf")) as file:
        signal = file.readSignal(0)
    signal = (signal - signal.mean()) / signal.std()
    assert windows.x[night[3], 0] == pytest.approx(signal[9000:12000], abs=1e-5)
    assert windows.x[night[11], 0] == pytest.approx(signal[13 * 3000 : 14 * 3000], abs=1e-5), (
        "? and movement left out"
    )


def test_wake_is_cut_to_half_an_hour(tmp_path):
    for person in range(3):
        write_night(tmp_path / "sleep-cassette", person, 1, minutes=70, pattern="W" * 65 + "1234R" + "W" * 66)
    data = ready("sleep", tmp_path, folds=3)
    assert len(data.samples["test"]) == 60 + 5 + 60


def test_several_channels(roots):
    data = ready("sleep", roots / "sleep", channels=("EEG Pz-Oz", "EOG horizontal"))
    assert data.samples["test"][0][0].shape == (2, 3000)


@pytest.mark.parametrize("seconds", [60, 20])
def test_deap_by_hand(seconds, roots):
    data = ready("deap", roots / "deap", seconds=seconds)
    content = pickle.loads((roots / "deap/data_preprocessed_python/s01.dat").read_bytes())
    raw = content["data"][:, :32]
    baseline = (raw[..., :128] + raw[..., 128:256] + raw[..., 256:384]) / 3
    x = raw[..., 384:] - np.tile(baseline, 60)
    x = (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True)
    windows = data.samples["test"].source.source
    per = 60 // seconds
    assert windows.targets[: 4 * per].tolist() == np.repeat([0, 1, 0, 1], per).tolist()
    assert windows.x[per] == pytest.approx(x[1, :, : seconds * 128], abs=1e-5)
    assert windows.x[per - 1] == pytest.approx(x[0, :, -seconds * 128 :], abs=1e-5)


def test_a_rating_of_5_is_low(tmp_path):
    write_deap(tmp_path, people=3, trials=4)
    for path in tmp_path.rglob("*.dat"):
        content = pickle.loads(path.read_bytes())
        content["labels"][:, 1] = [5.0, 5.01, 1.0, 9.0]
        path.write_bytes(pickle.dumps(content, 2))
    data = ready("deap", tmp_path, folds=3, rating="arousal", seconds=60)
    assert data.samples["test"].source.source.targets[:4].tolist() == [0, 1, 0, 1]


def test_mmidb_windows_begin_with_their_cue(roots):
    import pyedflib

    windows = ready("mmidb", roots / "mmidb").samples["test"].source.source
    with pyedflib.EdfReader(str(roots / "mmidb/S001/S001R08.edf")) as file:
        signal = file.readSignal(10)
    signal = (signal - signal.mean()) / signal.std()
    index = windows.trials.tolist().index("S001 run 8 trial 1968")  # T2 at 12.3 s
    assert windows.targets[index] == 1
    assert windows.x[index, 10] == pytest.approx(signal[1968 : 1968 + 480], abs=1e-4)
    mine = windows.people == "S001"
    # 3 runs of two left and two right fists, 3 runs of two feet, 13 windows of 3 s in the 40 s of run 1
    assert Counter(windows.targets[mine].tolist()) == {0: 6, 1: 6, 2: 13, 3: 6}


@pytest.mark.parametrize(("classes", "expected"), [(2, {0: 6, 1: 6}), (3, {0: 6, 1: 6, 2: 13})])
def test_mmidb_with_fewer_classes(classes, expected, roots):
    windows = ready("mmidb", roots / "mmidb", classes=classes).samples["test"].source.source
    assert Counter(windows.targets[windows.people == "S003"].tolist()) == expected


def test_four_people_are_left_out_and_21_trials_are_enough(tmp_path):
    write_mmidb(tmp_path, people=(1, 2, 87, 88), runs=FISTS)
    names = ready("mmidb", tmp_path, classes=2).samples["test"].source.source.people
    assert set(names) == {"S001", "S002", "S087"}
    data = EEGMMIDB(root=str(tmp_path), verify=False, classes=2)
    taken = dict.fromkeys(range(2), 20)
    run = data._run(tmp_path / "S001/S001R04.edf", 4, "S001", taken)
    assert run.targets.tolist() == [0, 1]


# -- what is refused


@pytest.mark.parametrize("damage", ["cut at 6 tenths", "emptied", "text", "zeros", "folder", "missing"])
@pytest.mark.parametrize("name", SETS)
def test_damaged_files_are_named(name, damage, roots):
    path = sorted((roots / name).glob(SETS[name][3]))[2]
    with Damaged(path, damage):
        if damage == "missing" and name != "mmidb":
            message = refused(name, roots / name, verify=True)  # a part of a set is one that verify tells
            assert "are in" in message
        else:
            message = refused(name, roots / name)
            assert path.name in message
    assert "in its place" in message


@pytest.mark.full
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", SETS)
def test_every_damage_of_every_signal_file(name, damage, roots):
    for path in sorted((roots / name).glob(SETS[name][3])):
        with Damaged(path, damage):
            if damage == "missing" and name == "deap":
                assert "does not exist for 3 people" in refused(name, roots / name)
            elif damage == "missing" and path.name.endswith("PSG.edf"):
                assert len(ready(name, roots / name).samples["test"])
            elif damage == "missing" and name == "sleep":
                assert f"{path.name[:6]}E0-PSG.edf has 0 hypnograms beside it" in refused(name, roots / name)
            else:
                assert path.name in refused(name, roots / name)


def test_counts_are_the_publishers(roots):
    assert "the 20 people have 39 nights, 8 are in" in refused("sleep", roots / "sleep", verify=True)
    assert "DEAP has 32 people, 4 are in" in refused("deap", roots / "deap", verify=True)
    assert "EEGMMIDB has 105 people without the four, 3 are in" in refused(
        "mmidb", roots / "mmidb", verify=True
    )


def test_a_person_under_two_names(tmp_path):
    for name, source, copy in (
        ("sleep", "sleep-cassette/SC4001E0-PSG.edf", "sleep-cassette/SC4031E0-PSG.edf"),
        ("deap", "data_preprocessed_python/s01.dat", "data_preprocessed_python/s04.dat"),
        ("mmidb", "S001/S001R08.edf", "S003/S003R08.edf"),
    ):
        root = tmp_path / name
        SETS[name][2](root, people=(1, 3) if name == "mmidb" else 4)
        shutil.copy(root / source, root / copy)
        assert f"{root / copy} holds the same signal as {root / source}" in refused(name, root)


def test_a_class_in_no_fold(tmp_path):
    for person in range(3):
        write_night(tmp_path / "sleep-cassette", person, 1, pattern="WW112233")
    assert "has no window of class REM, so no fold has" in refused("sleep", tmp_path, folds=3)
    write_night(tmp_path / "sleep-cassette", 2, 1)
    message = refused("sleep", tmp_path, folds=3, fold=2)
    assert "class REM has no training window in SleepEDF: fold 2 of 3 by people" in message


def test_values_that_are_no_numbers_and_flat_channels(tmp_path):
    write_deap(tmp_path, people=3, trials=4)
    path = tmp_path / "data_preprocessed_python" / "s02.dat"
    good = path.read_bytes()
    for change, said in (
        (lambda c: c["data"].__setitem__((0, 3, 500), np.nan), "values that are no numbers"),
        (lambda c: c["data"].__setitem__((slice(None), 3), 1.0), "is flat in channel 3"),
        (
            lambda c: c["data"].__setitem__((2, 3, 500), 1e300),
            "has the value 1e+300 in trial 2, channel 3, sample 500; EEG in microvolts lies within 1e+06",
        ),
        (
            lambda c: c["data"].__setitem__((2, 31, 8063), -1.5e6),
            "has the value -1.5e+06 in trial 2, channel 31",
        ),
        (lambda c: c["data"].__setitem__((0, 3, 500), np.inf), "has the value inf in trial 0, channel 3"),
        (lambda c: c["labels"].__setitem__((0, 0), 11.0), "four ratings from 1 to 9"),
        (lambda c: c["labels"].__setitem__((0, 0), np.nan), "four ratings from 1 to 9"),
        (lambda c: c.__setitem__("labels", c["labels"][:3]), "4 rows of four ratings"),
        (
            lambda c: c.__setitem__("data", c["data"][..., :8000]),
            "not trials of 40 channels and 8064 samples",
        ),
        (lambda c: c.pop("data"), "'data'"),
    ):
        content = pickle.loads(good)
        change(content)
        path.write_bytes(pickle.dumps(content, 2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            message = refused("deap", tmp_path, folds=3)
        assert str(path) in message
        assert said in message
    path.write_bytes(pickle.dumps({"data": np.zeros((0, 40, 8064)), "labels": np.zeros((0, 4))}, 4))
    assert "its data are [0, 40, 8064], not trials" in refused("deap", tmp_path, folds=3)


def test_a_pickle_that_holds_more_than_arrays(tmp_path):
    write_deap(tmp_path, people=3)
    path = tmp_path / "data_preprocessed_python" / "s02.dat"
    path.write_bytes(b"cos\nsystem\n(S'touch made'\ntR.")
    message = refused("deap", tmp_path, folds=3)
    assert "it holds os.system, but only arrays and plain values are read" in message
    assert str(path) in message


def test_another_rate_or_montage(tmp_path):
    write_mmidb(tmp_path, people=(1, 2), runs=FISTS)
    write_mmidb(tmp_path, people=(3,), runs=FISTS, rate=128)
    path = tmp_path / "S003" / "S003R04.edf"
    assert f"{path} has Fc5 at 128 Hz, 160 Hz are needed" in refused("mmidb", tmp_path, classes=2)
    shutil.rmtree(tmp_path / "S003")
    write_mmidb(tmp_path, people=(3,), runs=FISTS)
    signals = [(name, "uV", 160) for name in MONTAGE.split()[:-1]]
    write_edf(path, signals, [np.zeros(6400)] * 63)
    assert f"{path} has no channel Iz; it has" in refused("mmidb", tmp_path, classes=2)
    sleep = tmp_path / "sleep"
    write_sleep(sleep)
    write_night(sleep / "sleep-cassette", 1, 1, rate=128)
    assert "SC4011E0-PSG.edf has EEG Fpz-Cz at 128 Hz, 100 Hz are needed" in refused("sleep", sleep)
    assert "has no channel EEG Cz" in refused("sleep", roots_of(sleep), channels=("EEG Cz",))


def roots_of(path):
    """The fixture again, whole."""
    shutil.rmtree(path)
    write_sleep(path)
    return path


def write_run(root, notes):
    """Person 1's run 4, with these annotations."""
    path = root / "S001" / "S001R04.edf"
    draw = np.random.default_rng(5)
    signals = [(name, "uV", 160) for name in MONTAGE.split()]
    write_edf(path, signals, [draw.normal(0, 30, 40 * 160) for _ in signals], notes)
    return path


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        (
            [(i * 1.0, 1.0, f"T{i % 3}") for i in range(6)],
            "has no trial of 3 s: T1 at 1 s (1 s), T2 at 2 s (1 s), T1 at 4 s (1 s), T2 at 5 s (1 s)",
        ),
        ([(4.2, 4.1, "T1"), (4.2, 4.1, "T2")], "has two annotations at 4.2 s: T1 and T2"),
        ([(0.0, 40.0, "T0")], "has no trial of 3 s: there is none"),
        ([(38.0, 4.1, "T1")], "has no trial of 3 s: T1 at 38 s (2 s)"),
    ],
    ids=["1 s", "two at once", "none", "none within"],
)
def test_runs_without_a_trial_as_long_as_a_window(notes, said, tmp_path):
    write_mmidb(tmp_path, runs=FISTS)
    path = write_run(tmp_path, notes)
    message = refused("mmidb", tmp_path, classes=2)
    assert str(path) in message
    assert said in message


def test_a_trial_of_three_seconds_is_whole_and_one_past_the_end_is_named(tmp_path):
    write_mmidb(tmp_path, runs=FISTS)
    notes = [(0.3, 3.0, "T0"), (3.3, 3.0, "T1"), (6.3, 3.0, "T2")]
    write_run(tmp_path, [*notes, (37.0, 3.0, "T1")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = ready("mmidb", tmp_path, classes=2).samples["test"].source.source
    assert windows.targets[:3].tolist() == [0, 1, 0]
    write_run(tmp_path, [*notes, (37.5, 3.0, "T2")])
    with pytest.warns(UserWarning, match=r"S001R04.edf, 40 s: left out are .*: T2 at 37.5 s \(2.5 s\)$"):
        windows = ready("mmidb", tmp_path, classes=2).samples["test"].source.source
    assert windows.targets[:2].tolist() == [0, 1]
    assert sum(trial.startswith("S001 run 4 ") for trial in windows.trials) == 2


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ([(4.2, 2.5, "T1"), (8.3, 4.1, "T2")], r"T1 at 4.2 s \(2.5 s\)"),
        (
            [(i * 2.0, 4.1, f"T{i % 3}") for i in range(6)],
            r"T1 at 2 s \(2 s\), T2 at 4 s \(2 s\), T1 at 8 s \(2 s\)",
        ),
    ],
    ids=["2.5 s", "overlapping"],
)
def test_trials_shorter_than_their_windows_are_left_out_and_named(notes, said, tmp_path):
    write_mmidb(tmp_path, runs=FISTS)
    path = write_run(tmp_path, notes)
    with pytest.warns(UserWarning, match=rf"{path}, 40 s: left out are trials .*: {said}$"):
        windows = ready("mmidb", tmp_path, classes=2).samples["test"].source.source
    assert sum(trial.startswith("S001 run 4 ") for trial in windows.trials) == 1
    assert windows.targets[0] == 1, "the last, T2"


def test_a_recording_that_lies_in_two_folders(tmp_path):
    """With another signal each, so that only the names tell."""
    for name, folder in (
        ("mmidb", "S001"),
        ("sleep", "sleep-cassette"),
        ("deap", "data_preprocessed_python"),
    ):
        root = tmp_path / name
        SETS[name][2](root)
        first = min((root / folder).iterdir())
        shutil.copytree(root / folder, root / folder / "old" / folder)
        both = sorted([first, root / folder / "old" / folder / first.name])
        message = refused(name, root)
        assert f"{both[0]} and {both[1]} are one recording by their names" in message


def test_hypnograms(tmp_path):
    folder = tmp_path / "sleep-cassette"
    write_sleep(tmp_path, people=3)
    path = folder / "SC4011EC-Hypnogram.edf"
    good = path.read_bytes()
    path.unlink()
    assert "SC4011E0-PSG.edf has 0 hypnograms beside it" in refused("sleep", tmp_path, folds=3)
    path.write_bytes(good)
    shutil.copy(path, folder / "SC4011EH-Hypnogram.edf")
    assert "SC4011E0-PSG.edf has 2 hypnograms beside it" in refused("sleep", tmp_path, folds=3)
    (folder / "SC4011EH-Hypnogram.edf").unlink()
    write_edf(path, (), (), [(0.0, 30.0, "Sleep stage X")])
    assert "has the stage 'Sleep stage X', which is none of" in refused("sleep", tmp_path, folds=3)
    write_edf(path, (), (), [(0.0, 300.0, "Sleep stage W")])
    assert f"{path} has no sleep within the signal" in refused("sleep", tmp_path, folds=3)


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ([(0.0, 30.0, "W"), (30.0, 60.0, "2"), (60.0, 60.0, "R")], "'Sleep stage R' begins at 60 s, before 90 s"),
        ([(0.0, 60.0, "?"), (30.0, 60.0, "2")], "'Sleep stage 2' begins at 30 s, before 60 s"),
        ([(30.0, 60.0, "2"), (0.0, 60.0, "W")], "'Sleep stage 2' begins at 30 s, before 60 s"),
        ([(0.0, 60.0, "2"), (0.0, 60.0, "2")], "'Sleep stage 2' begins at 0 s, before 60 s"),
        ([(0.0, 45.0, "W"), (45.0, 75.0, "2")], "'Sleep stage W' at 0 s lasts 45 s, no multiple of 30 s"),
        ([(0.0, 60.0, "W"), (60.0, 0.0, "2")], "'Sleep stage 2' at 60 s lasts 0 s, no multiple of 30 s"),
    ],
    ids=["overlapping", "over the unknown", "unsorted", "twice", "halves", "of no length"],
)  # fmt: skip
def test_stages_that_overlap_or_end_within_a_window(notes, said, tmp_path):
    write_sleep(tmp_path, people=3)
    path = tmp_path / "sleep-cassette" / "SC4011EC-Hypnogram.edf"
    write_edf(path, (), (), [(onset, length, f"Sleep stage {text}") for onset, length, text in notes])
    assert f"{path}: {said}" in refused("sleep", tmp_path, folds=3)


def test_hypnograms_as_the_published_ones_are_read(tmp_path):
    """The last, unknown stage runs far past the signal and ends nowhere in particular; order does not matter."""
    write_sleep(tmp_path, people=3)
    path = tmp_path / "sleep-cassette" / "SC4001EC-Hypnogram.edf"
    stages = [
        (0.0, 90.0, "W"),
        (90.0, 60.0, "1"),
        (150.0, 30.0, "4"),
        (210.0, 120.0, "R"),
        (330.0, 6905.0, "?"),
    ]
    write_edf(path, (), (), [(onset, length, f"Sleep stage {text}") for onset, length, text in stages[::-1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        windows = ready("sleep", tmp_path, folds=3).samples["test"].source.source
    night = [i for i, trial in enumerate(windows.trials) if trial.startswith("00 night 1")]
    assert windows.targets[night].tolist() == [0, 0, 0, 1, 1, 3, 4, 4, 4, 4]


def test_a_hypnogram_of_another_night_or_patient(tmp_path):
    folder = tmp_path / "sleep-cassette"
    for person in range(3):
        for night in (1, 2):
            write_night(folder, person, night, start=START + timedelta(days=30 * person + night))
    ready("sleep", tmp_path, folds=3)
    path = folder / "SC4011EC-Hypnogram.edf"
    for other, began in (("SC4001EC", "1989-04-25"), ("SC4012EC", "1989-05-26")):
        shutil.copy(folder / f"{other}-Hypnogram.edf", path)
        said = f"{folder / 'SC4011E0-PSG.edf'} begins at 1989-05-25 16:13:00, {path} at {began} 16:13:00"
        assert said in refused("sleep", tmp_path, folds=3)
    start = START + timedelta(days=31)
    notes = [(0.0, 120.0, "Sleep stage 1"), (120.0, 120.0, "Sleep stage R")]
    write_edf(path, (), (), notes, start + timedelta(seconds=1))
    assert "16:13:01; they are not of one night" in refused("sleep", tmp_path, folds=3)
    write_edf(path, (), (), notes, start, patient="Female_33yr")
    ready("sleep", tmp_path, folds=3)  # the signal's header is anonymous
    psg = folder / "SC4011E0-PSG.edf"
    samples = [np.random.default_rng(9).normal(0, 30, 540 * hz) for _, _, hz in SLEEP]
    write_edf(psg, SLEEP, samples, start=start, patient="Male_40yr")
    with pytest.warns(
        UserWarning, match=r"SC4011E0-PSG.edf is of patient 'X X X Male_40yr', .*'X X X Female_33yr'$"
    ):
        ready("sleep", tmp_path, folds=3)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("SC4001E0-PSG.edf", "SC4xx1E0-PSG.edf"),
        ("SC4001E0-PSG.edf", "ST7001E0-PSG.edf"),
        ("SC4001E0-PSG.edf", "SC4001EC-PSG.edf"),
        ("SC4001E0-PSG.edf", "sc4001e0.edf"),
        ("SC4001EC-Hypnogram.edf", "SC4001-Hypnogram.edf"),
        ("SC4001EC-Hypnogram.edf", "x.edf"),
    ],
)
@pytest.mark.parametrize("people", [20, 78])
def test_names_of_sleep(name, other, people, tmp_path):
    write_sleep(tmp_path, people=3)
    folder = tmp_path / "sleep-cassette"
    (folder / name).rename(folder / other)
    message = refused("sleep", tmp_path, folds=3, people=people)
    assert f"{folder / other} is not named SC4<person><night>E0-PSG.edf or SC4<person>" in message


@pytest.mark.parametrize("other", ["S01.dat", "s01 (1).dat", "s1a.dat", "p01.dat"])
def test_names_of_deap(other, tmp_path):
    write_deap(tmp_path, people=4, trials=4)
    folder = tmp_path / "data_preprocessed_python"
    (folder / "s01.dat").rename(folder / other)
    assert f"{folder / other} is not named s<person>.dat" in refused("deap", tmp_path, folds=3)


@pytest.mark.parametrize("other", ["s001R04.edf", "S001R4.edf", "S001R04 (1).edf", "S1R04.edf"])
def test_names_of_mmidb(other, tmp_path):
    write_mmidb(tmp_path, runs=FISTS)
    path = tmp_path / "S001" / other
    path.with_name("S001R04.edf").rename(path)
    assert f"{path} is not named S<person>R<run>.edf" in refused("mmidb", tmp_path, classes=2)


def test_windows_without_a_signal(tmp_path):
    """An electrode that fell off: in some windows it is told, in most of them refused."""
    write_sleep(tmp_path, people=3)
    path = tmp_path / "sleep-cassette" / "SC4011E0-PSG.edf"
    samples = [np.random.default_rng(9).normal(0, 30, 540 * hz) for _, _, hz in SLEEP]
    samples[1][12000:] = samples[1][0]  # Pz-Oz is not used
    samples[0][42000:] = samples[0][0]
    write_edf(path, SLEEP, samples)
    with pytest.warns(
        UserWarning, match=f"{path} is flat in channel 0 in 4 of 16 windows, first in night 1 window 12"
    ):
        ready("sleep", tmp_path, folds=3)
    samples[0][12000:] = samples[0][0]
    write_edf(path, SLEEP, samples)
    message = refused("sleep", tmp_path, folds=3)
    assert f"{path} is flat in channel 0 in 12 of 16 windows, first in night 1 window 4" in message


def test_parts_within_a_person_are_what_the_protocol_says(roots):
    data = ready("sleep", roots / "sleep", protocol="within", person="01")
    said = "fold 0 of 4 by single windows, neighbours in different parts, of 01, 5 classes"
    assert data.about == f"SleepEDF: {said}"
    data = ready("deap", roots / "deap", protocol="within", person="s01", folds=3)
    assert data.about == "DEAP: fold 0 of 3 by trials of s01, 2 classes"


def test_settings(roots):
    for kind, settings, said in (
        (DEAP, {"seconds": 7}, "must divide 60, got 7"),
        (EEGMMIDB, {"classes": 5}, "must be 2, 3 or 4, got 5"),
        (SleepEDF, {"protocol": "within"}, "with data.protocol within, and only with it"),
        (SleepEDF, {"person": "01"}, "with data.protocol within, and only with it"),
    ):
        with pytest.raises(RecipeError, match=said):
            kind(**settings)
    message = refused("deap", roots / "deap", protocol="within", person="s09", folds=2)
    assert "data.person s09 is none of s01 to s04" in message
