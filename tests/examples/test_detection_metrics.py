"""Schedule, averages and average precision of detection: equal to the published code and to COCO's own evaluation."""
# ruff: noqa: E402

import contextlib
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

for name in ("lightning", "torchmetrics", "torchvision", "pycocotools"):
    pytest.importorskip(name)

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from recipes.detection.metric import average_precision, coco_statistics
from recipes.detection.prophesee import GEN1, MEGAPIXEL, BoxFilter, evaluate, moments
from recipes.detection.schedule import Schedule, averaged, decay

from fixtures.detection import golden


def test_rates_are_the_published_ones():
    file = golden("schedule")
    schedule = Schedule(int(file["iters_per_epoch"]), int(file["epochs"]), warmup=5, last=15)
    rates = [float(file["base_lr"]) * schedule(i) for i in file["iters"].tolist()]
    np.testing.assert_allclose(rates, file["lr"], rtol=1e-12, atol=0)


def test_where_all_epochs_are_the_last_ones_the_rate_falls_after_the_warm_up():
    schedule = Schedule(per_epoch=10, epochs=15, warmup=1, last=15)
    assert schedule(10) == 1
    assert {schedule(i) for i in range(11, 150)} == {0.05}
    assert Schedule(10, 2, warmup=0, last=0)(0) == 1


def test_averages_are_the_published_ones():
    file = golden("schedule")
    np.testing.assert_allclose(
        [decay(n) for n in file["ema_updates"].tolist()], file["ema_decay"], rtol=1e-12
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    average = AveragedModel(net, avg_fn=averaged, use_buffers=True)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for n in range(1, 51):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
            net(torch.randn(5, 3, dtype=torch.float64))
        average.update_parameters(net)
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay(n) * expected[name] + (1 - decay(n)) * value
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-7)
        else:
            assert torch.equal(value, net.state_dict()[name])


FILTERS = {
    "gen1": GEN1,
    "gen4": MEGAPIXEL,
    "script_GEN1": BoxFilter(100_000, 30, 20),
    "script_GEN4": BoxFilter(100_000, 60, 10),
}


@pytest.mark.parametrize("name", FILTERS)
def test_prophesees_evaluation_gives_its_numbers(name):
    file = golden("prophesee_eval")
    labelled, found = ([file[f"{kind}{i}"] for i in range(2)] for kind in ("gt", "dt"))
    pairs = zip(labelled, found, strict=True)
    kept = [sum(len(moment.labelled) for moment in moments(a, b, FILTERS[name])) for a, b in pairs]
    assert kept == file[f"{name}/kept"].tolist()
    np.testing.assert_allclose(
        evaluate(labelled, found, FILTERS[name]), file[f"{name}/stats"], rtol=0, atol=1e-7
    )


def test_half_size_frames_have_half_size_limits():
    assert MEGAPIXEL.scaled(0.5) == BoxFilter(500_000, 30, 10)
    sizes = np.array([10.0, 9.0, 10.0, 30.0])
    assert GEN1.large(sizes, np.array([40.0, 40.0, 20.0, 30.0])).tolist() == [True, False, False, True]


def test_average_precision_is_that_of_pycocotools():
    """With few boxes float32 thresholds would show."""
    draw = np.random.default_rng(0)
    truth, found, entries, results = [], [], [], []
    for image in range(12):
        corner = draw.uniform(0, 60, (3, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(5, 60, (3, 2))], 1).astype(np.float32)
        guess = (boxes + draw.normal(0, 4, boxes.shape)).astype(np.float32)
        labels, scores = draw.integers(0, 2, 3), draw.random(3).astype(np.float32)
        truth.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
        found.append({**truth[-1], "boxes": torch.from_numpy(guess), "scores": torch.from_numpy(scores)})
        for own, other, label, score in zip(boxes, guess, labels, scores, strict=True):
            x1, y1, x2, y2 = own.tolist()
            entry = {"image_id": image, "category_id": int(label)}
            size = (x2 - x1) * (y2 - y1)
            box = [x1, y1, x2 - x1, y2 - y1]
            entries.append({**entry, "id": len(entries) + 1, "bbox": box, "area": size, "iscrowd": 0})
            x1, y1, x2, y2 = other.tolist()
            results.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(score)})
    metric = average_precision()
    metric.update(found, truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(12)],
            "annotations": entries,
            "categories": [{"id": 0}, {"id": 1}],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    np.testing.assert_allclose(coco_statistics(metric.compute()), judge.stats, rtol=0, atol=1e-7)
