"""DVS128 Gesture in NeuroBench's form: noise taken out as tonic does, fewer pixels, more frames."""

import sys
from pathlib import Path

import numpy as np
import pytest

for name in ("lightning", "tonic", "torchvision"):
    pytest.importorskip(name)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import tonic  # noqa: E402
from recipes import RecipeError  # noqa: E402
from recipes.data.events import DVSGesture, denoise  # noqa: E402
from recipes.data.frames import EventArrays  # noqa: E402

from fixtures.damage import prepared  # noqa: E402
from fixtures.events import write_dvsgesture  # noqa: E402


def drawn(count, width, seed=0):
    draw = np.random.default_rng(seed)
    t = np.sort(draw.integers(10_000, 200_000, count))  # before, tonic keeps all events that have a neighbour
    return EventArrays(t, (draw.integers(0, 2, count), *draw.integers(0, width, (2, count))))


def as_tonic(events):
    found = np.zeros(len(events.t), dtype=[("x", int), ("y", int), ("t", int), ("p", int)])
    for name, values in zip("tpyx", (events.t, *events.places), strict=True):
        found[name] = values
    return found


@pytest.mark.parametrize(("count", "width"), [(3000, 12), (3000, 128), (400, 1), (1, 5), (0, 5)])
def test_noise_is_what_tonic_takes_for_it(count, width):
    events = drawn(count, width)
    ours = denoise(events, 3000)
    theirs = tonic.functional.denoise_numpy(as_tonic(events), 3000) if count else as_tonic(events)
    assert np.array_equal(as_tonic(ours), theirs)
    shuffled = np.random.default_rng(1).permutation(count)
    again = denoise(EventArrays(events.t[shuffled], tuple(place[shuffled] for place in events.places)), 3000)
    assert np.array_equal(again.t, ours.t)


def test_frames_have_fewer_pixels_and_no_other_event_less(tmp_path):
    write_dvsgesture(tmp_path)
    data = {
        name: prepared(DVSGesture(root=str(tmp_path), verify=False, steps=5, augment=False, **settings))
        for name, settings in {
            "fine": {"split_by": "time"},
            "coarse": {"split_by": "time", "shrink": 4},
            "clean": {"split_by": "time", "shrink": 4, "noise": 1000.0},
        }.items()
    }
    fine, coarse, clean = (each.samples["test"][3][0] for each in data.values())
    assert coarse.shape == (5, 2, 32, 32)
    assert np.array_equal(coarse, fine.reshape(5, 2, 32, 4, 32, 4).sum((3, 5)))
    assert 0 < clean.sum() < coarse.sum() == 400
    assert (clean.sum(0) <= coarse.sum(0)).all()
    folders = {each.samples["test"].source.folder for each in data.values()}
    assert len(folders) == 3, "other frames, another folder"


@pytest.mark.parametrize("settings", [{"shrink": 0}, {"shrink": 3}, {"noise": -1.0}])
def test_wrong_settings(settings):
    with pytest.raises(RecipeError, match=r"data\.shrink must divide 128 and data\.noise be 0 or more"):
        DVSGesture(**settings)
