"""Augmentation of scenes: equal to the published code where OpenCV draws, near it where torchvision does."""
# ruff: noqa: E402

import pickle
import random

import numpy as np
import pytest

for name in ("torch", "torchvision", "lightning"):
    pytest.importorskip(name)
pytest.importorskip("cv2", reason="draws what the published code draws: pip install opencv-python-headless")

from recipes.data.drawing import OpenCV, Torchvision
from recipes.data.scenes import Affine, Augmentation, Scene, letterboxed, placed

from fixtures.detection import golden

DRAWINGS = {"opencv": OpenCV(), "torchvision": Torchvision()}
# what torchvision may differ by, as drawing.py says: greatest and mean level
RESIZED, WARPED, RECOLOURED, ITEMS = (1, 0.3), (1, 0.1), (2, 0.4), (16, 0.6)


class Stored(list):
    """Scenes in memory."""

    def boxes(self, index):
        return self[index].boxes


def assert_pixels(image, expected, allowed=(0, 0)):
    """uint8 images: equal, or different by at most ``allowed`` levels (greatest, mean)."""
    assert image.dtype == expected.dtype == np.uint8
    assert image.shape == expected.shape
    far = np.abs(image.astype(int) - expected)
    assert far.max() <= allowed[0]
    assert far.mean() <= allowed[1]


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize("size", ["64x64", "96x96", "32x80"])
def test_letterbox_is_the_published_one(drawing, size):
    file = golden("augment")
    image, ratio = letterboxed(file["image"], *map(int, size.split("x")), DRAWINGS[drawing])
    assert ratio == pytest.approx(float(file[f"letterbox_ratio/{size}"]), abs=1e-15)
    expected = file[f"letterbox/{size}"].transpose(1, 2, 0).astype(np.uint8)
    assert_pixels(image, expected, (0, 0) if drawing == "opencv" else RESIZED)


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize("i", range(4))
def test_affine_maps_are_the_published_ones(drawing, i):
    file = golden("augment")
    ranges = ((-10, 10), (0.1, 2), (-2, 2), (-2, 2), (-0.1, 0.1), (-0.1, 0.1))
    drawn = (low + (high - low) * u for (low, high), u in zip(ranges, file[f"affine/{i}/draws"], strict=True))
    affine = Affine(*drawn)
    assert affine.scale == pytest.approx(float(file[f"affine/{i}/scale"]))
    np.testing.assert_allclose(affine.matrix(48, 64), file[f"affine/{i}/matrix"], rtol=0, atol=1e-12)
    out = affine(Scene(file["image"], file["boxes"]), 48, 64, DRAWINGS[drawing])
    np.testing.assert_allclose(out.boxes, file[f"affine/{i}/boxes"], rtol=0, atol=1e-5)
    assert_pixels(out.image, file[f"affine/{i}/image"], (0, 0) if drawing == "opencv" else WARPED)


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_colours_are_the_published_ones(drawing):
    file = golden("augment")
    uniform, switches = file["hsv_draws"][:3], file["hsv_draws"][3:]
    shift = (uniform * (5, 30, 30) * switches).astype(np.int16)
    image = DRAWINGS[drawing].recolour(file["hsv_in"], shift)
    assert_pixels(image, file["hsv_out"], (0, 0) if drawing == "opencv" else RECOLOURED)


def test_places_in_a_mosaic_are_the_published_ones():
    for xc, yc, i, w, h, *rectangles in golden("augment")["mosaic"].tolist():
        place = placed(i, (xc, yc), (h, w), (128, 128))
        assert [*place.canvas, *place.image] == rectangles


def published_items(drawing):
    """The published items and ours of the same seeds."""
    file = golden("mosaic_items")
    scenes = Stored(Scene(file[f"image{i}"], file[f"boxes{i}"]) for i in range(4))
    augmentation = Augmentation(64, 64, rows=20)
    for seed in range(6):
        random.seed(seed)
        np.random.seed(seed)
        item = augmentation(scenes, seed % 4, DRAWINGS[drawing])
        yield item, file[f"item{seed}/image"].transpose(1, 2, 0), file[f"item{seed}/labels"]


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_whole_items_are_the_published_ones(drawing):
    for item, image, labels in published_items(drawing):
        np.testing.assert_allclose(item.labels, labels, rtol=0, atol=1e-5)
        assert_pixels(item.image, image.astype(np.uint8), (0, 0) if drawing == "opencv" else ITEMS)


@pytest.mark.parametrize("channels", [1, 2, 3, 10])
def test_torchvision_draws_any_number_of_channels(channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    scene = Scene(image, np.array([[2.0, 3, 12, 15, 0]]))
    augmentation = Augmentation(32, 32, colour=0.0, rows=30)
    item = augmentation(Stored([scene] * 4), 0, Torchvision())
    assert item.image.shape == (32, 32, channels)
    assert item.labels.shape == (30, 5)


def test_without_mixing_nothing_but_colours_and_flip_is_drawn():
    file = golden("mosaic_items")
    scenes = Stored([Scene(file["image0"], file["boxes0"])])
    plain = Augmentation(64, 64).plain()
    random.seed(0)
    before = random.getstate()
    item = plain(scenes, 0, Torchvision())
    assert random.getstate() == before
    assert item.labels[0].tolist() == [0, 11, 14, 18, 22]  # 64 of 64 wide: as it was
    last = Augmentation(64, 64, colour=0.0, flip=1.0).without_mixing()
    turned = last(scenes, 0, Torchvision())
    assert turned.labels.shape == (50, 5)
    assert turned.labels[0].tolist() == [0, 64 - 11, 14, 18, 22]
    assert np.array_equal(turned.image[:48], item.image[:48, ::-1])


def test_scenes_without_boxes_pass():
    empty = Scene(np.zeros((10, 20, 3), np.uint8), np.zeros((0, 5)))
    full = Scene(np.zeros((10, 20, 3), np.uint8), np.array([[1.0, 1, 9, 9, 1]]))
    for seed in range(20):
        random.seed(seed)
        item = Augmentation(16, 16)(Stored([empty, empty, full]), seed % 3, Torchvision())
        assert item.image.shape == (16, 16, 3)
        assert np.isfinite(item.labels).all()


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize("mixed", [0.0, 1.0], ids=["plain", "mosaic"])
@pytest.mark.parametrize("shape", [(2, 400, 3), (400, 2, 3)], ids=["wide", "tall"])
def test_long_narrow_images_keep_a_pixel_of_their_shorter_side(drawing, mixed, shape):
    image = np.full(shape, 200, np.uint8)
    scene = Scene(image, np.array([[0.0, 0.0, shape[1], shape[0], 1]]))
    small, ratio = letterboxed(image, 64, 64, DRAWINGS[drawing])
    assert ratio == 64 / 400
    assert (small == 200).all(2).sum() == 64
    augmentation = Augmentation(64, 64, mosaic=mixed, mixup=mixed)
    random.seed(0)
    assert augmentation(Stored([scene] * 2), 0, DRAWINGS[drawing]).image.shape == (64, 64, 3)


def test_drawings_travel_to_workers():
    for drawing in DRAWINGS.values():
        assert type(pickle.loads(pickle.dumps(drawing))) is type(drawing)
