"""Find digits on a canvas, and shapes that move before an event camera: average precision of a narrow spiking detector.

MHSANet-50 with PAFPN and head at a sixteenth of the width, on 64 x 64 pixels, without augmentation. The digits are
still, a neuron with memory sees them T times; the shapes are T frames of events, the last of which is nearest to the
boxes. Where deepforest is installed (`pip install --no-deps deepforest`), trees in aerial photographs too, 128 x 128.

    python examples/experiments/detection.py --json runs/detection.json      hours; goes on where it was stopped
    python examples/experiments/detection.py --neurons "MSF;LIF"
"""

import sys
import tempfile
from functools import cache
from importlib.util import find_spec
from itertools import product

import resumable
import torch
from recipes import neurons
from recipes.data.shapes import MovingShapes, PastedDigits
from recipes.data.trees import AerialTrees
from recipes.detection.boxes import decode, detect, probabilities
from recipes.detection.losses import losses
from recipes.detection.metric import average_precision, predicted, truths
from recipes.models import Detector, count_parameters
from resumable import Job, Training

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
PARTS, PART, BATCH, RATE = 30, 50, 16, 2e-3
"""1,500 updates, whose place is kept every 50."""


def load(name, fast, folder):
    """The data of that name, ready; what is made lies in ``folder``."""
    if name == "digits":
        data = PastedDigits(scenes=4 if fast else 2000, flip=0.0)
    elif name == "shapes":
        recordings = 1 if fast else 200
        data = MovingShapes(recordings=recordings, steps=4, window=40, flip=0.0, root=folder, download=True)
    else:
        data = AerialTrees(tile=400 if fast else 128)
    data.prepare_data()
    data.setup()
    return data


def batch_of(data, part, positions):
    samples = data.samples[part]
    return data.arrange(data.collate([samples.plain(int(i)) for i in positions]))


def training(net, seed, updates):
    """Adam and a cosine to 0."""
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    return Training(net, optimizer, schedule, torch.Generator().manual_seed(seed))


def train(run, data, updates):
    """Some updates; every neuron meets the same batches."""
    for _ in range(updates):
        few = torch.randint(len(data.samples["train"]), (BATCH,), generator=run.order)
        batch = batch_of(data, "train", few.tolist())
        predictions = run.model(batch.x)
        neurons.reset(run.model)
        decoded = decode(predictions.raw, predictions.anchors)
        loss = losses(decoded, predictions.anchors, batch.labels).total
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        run.schedule.step()


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
        metric.update([predicted(one) for one in found], truths(batch.truth))
    result = metric.compute()
    return {"ap": 100 * float(result["map"]), "ap50": 100 * float(result["map_50"])}


def settings():
    """Which data, how many steps, which neurons: PMSN where there is time."""
    still = [name for name in NEURONS if name != "PMSN"]
    trees = [("trees", 1, still)] if find_spec("deepforest") else []
    return [("digits", 1, still), ("digits", 4, still), ("shapes", 4, list(NEURONS)), *trees]


def row(data, frames, neuron, seed, fast, checkpoint):
    torch.manual_seed(seed)
    net = Detector(data.classes, NEURONS[neuron], width=1 / 16, depth=1 / 3, **frames)
    parts, updates = (1, 1) if fast else (PARTS, PART)
    run = training(net, seed, parts * updates)
    run.run(parts, lambda: train(run, data, updates), checkpoint)
    return {"parameters": count_parameters(net), "seconds": run.seconds, **evaluate(net, data)}


def jobs(options):
    """One seed of every line of the table, then the next seed."""
    chosen = options.chosen(NEURONS)
    with tempfile.TemporaryDirectory() as folder:
        data = cache(lambda name: load(name, options.fast, folder))
        for seed, (name, steps, candidates) in product(range(options.seeds), settings()):
            frames = {"frames": True, "in_channels": 2} if name == "shapes" else {"steps": steps}
            for neuron in candidates:

                def run(checkpoint, name=name, frames=frames, neuron=neuron, seed=seed):
                    return row(data(name), frames, neuron, seed, options.fast, checkpoint)

                if neuron in chosen:
                    yield Job({"data": name, "T": steps, "neuron": neuron, "seed": seed}, run)


def runs(options):
    return resumable.rows(jobs(options))


if __name__ == "__main__":
    resumable.main(sys.modules[__name__])
