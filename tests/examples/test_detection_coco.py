"""COCO's annotations and images: what is read, and what ends in one line before training."""
# ruff: noqa: E402

import json
import re
import shutil
import warnings

import numpy as np
import pytest
import torch

for name in ("lightning", "torchvision", "pycocotools"):
    pytest.importorskip(name)

import detect
from recipes import RecipeError
from recipes.data.coco import COCO

from fixtures.boxes import start
from fixtures.runs import FAST, ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"classes": 3, "height": 64, "width": 64, "verify": False}


def test_coco_is_read_with_boxes_cut_to_the_image_and_crowds_apart(fixtures):
    data = start(COCO, fixtures("COCO"), **SMALL, val_fraction=0.2)
    assert {split: len(part) for split, part in data.samples.items()} == {"train": 7, "val": 3, "test": 4}
    assert data.names == ("thing 3", "thing 7", "thing 90")
    source = data.samples["test"].source
    scene = source[0]
    assert scene.image.shape == (48, 64, 3)
    assert scene.image.dtype == np.uint8
    assert scene.boxes.tolist() == [[8, 10, 40, 30, 0], [40, 30, 64, 48, 1]]
    assert source[2].crowd.tolist() == [[0, 0, 20, 9, 0]]
    first = data.samples["test"][0]
    assert first.x.shape == (3, 64, 64)
    assert first.ratio == 1
    assert first.truth[0].tolist() == [8, 10, 40, 30, 0, 0]
    batch = data.collate([data.samples["test"][i] for i in range(4)])
    assert batch.truth.shape == (4, 2, 6)
    assert (batch.truth[1, :, 4] == -1).all()  # no boxes


def test_colours_are_blue_green_red(fixtures, copy):
    from PIL import Image

    root = copy("COCO")
    for path in (root / "val2017").glob("*.jpg"):
        with Image.open(path) as image:
            size = image.size
        Image.new("RGB", size, (200, 0, 0)).save(path, quality=95)
    data = start(COCO, root, **SMALL)
    blue, green, red = data.samples["test"][0].x[:, 5, 5].tolist()
    assert red > 190
    assert max(blue, green) < 10
    assert data.picture(data.samples["test"][0].x)[0].max() > 190


@pytest.mark.parametrize("drawing", ["torchvision", "opencv"])
def test_training_items_are_a_function_of_seed_epoch_and_scene(fixtures, drawing):
    pytest.importorskip("cv2") if drawing == "opencv" else None
    settings = {**SMALL, "mosaic": 1.0, "mixup_boxes": 1.0, "colour": 1.0, "drawing": drawing}
    one, two = (start(COCO, fixtures("COCO"), **settings).samples["train"] for _ in range(2))
    first, again, later = one[(0, 1)], two[(0, 1)], one[(1, 1)]
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.x, later.x)
    assert first.labels.shape == (120, 5)
    one.plain_from = 1
    plain = one[(1, 1)]
    assert plain.labels.shape == (50, 5)
    assert torch.equal(one[(0, 1)].x, first.x)


def test_workers_read_the_same_batches(fixtures):
    batches = []
    for workers in (0, 2):
        data = start(COCO, fixtures("COCO"), **SMALL, mosaic=1.0, batch_size=3, num_workers=workers)
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) == 3
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.labels, two.labels)


def test_mixed_scenes_are_of_the_training_part_alone(fixtures):
    data = start(COCO, fixtures("COCO"), **SMALL, mosaic=1.0, mixup_boxes=1.0, val_fraction=0.3)
    train = data.samples["train"]
    read = []
    train.read = lambda index: (read.append(index), train.source[index])[1]
    for position in range(len(train)):
        for epoch in range(3):
            train[(epoch, position)]
    assert set(read) <= set(train.indices.tolist())
    assert not set(read) & set(data.samples["val"].indices.tolist())


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["annotations"][0].update(bbox=[100, 5, 10, 10]),
            "has a box outside of its 64 x 48 pixels: 100",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[-30, 5, 10, 10]),
            "has a box outside of its 64 x 48 pixels: -30",
        ),
        (
            lambda c: c["annotations"][1].update(bbox=[40, 30, 60, 45]),
            "reaches 36 pixels outside of its 64 x 56",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[5, 5, np.nan, 20]),
            r"annotation 1 .* the bbox \[5, 5, nan, 20\]",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[np.inf, 5, 6, 20]),
            r"annotation 1 .* the bbox \[inf, 5, 6, 20\]",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[25, 5, -20, 20]),
            r"the bbox \[25, 5, -20, 20\]; x, y, width and",
        ),
        (lambda c: c["annotations"][0].update(bbox=[5, 5, 20]), r"annotation 1 .* has the bbox \[5, 5, 20\]"),
        (lambda c: c["annotations"][0].update(bbox=None), "annotation 1 .* has the bbox None"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotations\[0\] of .*instances_train2017.json has no 'bbox'",
        ),
        (
            lambda c: c["annotations"][1].update(id=1),
            r"annotations\[1\] of .* has the id 1, as one before it",
        ),
        (
            lambda c: c["annotations"][0].update(image_id=77),
            "annotation 1 of .* has image_id 77, which .* not list",
        ),
        (
            lambda c: c["categories"].pop(),
            "annotation 2 of .*instances_train2017.json has category_id 90, which",
        ),
        (lambda c: c["categories"].append({"id": 91, "name": "more"}), "4 categories, data.classes is 3"),
        (lambda c: c["categories"].append({"id": 3, "name": "more"}), r"categories\[3\] of .* has the id 3"),
        (lambda c: c["categories"][1].pop("name"), r"categories\[1\] of .* has no 'name'"),
        (
            lambda c: c["categories"][1].update(name="other"),
            "category 7 is other in .*train2017.json, thing 7 in .*val2",
        ),
        (lambda c: c.update(annotations=[]), "no train image of COCO .* has a box"),
        (
            lambda c: c["images"][0].update(height=51),
            "0.jpg is 64 pixels wide and 48 high, .* says 64 and 51; correct",
        ),
        (
            lambda c: c["images"][0].update(height="48"),
            "image 10 of .* has height 48 and width 64; give its pixels",
        ),
        (lambda c: c["images"][0].pop("width"), r"images\[0\] of .* has no 'width'"),
        (lambda c: c["images"].append(c["images"][0]), r"images\[10\] of .* has the id 10"),
        (
            lambda c: c["images"].append({**c["images"][0], "id": 99}),
            "images 10 and 99 of .* are one file, 0+.jpg",
        ),
        (lambda c: c.pop("images"), "no train images of COCO in .*instances_train2017.json"),
    ],
    ids=[
        "right of it",
        "left of it",
        "corners",
        "no number",
        "infinite",
        "negative",
        "three",
        "null",
        "no bbox",
        "annotation twice",
        "no such image",
        "category",
        "one more",
        "category twice",
        "no name",
        "other name",
        "no boxes",
        "size",
        "size as text",
        "no width",
        "image twice",
        "file twice",
        "no images",
    ],
)
def test_bad_annotations_end_in_one_line_that_names_the_file(copy, change, said):
    root = copy("COCO")
    edit(root / "annotations" / "instances_train2017.json", change)
    with pytest.raises(RecipeError, match=said) as caught:
        start(COCO, root, **SMALL)
    assert "train2017" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (
            {3: "thing 7", 7: "thing 3", 90: "thing 90"},
            "category 3 is thing 3 in .*train2017.json, thing 7 in .*val2017",
        ),
        (
            {3: "thing 3", 7: "thing 7", 91: "thing 90"},
            "category 90 is thing 90 in .*, missing in .*val2017.json; give",
        ),
    ],
    ids=["swapped", "renumbered"],
)
def test_categories_of_another_number_in_the_test_are_refused(copy, ids, said):
    root = copy("COCO")

    def renumber(content):
        content["categories"] = [{"id": k, "name": name} for k, name in ids.items()]
        for entry in content["annotations"]:
            entry["category_id"] = min(ids, key=lambda k: abs(k - entry["category_id"]))

    edit(root / "annotations" / "instances_val2017.json", renumber)
    with pytest.raises(RecipeError, match=said):
        start(COCO, root, **SMALL)


def test_sizes_are_compared_before_a_run_begins(fixtures, copy, tmp_path, command_line):
    root = copy("COCO")
    edit(root / "annotations" / "instances_val2017.json", lambda c: c["images"][2].update(width=63))
    given = ["fit", f"--config={ROOT / 'examples' / 'configs' / 'detection' / 'coco_mhsanet50.yaml'}", *FAST]
    given += [
        "--model.network.init_args.width=0.0625",
        "--model.network.init_args.classes=3",
        "--data.classes=3",
    ]
    given += [f"--data.root={root}", "--data.verify=false", f"--out={tmp_path / 'out'}"]
    given += ["--trainer.precision=32-true"]
    with pytest.raises(SystemExit) as stop:
        detect.main(given)
    assert re.match(
        r"error: \S*val2017/0+2.jpg is 64 pixels wide and 56 high, \S* says 63 and 56", stop.value.code
    )
    assert not list(tmp_path.glob("out/checkpoints/*"))


def test_long_narrow_images_of_another_file_are_trained_on(copy):
    from PIL import Image

    root = copy("COCO")
    Image.new("RGB", (400, 2), (200, 0, 0)).save(root / "train2017" / "000000000000.jpg")

    def narrow(content):
        content["images"][0].update(height=2, width=400)
        content["annotations"] = [e for e in content["annotations"] if e["image_id"] != 10]
        content["annotations"].append({"id": 99, "image_id": 10, "category_id": 3, "bbox": [0, 0, 400, 2]})

    edit(root / "annotations" / "instances_train2017.json", narrow)
    data = start(COCO, root, **SMALL, mosaic=1.0, mixup_boxes=1.0)
    for position in range(len(data.samples["train"])):
        assert data.samples["train"].plain(position).x.shape == (3, 64, 64)
        assert torch.isfinite(data.samples["train"][(0, position)].labels).all()


@pytest.mark.parametrize("box", [[8, 10, 0, 20], [8, 10, 32, 0.0], [70, 10, 0, 20]])
def test_boxes_without_area_are_left_out_and_counted(copy, box):
    root = copy("COCO")
    path = root / "annotations" / "instances_train2017.json"
    edit(path, lambda c: c["annotations"][3].update(bbox=box))
    with pytest.warns(
        UserWarning, match=r"1 boxes of .*train2017\.json have no width or no height .* annotation 4$"
    ):
        data = start(COCO, root, **SMALL)
    source = data.samples["train"].source
    assert sum(len(source.boxes(i)) for i in range(len(source))) == 9  # of 10, and a crowd


def test_images_that_are_in_training_and_test_are_refused(copy):
    root = copy("COCO")
    with pytest.raises(RecipeError, match="data.train and data.test are both train2017; give"):
        COCO(root=str(root), **SMALL, test="train2017")
    start(COCO, root, **SMALL)
    for file in ("train2017/000000000003.jpg", "train2017/000000000005.jpg"):
        shutil.copy(root / file, root / "val2017" / f"of_{file[-5:]}")

    def more(content):
        sizes = {"of_3.jpg": (48, 58), "of_5.jpg": (56, 58)}
        content["images"] += [
            {"id": 90 + i, "file_name": name, "height": h, "width": w}
            for i, (name, (h, w)) in enumerate(sizes.items())
        ]

    edit(root / "annotations" / "instances_val2017.json", more)
    with pytest.raises(
        RecipeError,
        match=r"2 of the files of training are in the test too, the first is \S*/0+3.jpg, as \S*/of_3.jpg",
    ):
        start(COCO, root, **SMALL)


def test_what_was_trained_on_is_no_test(fixtures, tmp_path, command_line):
    given = ["--model.network.class_path=fixtures.tiny.TinyDetector", "--model.network.init_args.classes=3"]
    given += ["--data.class_path=recipes.data.coco.COCO", f"--data.init_args.root={fixtures('COCO')}"]
    given += [f"--data.init_args.{name}={value}".lower() for name, value in SMALL.items()]
    given += ["--model.warmup_epochs=0", "--model.last_epochs=0", *FAST, f"--out={tmp_path}"]
    detect.main(["fit", *given, "--trainer.max_epochs=1"])
    best = "--ckpt_path=best"
    detect.main(["test", *given, best])
    with pytest.raises(SystemExit, match="data.train train2017, now val2017: give the same settings"):
        detect.main(["test", *given, best, "--data.train=val2017", "--data.test=train2017"])


def test_the_same_annotations_in_training_and_test_are_refused(copy):
    root = copy("COCO")
    shutil.copytree(root / "train2017", root / "other")
    shutil.copy(root / "annotations/instances_train2017.json", root / "annotations/instances_other.json")
    with pytest.raises(
        RecipeError, match=r"11 of the files of training .*instances_other.json; take them out of one part"
    ):
        start(COCO, root, **SMALL, test="other")


@pytest.mark.parametrize("text", ["[1, 2]", '{"images": [],', "", '{"categories": [3]}', '{"images": 3}'])
def test_files_of_another_type_are_named(copy, text):
    root = copy("COCO")
    (root / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(RecipeError, match=r"instances_train2017\.json") as caught:
        start(COCO, root, **SMALL)
    assert "\n" not in str(caught.value)


def test_cut_and_missing_images_are_found_before_training(copy):
    root = copy("COCO")
    path = sorted((root / "train2017").glob("*.jpg"))[3]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RecipeError, match=path.name):
        start(COCO, root, **SMALL)
    path.unlink()
    with pytest.raises(RecipeError, match=f"{path.name} is missing"):
        start(COCO, root, **SMALL)


def test_images_without_boxes_are_named_and_stay(fixtures):
    with pytest.warns(UserWarning, match=r"1 of 10 train images have no boxes .*000000000001\.jpg"):
        start(COCO, fixtures("COCO"), **SMALL)


def test_classes_without_a_box_in_training_are_named(copy):
    root = copy("COCO")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*no box in training")
        start(COCO, root, **SMALL)
    edit(
        root / "annotations" / "instances_train2017.json",
        lambda c: [entry.update(category_id=3) for entry in c["annotations"] if entry["category_id"] == 90],
    )
    with pytest.warns(UserWarning, match="1 of 3 classes of COCO have no box in training .*: thing 90;"):
        start(COCO, root, **SMALL)
