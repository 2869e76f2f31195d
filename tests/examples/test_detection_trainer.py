"""Training of detectors: every configuration runs, a stopped run loses nothing, rates and averages are right."""
# ruff: noqa: E402

import csv
import math
import re
import sys

import pytest
import torch

for name in ("lightning", "torchmetrics", "spikingjelly", "torchvision", "pycocotools", "sklearn"):
    pytest.importorskip(name)

import detect as command
import train
from lightning.pytorch import Callback, Trainer
from recipes.data.coco import COCO
from recipes.data.detection import Batch
from recipes.data.prophesee import Prophesee
from recipes.data.shapes import PastedDigits
from recipes.detection.boxes import decode, detect, encode, probabilities
from recipes.detection.losses import losses
from recipes.detection.metric import average_precision, predicted, truths
from recipes.detection.module import Detection
from recipes.detection.schedule import Averaged, Schedule, decay
from recipes.models import Detector
from recipes.models.detector import Anchors, Predictions
from recipes.neurons import MSF, PMSN, reset
from torchvision.io import read_image

from fixtures.kill import Killed
from fixtures.runs import FAST, ONE_STEP, ROOT, different, equal, kill, left, saved, weights
from fixtures.tiny import TinyDetector

CONFIGS = ROOT / "examples" / "configs" / "detection"
NARROW = ["--model.network.init_args.width=0.0625", "--model.network.init_args.depth=0.33"]
# the fixture that a configuration reads, and what makes it small
SMALL = {
    "coco_mhsanet50": (
        "COCO",
        ["--model.network.init_args.classes=3", "--data.classes=3", "--data.height=64", "--data.width=64"],
    ),
    "gen1_mhsanet50": ("Gen1", []),
    "gen1_mhsanet50_frames": ("Gen1", ["--data.steps=2"]),
    "mpx_mhsanet50": ("1Mpx", []),
    "trees": ("trees", []),
    "digits": (None, ["--data.scenes=12"]),
    "moving": (None, ["--data.recordings=2", "--data.download=true"]),
}
TINY = [
    "--model.network.class_path=fixtures.tiny.TinyDetector",
    "--data.class_path=recipes.data.shapes.PastedDigits",
    "--data.init_args.scenes=20",
    "--data.init_args.batch_size=4",
    "--data.init_args.mosaic=1.0",
    "--data.init_args.mixup_boxes=1.0",
    "--data.init_args.colour=1.0",
    "--model.warmup_epochs=1",
    "--model.last_epochs=1",
    "--model.multiscale=1",
    "--model.lr=0.1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.max_epochs=3",
    "--save_every=2",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]


def fit(out, *given):
    """Five batches an epoch."""
    command.main(["fit", *TINY, f"--out={out}", *given])


def rows_of(out):
    return [row for path in out.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]


# -- configurations


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == SMALL.keys()


@pytest.mark.parametrize("task", SMALL)
def test_configuration_trains_validates_tests_and_resumes(task, tmp_path, fixtures):
    name, small = SMALL[task]
    root = fixtures(name) if name else tmp_path / "data"
    given = ["--config", str(CONFIGS / f"{task}.yaml"), f"--data.root={root}", "--data.verify=false", *small]
    given += [f"--data.cache={tmp_path / 'cache'}", *NARROW, *FAST, *ONE_STEP, f"--out={tmp_path}"]
    given += ["--data.batch_size=2", "--trainer.precision=32-true", "--trainer.check_val_every_n_epoch=1"]
    last = tmp_path / "checkpoints" / "last.ckpt"
    command.main(["fit", *given, "--trainer.max_epochs=1"])
    before = weights(last)
    assert saved(tmp_path)["global_step"] == 1
    command.main(["fit", *given, "--trainer.max_epochs=2", f"--ckpt_path={last}"])
    assert saved(tmp_path)["global_step"] == 2
    assert not equal(before, weights(last))
    command.main(["test", *given, f"--ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"])
    logged = {name: float(value) for row in rows_of(tmp_path) for name, value in row.items() if value}
    wanted = {f"{part}/{kind}" for part in ("val", "test") for kind in ("loss", "map", "map_50")} | {
        "train/loss"
    }
    assert wanted <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    for part in ("val", "test"):
        picture = read_image(str(tmp_path / f"detected_{part}.png"))
        assert picture.shape[0] == 3
        assert picture.float().std() > 10


@pytest.mark.parametrize(
    ("task", "classes", "count"), [("coco", 80, 76_384_287), ("gen1", 2, 76_324_149), ("mpx", 3, 76_324_920)]
)
def test_configurations_build_the_published_networks(task, classes, count, capsys):
    import yaml
    from lightning.pytorch.cli import instantiate_class

    network = yaml.safe_load((CONFIGS / f"{task}_mhsanet50.yaml").read_text())["model"]["network"]
    network["init_args"]["neuron"] = instantiate_class((), network["init_args"]["neuron"])
    with torch.device("meta"):
        net = instantiate_class((), network)
    assert net.classes == classes
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("flag", ["--config", "-c"])
@pytest.mark.parametrize("task", SMALL)
def test_configurations_with_boxes_name_their_command(task, flag, capfd):
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", flag, str(CONFIGS / f"{task}.yaml")])
    assert re.fullmatch(
        rf"error: \S*{task}.yaml names \w+, data with boxes: use examples/detect.py", stop.value.code
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("task", ["smnist", "shd", "sine"])
def test_configurations_without_boxes_name_theirs(task):
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", f"--config={CONFIGS.parent / task}.yaml"])
    assert re.fullmatch(
        rf"error: \S*{task}.yaml names \w+, data without boxes: use examples/train.py", stop.value.code
    )


@pytest.mark.parametrize("content", ["data: [", "", "data: 3", "data: {class_path: no.such.Data}", None])
def test_a_configuration_that_names_no_data_is_for_the_parser_to_explain(content, tmp_path, capfd):
    path = tmp_path / "one.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        command.main(["fit", f"--config={path}"])
    assert re.fullmatch(r"error: \S.*; fit --help explains the settings, .*", stop.value.code)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("main", [train.main, command.main], ids=["train", "detect"])
def test_nothing_is_predicted(main, capfd):
    with pytest.raises(
        SystemExit, match=r"invalid choice: 'predict' \(choose from 'fit', 'validate', 'test'\)"
    ):
        main(["predict"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "predict" not in capfd.readouterr().out


# -- a stopped run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    argv, sys.argv = sys.argv, ["train.py"]
    try:
        fit(out)
    finally:
        sys.argv = argv
    return everything(out)


def everything(out):
    last = saved(out)
    return left(out) | {f"running {key}": value for key, value in last["current_model_state"].items()}


@pytest.mark.parametrize(
    ("step", "hook"),
    [
        (3, "on_train_batch_start"),
        (5, "on_validation_end"),
        (7, "on_train_batch_end"),
        (13, "on_train_batch_start"),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(step, hook, tmp_path, uninterrupted):
    with pytest.raises(Killed):
        fit(tmp_path, kill(step, hook))
    fit(tmp_path, "--ckpt_path=last")
    assert different(everything(tmp_path), uninterrupted) == []


def test_a_run_that_was_stopped_within_a_validation_keeps_weights_and_averages_apart(tmp_path, uninterrupted):
    with pytest.raises(SystemExit):
        fit(tmp_path, kill(5, "on_validation_batch_start", "SIGINT"))
    middle = saved(tmp_path)
    assert middle["place"]["due"]
    fit(tmp_path, "--ckpt_path=last")
    assert different(everything(tmp_path), uninterrupted) == []


# -- averages, rates, the last epochs


class Watch(Callback):
    """What the network was after every update."""

    def __init__(self):
        self.seen = []
        self.initial = None

    def on_train_start(self, trainer, module):
        self.initial = {name: value.clone() for name, value in module.network.state_dict().items()}

    def on_train_batch_end(self, trainer, module, *rest):
        self.seen.append({name: value.clone() for name, value in module.network.state_dict().items()})


def small_run(tmp_path, epochs=2, network=None, callbacks=(), **settings):
    """A run without the command line; the trainer is returned."""
    module = Detection(network or TinyDetector(), warmup_epochs=1, last_epochs=1, **settings)
    data = PastedDigits(scenes=12, batch_size=4, mosaic=1.0, mixup_boxes=1.0)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return trainer


def test_what_is_validated_and_saved_are_the_averages(tmp_path):
    watch = Watch()
    trainer = small_run(tmp_path, callbacks=[watch])
    average = dict(watch.initial)
    for n, state in enumerate(watch.seen, 1):
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = decay(n) * average[name] + (1 - decay(n)) * value
    assert len(watch.seen) == 6
    found = trainer.lightning_module.network.state_dict()  # the run ends with them
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    assert not torch.equal(found["stem.1.running_mean"], watch.seen[-1]["stem.1.running_mean"])


def test_a_checkpoint_in_mid_validation_holds_what_one_after_it_holds():
    net = torch.nn.Linear(2, 2)
    callback = Averaged()
    callback._average_model = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        net.weight.add_(1)

    def checkpoint():
        state = {"state_dict": {name: value.clone() for name, value in net.state_dict().items()}}
        callback.on_save_checkpoint(None, net, state)
        parts = ("state_dict", "current_model_state")
        return {f"{part} {name}": value.clone() for part in parts for name, value in state[part].items()}

    before = checkpoint()
    callback._swap_models(net)
    during = checkpoint()
    callback._swap_models(net)
    assert all(torch.equal(before[key], during[key]) for key in before)
    assert not torch.equal(before["state_dict weight"], before["current_model_state weight"])


def test_rates_follow_the_iterations_and_the_batch(tmp_path):
    rates = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *rest):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    trainer = small_run(tmp_path, epochs=3, callbacks=[Rates()], lr=0.64)
    schedule = Schedule(per_epoch=3, epochs=3, warmup=1, last=1)
    assert rates == [pytest.approx([0.04 * schedule(i)] * 2) for i in range(9)]  # batches of 4 instead of 64
    decays = {
        parameter.dim() > 1: group["weight_decay"]
        for group in trainer.optimizers[0].param_groups
        for parameter in group["params"]
    }
    assert decays == {True: 5e-4, False: 0.0}
    assert trainer.optimizers[0].defaults["nesterov"]


def test_parameters_of_pmsn_keep_their_rate(tmp_path):
    net = Detector(10, PMSN(compartments=2), width=1 / 16, depth=1 / 3)
    trainer = small_run(tmp_path, epochs=1, network=net, lr=0.64, neuron_lr=0.003)
    assert {group["initial_lr"] for group in trainer.optimizers[0].param_groups} >= {0.04, 0.003}


def test_in_the_last_epochs_nothing_is_mixed_and_boxes_are_compared(tmp_path):
    fit(tmp_path)
    l1 = {int(row["step"]): float(row["train/l1"]) for row in rows_of(tmp_path) if row.get("train/l1")}
    assert [step for step, value in sorted(l1.items()) if value > 0] == list(range(10, 15))
    trainer = small_run(tmp_path / "more", epochs=3)
    assert trainer.datamodule.samples["train"].plain_from == 2


def test_sizes_change_every_ten_updates_with_their_boxes(tmp_path):
    module = Detection(TinyDetector(), multiscale=1, scale_step=16)
    data = PastedDigits(scenes=12, batch_size=4, height=64, width=96)
    data.setup()
    module.trainer = trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer._data_connector.attach_data(module, datamodule=data)
    batch = data.collate([data.samples["test"][0]])
    sizes = []
    for step in range(0, 200, 5):
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = (
            step
        )
        new = module.resized(batch)
        assert isinstance(new, Batch)
        factor = torch.tensor(
            [1, new.x.shape[3] / 96, new.x.shape[2] / 64, new.x.shape[3] / 96, new.x.shape[2] / 64]
        )
        torch.testing.assert_close(new.labels, batch.labels * factor)
        sizes.append(tuple(new.x.shape[2:]))
    assert set(sizes) == {(48, 72 - 8), (64, 96), (80, 112)}
    assert sizes[::2] == sizes[1::2]  # steps 0 and 5 are of one decade


# -- what is judged


class Oracle(torch.nn.Module):
    """Knows the labels of a batch: at the anchor nearest to an object's centre it predicts its box and class."""

    time_first_input = "NCHW"

    def __init__(self, classes):
        super().__init__()
        self.classes = classes
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.labels = None

    def forward(self, x):
        anchors = Anchors.of([torch.zeros(1, x.shape[2] // s, x.shape[3] // s) for s in (8, 16, 32)])
        raw = torch.full((len(x), len(anchors.x), 5 + self.classes), -10.0)
        for i, rows in enumerate(self.labels):
            for row in rows[rows.sum(1) > 0]:
                far = (anchors.x + 0.5) * anchors.stride - row[1], (anchors.y + 0.5) * anchors.stride - row[2]
                at = torch.hypot(*far).argmin()
                place = [part[at : at + 1] for part in (anchors.x, anchors.y, anchors.stride)]
                raw[i, at, :4] = encode(row[None, 1:], *place)[0]
                raw[i, at, 4] = raw[i, at, 5 + int(row[0])] = 10.0
        return Predictions(raw + self.weight, anchors)


@pytest.mark.parametrize("name", ["COCO", "Gen1", "digits"])
def test_a_detector_that_knows_the_labels_has_full_precision(name, tmp_path, fixtures):
    """Letterboxed or not: boxes go back to pixels of the image, and those that count nowhere are left out."""
    if name == "COCO":
        data = COCO(root=str(fixtures("COCO")), classes=3, height=96, width=160, verify=False, batch_size=3)
    elif name == "Gen1":
        data = Prophesee(root=str(fixtures("Gen1")), cache=str(tmp_path), window=200, batch_size=3)
    else:
        data = PastedDigits(scenes=40, batch_size=3)
    net = Oracle(data.classes)

    class Tell(Callback):
        def on_test_batch_start(self, trainer, module, batch, *rest):
            net.labels = batch.labels

    class Told(Detection):
        def check(self):
            pass  # it has no labels yet

    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, callbacks=[Tell()])
    result = trainer.test(Told(net), data, verbose=False)[0]
    assert result["test/map"] == pytest.approx(1.0, abs=1e-6)
    assert read_image(str(tmp_path / "detected_test.png")).shape[0] == 3


# -- what does not fit


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model.network.init_args.classes=7"], "TinyDetector has 7 classes, PastedDigits has 10"),
        (["--trainer.precision=bf16-true"], "give 16-mixed or bf16-mixed"),
        (["--trainer.max_epochs=-1"], "needs a number of epochs"),
        (["--model.last_epochs=-1"], "model.last_epochs and model.multiscale must be 0 or more"),
        (["--model.threshold=5"], "model.threshold and model.overlap must lie in [0, 1], got 5.0 and 0.65"),
        (["--model.overlap=-0.1"], "model.threshold and model.overlap must lie in [0, 1], got 0.01 and -0.1"),
        (["--data.scale=[0,0]"], "data.scale is the least and the greatest"),
        (["--model.lr=-1"], "model.lr must not be negative"),
        (["--model.scale_step=128"], "model.scale_step 128 is more than data.height 64"),
        (["--data.colour=2"], "data.colour is a probability"),
    ],
)
def test_settings_that_do_not_fit_end_in_one_line(given, said, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path, *given)
    assert said in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.mark.slow
def test_a_narrow_detector_learns_to_find_digits():
    """Eight scenes by heart: half a minute of a quiet core."""
    torch.manual_seed(0)
    data = PastedDigits(scenes=8, flip=0.0)
    data.setup()
    batch = data.collate([data.samples["train"].plain(i) for i in range(8)])
    net = Detector(10, MSF(D=8), width=1 / 16, depth=1 / 3)
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(120):
        predictions = net(batch.x)
        reset(net)
        decoded = decode(predictions.raw, predictions.anchors)
        optimizer.zero_grad()
        losses(decoded, predictions.anchors, batch.labels).total.backward()
        optimizer.step()
    metric = average_precision()
    found = detect(probabilities(decoded.detach()))
    metric.update([predicted(one) for one in found], truths(batch.truth))
    assert metric.compute()["map_50"] > 0.5
