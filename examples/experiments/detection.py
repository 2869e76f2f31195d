"""Find digits on a canvas, and shapes that move before an event camera: average precision of a narrow spiking detector.

MHSANet-50 with PAFPN and head at a sixteenth of the width, on 64 x 64 pixels, without augmentation. The digits are
still, a neuron with memory sees them T times; the shapes are T frames of events, the last of which is nearest to the
boxes. Where deepforest is installed (`pip install --no-deps deepforest`), trees in aerial photographs too, 128 x 128.

    python examples/experiments/detection.py --seeds 3       hours of one core
    python examples/experiments/detection.py --neurons "MSF;LIF"
"""

import sys
import tempfile
import time
from importlib.util import find_spec

import common
import torch
from recipes import neurons
from recipes.data.shapes import MovingShapes, PastedDigits
from recipes.data.trees import AerialTrees
from recipes.detection.boxes import decode, detect, probabilities
from recipes.detection.losses import losses
from recipes.detection.metric import average_precision
from recipes.models import Detector, count_parameters

SEEDS = 3
TITLE = "Detection: digits on a canvas, shapes before an event camera"
KEYS = ("data", "T", "neuron")
VALUES = ("parameters", "seconds", "ap", "ap50")
COLUMNS = {"ap": ("AP, %", ".1f"), "ap50": ("AP50, %", ".1f")}
NEURONS = {
    "LIF": neurons.LIF(tau=4 / 3, decay_input=False, surrogate="rectangular"),
    "MSF": neurons.MSF(D=8),
    "ReLU": neurons.ReLU(),
    "PMSN": neurons.PMSN(),
}
STEPS, BATCH, RATE = 1500, 16, 2e-3


def digits(fast):
    return PastedDigits(scenes=4 if fast else 2000, flip=0.0)


def shapes(fast, folder):
    return MovingShapes(
        recordings=1 if fast else 200, steps=4, window=40, flip=0.0, root=folder, download=True
    )


def batch_of(data, part, positions):
    samples = data.samples[part]
    return data.arrange(data.collate([samples.plain(int(i)) for i in positions]))


def train(net, data, steps, seed):
    """Adam and a cosine to 0; every neuron meets the same batches. Returns CPU seconds."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order, start = torch.Generator().manual_seed(seed), time.process_time()
    net.train()
    for _ in range(steps):
        few = torch.randint(len(data.samples["train"]), (BATCH,), generator=order)
        batch = batch_of(data, "train", few.tolist())
        predictions = net(batch.x)
        neurons.reset(net)
        decoded = decode(predictions.raw, predictions.anchors)
        loss = losses(decoded, predictions.anchors, batch.labels).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


@torch.no_grad()
def evaluate(net, data):
    """Average precision on the test scenes, in %."""
    metric = average_precision()
    net.eval()
    for positions in torch.arange(len(data.samples["test"])).split(BATCH):
        batch = batch_of(data, "test", positions.tolist())
        predictions = net(batch.x)
        neurons.reset(net)
        found = detect(probabilities(decode(predictions.raw, predictions.anchors)))
        rows = [part[part[:, 4] >= 0] for part in batch.truth]
        metric.update(
            [{"boxes": one.boxes, "scores": one.scores, "labels": one.labels} for one in found],
            [{"boxes": part[:, :4], "labels": part[:, 4].long()} for part in rows],
        )
    result = metric.compute()
    return {"ap": 100 * float(result["map"]), "ap50": 100 * float(result["map_50"])}


def settings():
    """Which data, how many steps, which neurons: PMSN where there is time."""
    still = [name for name in NEURONS if name != "PMSN"]
    trees = [("trees", 1, still)] if find_spec("deepforest") else []
    return [("digits", 1, still), ("digits", 4, still), ("shapes", 4, list(NEURONS)), *trees]


def runs(options):
    chosen = options.chosen(NEURONS)
    with tempfile.TemporaryDirectory() as folder:
        sets = {"digits": digits(options.fast), "shapes": shapes(options.fast, folder)}
        if find_spec("deepforest"):
            sets["trees"] = AerialTrees(tile=400 if options.fast else 128)
        for data in sets.values():
            data.prepare_data()
            data.setup()
        for name, steps, candidates in settings():
            data = sets[name]
            for seed in range(options.seeds):
                for neuron in (one for one in candidates if one in chosen):
                    torch.manual_seed(seed)
                    frames = {"frames": True, "in_channels": 2} if name == "shapes" else {"steps": steps}
                    net = Detector(data.classes, NEURONS[neuron], width=1 / 16, depth=1 / 3, **frames)
                    seconds = train(net, data, 1 if options.fast else STEPS, seed)
                    row = {"data": name, "T": steps, "neuron": neuron, "seed": seed}
                    row |= {"parameters": count_parameters(net), "seconds": seconds}
                    yield row | evaluate(net, data)


if __name__ == "__main__":
    common.main(sys.modules[__name__])
