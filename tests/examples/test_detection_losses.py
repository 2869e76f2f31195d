"""Boxes, assignment and losses of detection: equal to the published code, and what images without objects give."""
# ruff: noqa: E402

import pytest
import torch

for name in ("lightning", "torchvision", "spikingjelly"):
    pytest.importorskip(name)

from recipes.detection.boxes import decode, detect, probabilities
from recipes.detection.losses import losses, overlap_loss
from recipes.detection.simota import assign
from recipes.models.detector import Anchors, Head
from recipes.neurons import MSF
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from fixtures.detection import golden, load, ours, stored, tensor

TOTAL = ("total", "boxes", "objectness", "classes", "l1", "positives")


def anchors_of(file, prefix=""):
    return Anchors(*(tensor(file[f"{prefix}{name}"])[0] for name in ("x_shifts", "y_shifts", "strides")))


def assert_losses(found, expected):
    for name, value in zip(TOTAL, expected.tolist(), strict=True):
        assert torch.as_tensor(getattr(found, name), dtype=torch.float64).item() == pytest.approx(
            value, rel=1e-11, abs=1e-11
        ), name


def test_overlaps_are_the_published_ones():
    file = golden("iou")
    a, b, b2 = (tensor(file[name]) for name in ("a", "b", "b2"))
    corners = [box_convert(boxes, "cxcywh", "xyxy") for boxes in (a, b, b2)]
    torch.testing.assert_close(
        box_iou(corners[0], corners[1]), tensor(file["pair_cxcywh"]), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(overlap_loss(a, b2), tensor(file["loss_iou"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        1 - generalized_box_iou(corners[0], corners[2]).diag(), tensor(file["loss_giou"]), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("class", {"threshold": 0.3, "overlap": 0.45}),
        ("agnostic", {"threshold": 0.3, "overlap": 0.45, "agnostic": True}),
        ("eval", {"threshold": 0.01, "overlap": 0.65}),
    ],
)
def test_detections_are_the_published_ones(way, settings):
    file = golden("postprocess")
    for i, found in enumerate(detect(tensor(file["prediction"]), **settings)):
        rows = torch.cat(
            [found.boxes, found.objectness[:, None], found.certainty[:, None], found.labels[:, None]], 1
        )
        torch.testing.assert_close(rows, tensor(file[f"{way}/{i}"]).to(rows.dtype), rtol=0, atol=1e-9)
        assert (found.scores.diff() <= 0).all()


def test_nothing_above_the_threshold_is_nothing():
    found = detect(torch.full((1, 4, 7), 0.1), threshold=0.5)[0]
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == 0


@pytest.mark.parametrize("mode", ["plain", "l1"])
def test_assignments_and_losses_are_the_published_ones(mode):
    file = golden("simota")
    anchors = anchors_of(file)
    outputs, labels = tensor(file["outputs"]), tensor(file["labels"])
    for i, (rows, padded) in enumerate(zip(outputs, labels, strict=True)):
        found = assign(rows, padded[: int((padded.sum(1) > 0).sum())], anchors)
        if f"{mode}/image{i}/fg_mask" not in file.files:
            assert not found.positive.any()
            continue
        assert torch.equal(found.positive, tensor(file[f"{mode}/image{i}/fg_mask"]))
        assert torch.equal(found.objects, tensor(file[f"{mode}/image{i}/gt_index"]))
        torch.testing.assert_close(found.ious, tensor(file[f"{mode}/image{i}/ious"]), rtol=0, atol=1e-12)
        assert torch.equal(padded[found.objects, 0], tensor(file[f"{mode}/image{i}/classes"]))
    outputs.requires_grad_()
    origin = tensor(file["origin"]).requires_grad_() if mode == "l1" else None
    found = losses(outputs, anchors, labels, origin)
    assert_losses(found, file[f"{mode}/losses"])
    found.total.backward()
    torch.testing.assert_close(outputs.grad, tensor(file[f"{mode}/grad_outputs"]), rtol=1e-9, atol=1e-12)
    if origin is not None:
        torch.testing.assert_close(origin.grad, tensor(file["l1/grad_origin"]), rtol=1e-9, atol=1e-12)


def test_an_image_whose_only_object_is_out_of_reach_has_no_positives():
    file = golden("simota")
    found = losses(tensor(file["outputs"])[:1], anchors_of(file), tensor(file["unreachable/labels"]))
    assert_losses(found, file["unreachable/losses"])


@pytest.mark.parametrize("l1", [False, True], ids=["plain", "l1"])
def test_losses_and_gradients_of_the_head_are_the_published_ones(l1):
    file, way = golden("head"), "l1" if l1 else "plain"
    net = load(Head((8, 16, 32), 8, 3, MSF(D=8)), stored(file)).double().train()
    xs = [tensor(file[f"x{i}"]).requires_grad_() for i in range(3)]
    predictions = net(xs)
    decoded = decode(predictions.raw, predictions.anchors)
    torch.testing.assert_close(decoded, tensor(file[f"{way}/outputs"]), rtol=1e-9, atol=1e-9)
    labels = tensor(file["labels"])
    found = losses(decoded, predictions.anchors, labels, predictions.raw[..., :4] if l1 else None)
    assert_losses(found, file[f"{way}/losses"])
    for i, rows in enumerate(decoded.detach()):
        mine = labels[i][: int((labels[i].sum(1) > 0).sum())]
        got = assign(rows, mine, predictions.anchors)
        assert torch.equal(got.positive, tensor(file[f"{way}/image{i}/fg_mask"]))
        assert torch.equal(got.objects, tensor(file[f"{way}/image{i}/gt_index"]))
    found.total.backward()
    for i, x in enumerate(xs):
        expected = tensor(file[f"{way}/gx{i}"])
        assert (x.grad - expected).abs().max() <= 1e-5 * expected.abs().max()
    named = dict(net.named_parameters())
    keys = [key for key in file.files if key.startswith(f"{way}/grad/")]
    assert len(keys) == len(named)
    for key in keys:
        expected = tensor(file[key])
        grad = named[ours(key.split("grad/", 1)[1])].grad
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max(), key


def test_decoded_predictions_of_the_head_are_the_published_ones():
    file = golden("head")
    net = load(Head((8, 16, 32), 8, 3, MSF(D=8)), stored(file)).double().eval()
    with torch.no_grad():
        predictions = net([tensor(file[f"x{i}"]) for i in range(3)])
    decoded = probabilities(decode(predictions.raw, predictions.anchors))
    torch.testing.assert_close(decoded, tensor(file["eval/decoded"]), rtol=1e-9, atol=1e-9)


def test_images_without_objects_teach_that_there_is_nothing():
    anchors = Anchors.of([torch.zeros(1, 1, 1, n, n) for n in (4, 2, 1)])
    raw = torch.randn(2, 21, 7, requires_grad=True)
    found = losses(decode(raw, anchors), anchors, torch.zeros(2, 3, 5), raw[..., :4])
    assert (found.boxes, found.classes, found.l1) == (0, 0, 0)
    found.total.backward()
    assert raw.grad[..., 4].abs().min() > 0
    assert raw.grad[..., :4].abs().max() == 0
