"""Data with boxes: Gen1 and 1 Mpx in their own files, small sets that are made, and what is wrong with them."""
# ruff: noqa: E402

import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for name in ("lightning", "torchvision", "pycocotools", "sklearn"):
    pytest.importorskip(name)

from recipes import RecipeError
from recipes.data.detection import require_inside
from recipes.data.frames import EventArrays
from recipes.data.prophesee import Prophesee, Windows, open_events, read_boxes
from recipes.data.shapes import MovingShapes, PastedDigits
from recipes.data.trees import AerialTrees
from recipes.detection.boxes import Detections
from recipes.detection.module import Detection

from fixtures.boxes import GEN1, TOOLBOX, header, ready, start, write_dat

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([5, 5, 4, 20], "is no rectangle: 5, 5 to 4, 20"),
        ([5, 5, np.nan, 20], "is no rectangle: 5, 5 to nan, 20"),
        ([-np.inf, 5, 6, 20], "is no rectangle: -inf, 5"),
        ([64, 5, 70, 20], "outside of its 64 x 48 pixels: 64, 5"),
    ],
)
def test_boxes_that_are_none_are_refused(box, said):
    good = [0, 0, 64, 48, 0]
    require_inside(np.array([good], float), (48, 64), "it")
    with pytest.raises(RecipeError, match=f"^it has a box (that )?{said}"):
        require_inside(np.array([good, [*box, 0]], float), (48, 64), "it")


# -- Prophesee


@pytest.mark.parametrize(
    ("name", "sensor", "shape", "classes"), [("Gen1", "gen1", (240, 304), 2), ("1Mpx", "1mpx", (360, 640), 3)]
)
@pytest.mark.parametrize("steps", [None, 3])
def test_recordings_become_frames_before_their_labels(
    fixtures, tmp_path, name, sensor, shape, classes, steps
):
    data = start(Prophesee, fixtures(name), sensor=sensor, steps=steps, cache=str(tmp_path), window=200)
    assert data.classes == classes
    # labels at 200 ms steps, of which those after 0.5 s count
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 8, "val": 8, "test": 8}
    sample = data.samples["test"][0]
    assert sample.x.shape == ((3, *shape) if steps is None else (steps, 2, *shape))
    assert sample.x.min() >= 0
    assert sample.x.max() <= 255
    # the last events lie on the edges of the box
    box = sample.truth[0, :4]
    fired = sample.x[:2] if steps is None else sample.x[-1]
    y, x = fired.amax(0).nonzero().T
    assert y.min() >= box[1] - 1
    assert y.max() <= box[3] + 1
    assert abs(float(x.max()) - float(box[2])) < 0.1 * shape[1]
    if steps:
        batch = data.arrange(data.collate([data.samples["test"][i] for i in range(2)]))
        assert batch.x.shape == (steps, 2, 2, *shape)


def test_frames_are_made_once_and_anew_for_other_settings(fixtures, tmp_path):
    settings = {"root": str(fixtures("Gen1")), "cache": str(tmp_path)}
    ready(Prophesee(**settings))
    made = sorted(p.name for p in tmp_path.iterdir())
    assert len(made) == 3
    ready(Prophesee(**settings))
    assert sorted(p.name for p in tmp_path.iterdir()) == made
    ready(Prophesee(**settings, window=20))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("dtype", [GEN1, TOOLBOX], ids=["gen1", "toolbox"])
def test_boxes_of_both_types_are_the_same(tmp_path, dtype):
    rows = np.zeros(2, dtype)
    rows[dtype.names[0]] = (5, 2**33)
    rows["x"], rows["w"], rows["class_id"] = (-3.5, 7), 20, (0, 1)
    np.save(tmp_path / "a_bbox.npy", rows)
    boxes = read_boxes(tmp_path / "a_bbox.npy")
    assert boxes["t"].tolist() == [5, 2**33]
    assert boxes["x"].tolist() == [-3.5, 7]
    assert boxes["class_id"].tolist() == [0, 1]
    assert boxes["class_confidence"].tolist() == [0, 0]


def test_events_are_those_that_were_written(tmp_path):
    draw = np.random.default_rng(1)
    t, x, y = np.sort(draw.integers(0, 2**32, 100)), draw.integers(0, 304, 100), draw.integers(0, 240, 100)
    p = draw.integers(0, 2, 100)
    write_dat(tmp_path / "a_td.dat", t, x, y, p)
    events = open_events(tmp_path / "a_td.dat")
    assert np.array_equal(events["t"], t)
    assert np.array_equal(events["word"], x | y << 14 | p << 28)


def test_another_reader_reads_the_same_events(tmp_path):
    expelliarmus = pytest.importorskip("expelliarmus")
    write_dat(tmp_path / "a_td.dat", [1, 5, 9], [3, 2, 303], [4, 239, 0], [1, 0, 1])
    theirs = expelliarmus.Wizard(encoding="dat").read(str(tmp_path / "a_td.dat"))
    ours = open_events(tmp_path / "a_td.dat")
    assert theirs["t"].tolist() == ours["t"].tolist()
    assert theirs["x"].tolist() == (ours["word"] & 0x3FFF).tolist()
    assert theirs["y"].tolist() == (ours["word"] >> 14 & 0x3FFF).tolist()
    assert theirs["p"].tolist() == (ours["word"] >> 28 & 1).tolist()


def test_windows_count_and_date_events():
    events = EventArrays(
        np.array([0, 10, 99]), (np.array([0, 1, 1]), np.array([0, 2, 2]), np.array([0, 4, 4]))
    )
    image = Windows(1, 100, 2, 3, 2, ages=True)(events)
    assert image.shape == (1, 3, 2, 3)
    assert image[0, 0].tolist() == [[25, 0, 0], [0, 0, 0]]
    assert image[0, 1].tolist() == [[0, 0, 0], [0, 0, 51]]
    assert image[0, 2].tolist() == [[3, 0, 0], [0, 0, 255]]
    frames = Windows(2, 100, 2, 3, 2, ages=False)(events)
    assert frames.shape == (2, 2, 2, 3)
    assert frames.sum((1, 2, 3)).tolist() == [50, 25]
    with pytest.raises(ValueError, match=r"an event at x = 6, the sensor has 0\.\.5"):
        Windows(1, 100, 2, 3, 2, ages=False)(
            EventArrays(*(np.array([0]), (np.array([0]), np.array([0]), np.array([6]))))
        )


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def foreign(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))


def backwards(path):
    write_dat(path, [*range(1_000_000, 0, -100)], [5] * 10_000, [5] * 10_000, [1] * 10_000)


def outside(path):
    write_dat(path, [*range(0, 1_000_000, 100)], [304] * 10_000, [5] * 10_000, [1] * 10_000)


def another_class(path):
    rows = np.load(path)
    rows["class_id"][0] = 2
    np.save(path, rows)


@pytest.mark.parametrize(
    ("ending", "damage", "said"),
    [
        ("_td.dat", cut, "is cut in mid-event: 5 bytes follow its 3999 whole events"),
        ("_td.dat", foreign, "no mark of 8-byte events"),
        ("_td.dat", backwards, "its times run backwards"),
        ("_td.dat", outside, r"an event at x = 304, the sensor has 0\.\.303"),
        ("_td.dat", lambda path: path.unlink(), "has no events beside it"),
        ("_bbox.npy", cut, "is cut or of another type"),
        ("_bbox.npy", lambda path: np.save(path, np.zeros((3, 5))), "no boxes with the fields t, x, y"),
        ("_bbox.npy", another_class, "has a box of class 2, this camera has classes 0 to 1"),
        ("_bbox.npy", lambda path: path.unlink(), "_bbox.npy is missing"),
    ],
    ids=[
        "cut",
        "foreign",
        "backwards",
        "outside",
        "no events",
        "cut boxes",
        "no fields",
        "class",
        "no boxes",
    ],
)
def test_damaged_recordings_end_in_one_line_that_names_the_file(copy, ending, damage, said):
    root = copy("Gen1")
    path = sorted((root / "train").glob(f"*{ending}"))[1]
    damage(path)
    with pytest.raises(RecipeError, match=said) as caught:
        start(Prophesee, root)
    assert path.name.split("_td")[0].split("_bbox")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "other", "said"),
    [
        ("train", "val", "training are in the validation"),
        ("train", "test", "training and validation are in the test"),
        ("val", "test", "training and validation are in the test"),
    ],
)
def test_a_recording_in_two_parts_is_refused(part, other, said, copy):
    root = copy("Gen1")
    for path in sorted((root / part).iterdir())[:2]:
        shutil.copy(path, root / other / f"z{path.name}")
    with pytest.raises(RecipeError, match=rf"1 of the files of {said} too, .*/z.*_td.dat; take them out"):
        start(Prophesee, root)


def test_boxes_outside_of_the_sensor_are_left_out_with_a_warning(copy):
    root = copy("Gen1")
    path = sorted((root / "train").glob("*_bbox.npy"))[0]
    rows = np.load(path)
    rows["x"][-1] = 400
    rows["x"][-2] = -20
    np.save(path, rows)
    with pytest.warns(UserWarning, match="1 boxes of .*train lie outside of the sensor"):
        data = start(Prophesee, root)
    assert len(data.samples["train"]) == 7
    lows = [data.samples["train"].boxes(i)[:, 0].min() for i in range(7)]
    assert min(lows) == 0  # cut to the sensor


def label(root, *boxes, split=None):
    """Give the first recording of a part these boxes, x, y, w, h and perhaps time and class, the others none."""
    for name in (split,) if split else ("train", "val", "test"):
        first, *others = sorted((root / name).glob("*_bbox.npy"))
        rows = np.zeros(len(boxes), np.load(first).dtype)
        names = rows.dtype.names
        for row, (x, y, w, h, *more) in zip(rows, boxes, strict=True):
            row["x"], row["y"], row["w"], row["h"] = x, y, w, h
            row[names[0]], row["class_id"] = [*more, *(1_000_000, 0)[len(more) :]]
        np.save(first, rows)
        for path in others:
            np.save(path, rows[:0])


@pytest.mark.parametrize(("name", "sensor", "times"), [("Gen1", "gen1", 1), ("1Mpx", "1mpx", 2)])
def test_boxes_are_cut_before_the_small_ones_are_left_out(copy, name, sensor, times):
    """A label of which 3 columns are on the sensor counts nowhere, nor does a detection; a large rest counts."""
    root = copy(name)
    edges = {"gen1": (303, 239), "1mpx": (1279, 719)}[sensor]
    right, bottom = edges[0] + 25 * times, edges[1] + 25 * times
    boxes = [
        (-52 * times, 100, 55 * times, 60 * times),
        (100, edges[1] - 3 * times, 60 * times, 60 * times),
        (right - 60 * times, bottom - 60 * times, 60 * times, 60 * times),
        (100, 100, 50 * times, 50 * times),
    ]
    label(root, *boxes)
    data = start(Prophesee, root, sensor=sensor)
    edge = [at / times for at in edges]
    expected = [
        [edge[0] - 35, edge[1] - 35, *edge, 0],
        [100 / times, 100 / times, 100 / times + 50, 100 / times + 50, 0],
    ]
    corners = torch.tensor([[x / times, y / times, (x + w) / times, (y + h) / times] for x, y, w, h in boxes])
    found = Detections(corners, torch.ones(4), torch.ones(4), torch.zeros(4, dtype=torch.long))
    module = SimpleNamespace(trainer=SimpleNamespace(datamodule=data))
    for split in ("train", "val", "test"):
        truth = data.samples[split].source.boxes(0)
        assert truth.tolist() == expected
        counted = Detection.counted(module, found)
        assert counted["boxes"].tolist() == truth[:, :4].tolist()
        assert len(counted["scores"]) == len(counted["labels"]) == 2


def test_huge_boxes_are_left_out_of_training_by_what_is_on_the_sensor(copy):
    root = copy("Gen1")
    label(root, (-20, 10, 290, 60), (0, 80, 280, 60))
    data = start(Prophesee, root)
    assert data.samples["train"].source.boxes(0).tolist() == [[0, 10, 270, 70, 0]]
    assert data.samples["test"].source.boxes(0).tolist() == [[0, 10, 270, 70, 0], [0, 80, 280, 140, 0]]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([], "no box counts of the 0 in .*: none is there"),
        (
            [(10, 10, 50, 50, 400_000, 0)],
            r"the 1 in .*: 1 not later than 0\.5 s \(times are in microseconds\)",
        ),
        ([(10, 10, 50, 50, 1000 + i, 0) for i in range(3)], "the 3 in .*: 3 not later than 0"),
        (
            [(10, 10, 9, 50), (10, 10, 50, 50, 9, 1), (-90, 10, 50, 50)],
            "the 3 in .*: 1 not later .*, 1 outside of the sensor .*, 1 with a diagonal below 30 or a side below 10",
        ),
        ([(0, 0, 300, 50)], "the 1 in .*train.*: 1 wider than nine tenths of the sensor"),
    ],
    ids=["none", "early", "milliseconds", "mixed", "wide"],
)
def test_a_part_in_which_no_box_counts_says_why(copy, tmp_path, boxes, said):
    root = copy("Gen1")
    label(root, *boxes, split="train")
    for _ in range(2):
        with pytest.raises(RecipeError, match=said) as caught:
            start(Prophesee, root)
        assert "0_1_bbox.npy and 1 more files" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list((root / "frames").glob("*"))


def test_an_empty_recording_is_zeros(tmp_path):
    (tmp_path / "a_td.dat").write_bytes(header(240, 304))
    assert len(open_events(tmp_path / "a_td.dat")) == 0


def test_labels_of_training_may_be_thinned(fixtures, tmp_path):
    data = start(Prophesee, fixtures("Gen1"), cache=str(tmp_path), interval=400)
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 4, "val": 4, "test": 8}


# -- made


def test_digits_are_pasted_where_their_boxes_say():
    data = ready(PastedDigits(scenes=20))
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 20, "val": 2, "test": 2}
    again = ready(PastedDigits(scenes=20))
    for position in range(20):
        scene = data.samples["train"].scene(position)
        assert np.array_equal(scene.image, again.samples["train"].scene(position).image)
        for x1, y1, x2, y2, _ in scene.boxes.astype(int).tolist():
            assert scene.image[y1:y2, x1:x2].max() > 150


def test_shapes_move_with_their_boxes(tmp_path):
    data = start(MovingShapes, tmp_path, recordings=5, steps=4, window=40, download=True)
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 45, "val": 9, "test": 9}
    inside, everywhere = 0.0, 0.0
    for position in range(45):
        scene = data.samples["train"].scene(position)
        pixels = scene.image[..., -2:].sum(2).astype(float)  # of the last 10 ms
        everywhere += pixels.sum()
        covered = np.zeros_like(pixels)
        for x1, y1, x2, y2, _ in scene.boxes:
            covered[int(y1) - 2 : int(y2) + 3, int(x1) - 2 : int(x2) + 3] = 1
        inside += (pixels * covered).sum()
    assert inside > 0.8 * everywhere


def test_photographs_are_cut_into_tiles(fixtures):
    data = start(AerialTrees, fixtures("trees"))
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 4, "val": 4, "test": 1}
    source = data.samples["train"].source
    assert source.boxes(0).tolist() == [[5, 5, 35, 25, 0], [100, 60, 128, 80, 0]]
    assert source.boxes(1)[0].tolist() == [88, 98, 118, 118, 0]  # the second tile begins at 22
    path = fixtures("trees") / "OSBS_029.xml"
    kept = path.read_text()
    try:
        path.write_text(kept.replace("<xmin>5<", "<xmin>500<").replace("<xmax>35<", "<xmax>530<"))
        with pytest.raises(RecipeError, match=r"OSBS_029\.xml has a box outside of its 128 x 128 pixels"):
            start(AerialTrees, fixtures("trees"))
        path.write_text(kept[:-20])
        with pytest.raises(RecipeError, match=r"OSBS_029\.xml is cut or of another type"):
            start(AerialTrees, fixtures("trees"))
    finally:
        path.write_text(kept)


def test_another_number_of_recordings_than_the_folder_has_is_refused(tmp_path):
    start(MovingShapes, tmp_path, recordings=2, download=True)
    for given, part in ((8, "8 train recordings, .*train has 2"), (1, "1 train recordings, .*train has 2")):
        with pytest.raises(
            RecipeError, match=f"data.recordings {given} makes {part}; give the number"
        ) as caught:
            start(MovingShapes, tmp_path, recordings=given, download=True)
        assert "\n" not in str(caught.value)
    taken = start(MovingShapes, tmp_path, recordings=8, verify=False)
    assert len(taken.samples["train"]) == 18
    (tmp_path / "val" / "shapes000_td.dat").unlink()
    (tmp_path / "val" / "shapes000_bbox.npy").unlink()
    with pytest.raises(RecipeError, match=r"val has no \*_td\.dat files; .*--data\.download true makes them"):
        start(MovingShapes, tmp_path, recordings=2)


def test_made_sets_do_not_ask_for_a_publisher(tmp_path):
    with pytest.raises(RecipeError, match="--data.download true makes them") as caught:
        start(MovingShapes, tmp_path / "nowhere")
    assert "publisher" not in str(caught.value)
    for kind, name in ((PastedDigits, "scenes"), (MovingShapes, "recordings")):
        for count in (0, -1):
            with pytest.raises(RecipeError, match=f"data.{name} must be 1 or more, got {count}"):
                kind(**{name: count})


def test_each_tree_is_judged_once(copy):
    """300 = 128 + 128 + 44: at 260 lies the centre of a tree that a last tile from 172 to 300 would show again."""
    from PIL import Image

    root = copy("trees")
    boxes = [(240, 10, 280, 50), (120, 140, 150, 160), (290, 290, 320, 310)]
    for name in ("SOAP_061", "OSBS_029"):
        Image.new("RGB", (300, 300), (0, 200, 0)).save(root / f"{name}.png")
        places = [zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True) for box in boxes]
        rows = ("".join(f"<{side}>{at}</{side}>" for side, at in place) for place in places)
        text = "".join(f"<object><bndbox>{row}</bndbox></object>" for row in rows)
        (root / f"{name}.xml").write_text(f"<annotation>{text}</annotation>")
    data = start(AerialTrees, root)
    for split in ("val", "test"):
        source = data.samples[split].source
        found = {source.name(i).split(" at ")[1]: source.boxes(i)[:, :4].tolist() for i in range(len(source))}
        assert len(found) == 9
        assert {at: own for at, own in found.items() if own} == {
            "256, 0": [[0, 10, 24, 50]],  # cut to the tile that holds its centre
            "128, 128": [[0, 12, 22, 32]],
            "256, 256": [[34, 34, 44, 44]],  # and to the photograph
        }
        last = source[8].image
        assert last.shape == (128, 128, 3)
        assert (last[:44, :44] == (0, 200, 0)).all()
        assert (last[44:] == 114).all()
        assert (last[:, 44:] == 114).all()


def test_photographs_without_their_package_say_what_to_install(monkeypatch):
    monkeypatch.setattr("recipes.data.trees.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="pip install --no-deps deepforest"):
        AerialTrees()


@pytest.mark.skipif(
    find_spec("deepforest") is None, reason="its photographs: pip install --no-deps deepforest"
)
def test_the_real_photographs_are_read():
    data = ready(AerialTrees())
    sizes = {split: len(part) for split, part in data.samples.items()}
    assert sizes == {"train": 18 * 20 + 10 * 9, "val": 16, "test": 16}
    found = {split: sum(len(data.samples[split].boxes(i)) for i in range(16)) for split in ("val", "test")}
    assert found == {"val": 37, "test": 61}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mosaic": 1.5}, "data.mosaic is a probability"),
        ({"height": 16}, "must be 32 or more"),
        ({"scale": (0.0, 0.0)}, "data.scale .* 0 < least <= greatest, got 0.0, 0.0"),
        ({"scale": (-1.0, -1.0)}, "data.scale .* got -1.0, -1.0"),
        ({"scale": (2.0, 0.1)}, "data.scale .* got 2.0, 0.1"),
        ({"scale": (0.1, float("nan"))}, "data.scale .* got 0.1, nan"),
        ({"mixup": 0.5}, "images with boxes take data.mixup_boxes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        PastedDigits(**settings)


def test_events_have_no_colours():
    with pytest.raises(RecipeError, match="events have none"):
        Prophesee(colour=1.0)
