"""How events are counted into frames, and which recordings are refused."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

for name in ("lightning", "tonic", "h5py"):
    pytest.importorskip(name)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from recipes import RecipeError  # noqa: E402
from recipes.data.events import CIFAR10DVS, DVSGesture, SpikingHeidelberg  # noqa: E402
from recipes.data.frames import Binning, EventArrays, Frames, Separate  # noqa: E402

from fixtures.damage import prepared, refused  # noqa: E402
from fixtures.events import write_aedat4, write_cifar10dvs, write_dvsgesture, write_shd  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def events(t, *places):
    return EventArrays(np.asarray(t, np.int64), tuple(np.asarray(place, np.int64) for place in places))


@pytest.mark.parametrize("by", ["count", "time"])
@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 1000])
def test_no_event_is_lost(by, count):
    """Fewer events than steps, as many, and one more."""
    draw = np.random.default_rng(count)
    t = np.sort(draw.integers(0, 5000, count))
    x, y, on = draw.integers(0, 128, count), draw.integers(0, 128, count), draw.integers(0, 2, count)
    frames = Binning(16, (2, 128, 128), by)(events(t, on, y, x))
    assert frames.shape == (16, 2, 128, 128)
    assert frames.sum() == count
    expected = np.zeros((2, 128, 128), int)
    np.add.at(expected, (on, y, x), 1)
    assert (frames.sum(0) == expected).all(), "every event at its polarity, row and column"
    each = frames.sum((1, 2, 3))
    if by == "count":
        assert each.max() - each.min() <= 1
        assert (np.diff(np.flatnonzero(each)) >= 1).all()
    else:
        span = t[-1] - t[0] + 1
        edges = [
            t[0] + -(-k * span // 16) for k in range(17)
        ]  # frame k holds the times in [edge k, edge k + 1)
        assert each.tolist() == np.histogram(t, np.array(edges) - 0.5)[0].tolist()


def test_frames_by_count_follow_time_also_where_the_file_does_not():
    frames = Binning(2, (4,), "count")(events([30, 10, 40, 20], [3, 1, 0, 2]))
    assert frames.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


def test_a_part_without_recordings_is_refused_before_a_folder_is_made(tmp_path):
    empty = Separate("Waves", [], [], lambda path: events([]))
    for _ in range(2):
        with pytest.raises(RecipeError, match="there are no train recordings of Waves"):
            Frames(empty, "train", Binning(1, (2,)), [tmp_path])
        assert not list(tmp_path.iterdir())


def test_counts_are_as_large_as_they_are():
    assert Binning(1, (2,), "count")(events(np.arange(70_000), np.zeros(70_000)))[0, 0] == 70_000


@pytest.mark.parametrize("steps", [7, 250, 333])
def test_a_window_has_equal_bins_and_leaves_later_events_out(steps):
    t = np.sort(np.random.default_rng(0).integers(0, 1_500_000, 5000))
    frames = Binning(steps, (1,), "window", 1_400_000)(events(t, np.zeros(5000)))
    expected = np.zeros(steps, int)
    for each in t.tolist():
        if each < 1_400_000:
            expected[each * steps // 1_400_000] += 1
    assert frames[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (events([0, 1], [0, 128]), r"lie in 0\.\.128 of sensor axis 0, which has 0\.\.127"),
        (events([0, 1], [-1, 5]), r"lie in -1\.\.5 of sensor axis 0"),
        (events([0, 1], [5]), "2 times but 1 places"),
        (events([-3, 1], [5, 5]), "an event at -3 microseconds"),
    ],
)
def test_events_outside_of_the_sensor_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Binning(4, (128,), "count")(given)


def rows(root, values, name="3.npy"):
    path = next(root.rglob(f"ibmGestureTrain/user01_led/{name}"))
    np.save(path, values)
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((0, 4)), "has no events; take it out of the folder"),
        (np.array([[3, 200, 1, 0.0]]), "its events lie in 200..200 of sensor axis 1, which has 0..127"),
        (np.array([[3, 2, 2, 0.0]]), "its events lie in 2..2 of sensor axis 0, which has 0..1"),
        (np.array([[3, np.nan, 1, 0.0]]), "no (whole) number"),
        (np.array([[3, 0.5, 1, 0.0]]), "no (whole) number"),
        (np.zeros((5, 3)), "rows x, y, polarity, time are needed"),
        (np.array([["a"] * 4]), "rows x, y, polarity, time are needed"),
        (np.array([{}, {}]), "allow_pickle"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_recordings_that_hold_something_else_are_named(values, said, workers, tmp_path):
    write_dvsgesture(tmp_path)
    path = rows(tmp_path, values)
    message = refused(DVSGesture, tmp_path, steps=2, num_workers=workers)
    assert str(path) in message
    assert said in message


def test_a_recording_of_fewer_events_than_steps_keeps_them(tmp_path):
    write_dvsgesture(tmp_path)
    rows(tmp_path, np.array([[1, 2, 1, 0], [3, 4, 0, 5], [5, 6, 1, 9.0]]))
    source = prepared(DVSGesture(root=str(tmp_path), verify=False, steps=16)).samples["train"].source
    frames, label = source[[path.name for path in source.source.files].index("3.npy")]
    assert label == 3
    assert sorted(tuple(place[1:]) for place in np.argwhere(frames)) == [(0, 4, 3), (1, 2, 1), (1, 6, 5)]


def test_spike_files_are_checked(tmp_path):
    import h5py

    write_shd(tmp_path)
    path = tmp_path / "SHD" / "shd_test.h5"
    for index, times, said in ((2, [0.1, np.nan], "no number"), (3, [-0.5], "before its start")):
        with h5py.File(path, "a") as file:
            kept = file["spikes/times"][index], file["spikes/units"][index]
            file["spikes/times"][index] = np.array(times, np.float16)
            file["spikes/units"][index] = np.zeros(len(times), np.uint16)
        message = refused(SpikingHeidelberg, tmp_path, steps=5)
        assert str(path) in message
        assert said in message
        with h5py.File(path, "a") as file:
            file["spikes/times"][index], file["spikes/units"][index] = kept
    with h5py.File(path, "a") as file:
        file["spikes/times"][4] = file["spikes/units"][4] = np.array([], np.uint16)
    with pytest.warns(
        UserWarning, match=r"1 recordings of SHD are empty in their steps .* recording 4 of .*shd_test\.h5"
    ):
        data = prepared(SpikingHeidelberg(root=str(tmp_path), verify=False, steps=5))
    assert not data.samples["test"][4][0].any()
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.arange(19)
    assert "as many integers are needed" in refused(SpikingHeidelberg, tmp_path, steps=5)


def test_a_camera_file_cut_between_packets_is_no_shorter_recording(tmp_path):
    write_cifar10dvs(tmp_path, classes=["ship"])
    path = next(tmp_path.rglob("*.aedat4"))
    t = np.arange(60_000)
    write_aedat4(path, t, t % 128, t % 99, t % 2 == 0)
    content = path.read_bytes()
    (size,) = struct.unpack_from("<I", content, 14)
    ends = [14 + 4 + size]  # then packets, each a stream's number, a size and so many bytes
    while sum(struct.unpack_from("<II", content, ends[-1])) < len(content) - ends[-1]:
        ends.append(ends[-1] + 8 + struct.unpack_from("<I", content, ends[-1] + 4)[0])
    assert len(ends) > 3
    for end in ends[:-1]:
        path.write_bytes(content[:end])
        assert f"{path} is cut" in refused(CIFAR10DVS, tmp_path, steps=2)
