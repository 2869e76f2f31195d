"""The experiments: their data and measures by hand, every one at toy size, the page that shows what they gave."""
# ruff: noqa: E402

import importlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("spikingjelly", "sklearn", "mnist1d", "lightning"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "experiments")]

import common
import depth
import digits
import events
import recall
import run
import series
import sine
import sweep
from recipes import neurons
from recipes.models import SequenceNet, SineNet
from torch import nn

from tolerances import assert_same

FAST = common.Options(fast=True)


# Every experiment at toy size


ELSEWHERE = (
    "series",
    "digits",
    "signals",
    "smnist",
)  # with small files in the place of the real ones, or in parts


@pytest.mark.parametrize("name", [name for name in run.NAMES if name not in ELSEWHERE])
def test_an_experiment_runs_at_toy_size(name, capsys):
    experiment = importlib.import_module(name)
    done = common.report(experiment, FAST)
    rows = json.loads(json.dumps(done))["rows"]
    assert rows == done["rows"], "what goes into the file comes back from it"
    lines = capsys.readouterr().out.splitlines()
    assert "toy size, the numbers mean nothing" in lines[0]
    combinations = dict.fromkeys(tuple(str(row[key]) for key in experiment.KEYS) for row in rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[3:]]
    assert [tuple(line[: len(experiment.KEYS)]) for line in cells] == list(combinations)
    assert all(len(line) == len(experiment.KEYS) + len(experiment.VALUES) for line in cells)
    for row in rows:
        assert all(row.get(name) is None or np.isfinite(row[name]) for name in experiment.VALUES)


def test_chosen_neurons_alone():
    rows = list(digits.runs(common.Options(fast=True, seeds=1, neurons=("MSF", "PSN"))))
    assert [(row["order"], row["neuron"]) for row in rows] == [
        (order, name) for order in ("rows", "permuted") for name in ("MSF", "PSN")
    ]
    with pytest.raises(SystemExit, match=r"unknown here \['IF'\]; known: LIF, LIF, no reset, MSF"):
        list(digits.runs(common.Options(fast=True, seeds=1, neurons=("IF",))))


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--fast", "--out", str(tmp_path), "steps", "series", "--seeds", "2"]
    )
    monkeypatch.setitem(sys.modules, "aeon.datasets", None)
    run.main()
    report = json.loads((tmp_path / "steps.json").read_text())
    assert report["command"] == "python examples/experiments/steps.py --fast"
    assert {row["seed"] for row in report["rows"]} == {0}
    assert [path.name for path in tmp_path.iterdir()] == ["steps.json"]
    assert "left out: series: " in capsys.readouterr().out


def test_errors_of_the_command_line(monkeypatch):
    for arguments, message in (
        (["nothing"], r"unknown experiments \['nothing'\]; known: sine, digits"),
        (["--fast"], "numbers that mean nothing: name another folder"),
        (["sine", "--neurons", "MSF"], "leaves out rows of the page: name another folder"),
        (["sine"], "`make results` measures what the page shows: name another folder with --out"),
    ):
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        with pytest.raises(SystemExit, match=message):
            run.main()


def test_those_of_hours_are_run_where_they_are_named(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(common, "report", lambda experiment, options: ran.append(experiment.__name__) or {})
    for arguments in ([], ["--fast"], ["smnist", "sine"]):
        monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), *arguments])
        run.main()
    short = [name for name in run.NAMES if name not in ("detection", "smnist")]
    assert ran == [*short, *run.NAMES, "smnist", "sine"]


# The training loop


def two_classes(n=64):
    """Which of two inputs is on, 6 steps."""
    y = torch.arange(n) % 2
    x = torch.zeros(6, n, 2)
    x[:, torch.arange(n), y] = 1.0
    return common.Data(x, y, x[:, : n // 2], y[: n // 2])


def test_training_learns_and_every_neuron_gets_the_same_start():
    data = two_classes()
    build = lambda neuron: SequenceNet(2, [16], 2, neuron)  # noqa: E731
    candidates = {"a": neurons.MSF(), "b": neurons.MSF(), "PMSN": neurons.PMSN()}
    rows = list(common.compare(build, candidates, data, common.Recipe(8, 16), range(2), task="x"))
    assert [row["accuracy"] for row in rows] == [100.0] * 6
    assert [row["seed"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert all(row["task"] == "x" for row in rows)
    same = [{k: v for k, v in row.items() if k not in ("neuron", "seconds")} for row in rows]
    assert same[0] == same[1]
    assert same[0]["spikes"] != same[2]["spikes"]
    # the control: without training it is guessing
    torch.manual_seed(0)
    assert common.evaluate(build(neurons.MSF()), data)["accuracy"] < 100


def test_spikes_are_sums_not_flags():
    model = nn.Sequential(neurons.MSF()(1))
    data = common.Data(
        torch.full((4, 3, 1), 3.0), torch.zeros(3).long(), torch.full((4, 3, 1), 3.0), torch.zeros(3).long()
    )
    assert common.evaluate(model, data) == {"accuracy": 100.0, "spikes": 3.0}


def test_a_table_of_means_and_ranges():
    class Experiment:
        KEYS = ("neuron",)
        VALUES = ("parameters", "accuracy", "seconds")

    rows = [
        {"neuron": "MSF", "parameters": 1234, "accuracy": a, "seconds": s}
        for a, s in ((80.0, 1.0), (90.0, 3.0))
    ] + [{"neuron": "weights of others", "parameters": 1234, "accuracy": 70.04}]
    assert common.table(Experiment, rows).splitlines() == [
        "| neuron            | parameters |    test accuracy, % | CPU seconds |",
        "| ----------------- | ---------: | ------------------: | ----------: |",
        "| MSF               |      1,234 | 85.0 (80.0 to 90.0) |  2 (1 to 3) |",
        "| weights of others |      1,234 |                70.0 |           - |",
    ]


# Data and measures


def test_the_published_sines():
    x, x_test = sine.data()
    assert x.shape == (300, 22_800, 1)
    assert x_test.shape == (300, 320, 1)
    draw = random.Random(42)
    amplitude = draw.uniform(1, 4)
    for _ in range(49):
        draw.uniform(1, 4)
    phase = draw.uniform(0, 2 * np.pi)
    n = np.arange(300)
    np.testing.assert_allclose(
        x[:, 0, 0], amplitude * np.sin(2 * np.pi * n / 8 + phase), rtol=1e-6, atol=1e-6
    )
    assert x.abs().max() <= 4
    # the first test signal begins at its top: phase pi/2
    assert abs(x_test[0, 0, 0] - x_test[:, 0].max()) < 1e-6
    signal = sine.varying()
    assert signal.shape == (300, 1, 1)
    at = 77
    expected = (1 + 3 * np.sin(7.7)) * np.sin(2 * np.pi * at / (80 + 5 * np.cos(3.85)))
    assert abs(signal[at, 0, 0] - expected) < 1e-6


def test_the_error_of_a_known_network():
    """Two ReLU units carry a signal without loss; a dead one leaves the signal's own power."""
    model = SineNet(neurons.ReLU(), hidden=2)
    with torch.no_grad():
        for layer, weight in ((model.fc1, [[1.0], [-1.0]]), (model.fc2, [[1.0, -1.0]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    x = sine.varying()
    assert sine.error(model, x) == 0
    with torch.no_grad():
        model.fc2.weight.zero_()
    assert sine.error(model, x) == pytest.approx(x.square().mean().item())


def test_pixels_in_order_and_in_the_published_kind_of_permutation():
    plain, shuffled = digits.sequences(), digits.sequences(permuted=True)
    images, _y, test_images, _ = digits.images()
    assert plain.x.shape == (64, 1347, 1)
    assert plain.x_test.shape == (64, 450, 1)
    assert_same(plain.x[:, 5, 0].reshape(8, 8), images[5])
    order = np.random.RandomState(1111).permutation(64)
    assert sorted(order) == list(range(64))
    for t in (0, 1, 63):
        assert_same(shuffled.x_test[t], plain.x_test[order[t]])
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(test_images) == 450


def test_one_frame_of_events_does_not_tell_left_from_right():
    """Run backwards, a digit that moves left is one that moves right: the same frames in another order."""
    images, *_ = digits.images()
    generator = torch.Generator().manual_seed(0)
    x, y = events.events(images[:200], generator)
    assert x.shape == (events.STEPS, 200, events.FIELD**2)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert set(y.tolist()) == {0, 1, 2, 3}

    def clean(direction, start):
        """Frames of one digit without noise, by rolling the field."""
        field = torch.zeros(events.FIELD, events.FIELD)
        field[:8, :8] = images[0]
        field = torch.roll(field, start, 1)
        steps = [torch.roll(field, direction * t, 1) for t in range(events.STEPS + 1)]
        return torch.stack(steps).diff(dim=0).abs() > 0.3

    right = clean(1, 0)
    left = clean(-1, events.STEPS)
    assert_same(left, right.flip(0).contiguous())
    # what the generator makes is this, up to 1 % of noise
    made, direction = events.events(images[:1].expand(64, -1, -1), torch.Generator().manual_seed(3))
    for i in range(64):
        if direction[i] == 1:
            frames = made[:, i].reshape(-1, events.FIELD, events.FIELD).bool()
            shifts = [
                (torch.roll(right, (a, b), (1, 2)) != frames).float().mean().item()
                for a in range(events.FIELD)
                for b in range(events.FIELD)
            ]
            assert min(shifts) < 0.03


def test_reach_of_the_gradient_by_hand():
    """The sliding PSN starts with weights 1, 1/2, 1/4 ..; 1/64 is the last above 1 %. ReLU has no memory."""
    norms, furthest = recall.reach(neurons.SlidingPSN(32), 64, 0)
    np.testing.assert_allclose(norms[:8], 0.5 ** np.arange(8), rtol=1e-5)
    assert furthest == 6
    assert recall.reach(neurons.ReLU(), 64, 0)[1] == 0
    # LIF without reset, tau = 2: the membrane halves every step
    norms, furthest = recall.reach(neurons.LIF(reset=False), 64, 0)
    np.testing.assert_allclose(norms[:8], 0.5 ** np.arange(8), rtol=1e-4)
    assert furthest == 6
    assert recall.reach(neurons.LIF(reset=False, tau=4.0), 64, 0)[1] == 16  # (3/4)**16 = 0.010023
    assert recall.reach(neurons.PMSN(), 64, 0)[1] > 32


def test_cues_stand_at_the_first_step_only():
    x, y = recall.cues(50, 9, torch.Generator().manual_seed(0))
    assert x.shape == (10, 50, 5)
    assert_same(x[0, :, :4].argmax(1), y)
    assert x[1:, :, :4].abs().max() == 0
    assert x[:, :, 4].std() > 0.8


def test_gradient_norms_of_a_chain_by_hand():
    """Without norms and neurons a block is its matrix: the gradient is the product of their transposes."""
    torch.manual_seed(0)
    model = depth.DeepNet(3, lambda width: nn.Identity(), shortcut=False, features=5, width=4, classes=3)
    model.norms = nn.ModuleList(nn.Identity() for _ in range(3))
    x, y = torch.randn(1, 6, 5), torch.arange(6) % 3
    norms = depth.gradient_norms(model, x, y)
    h = model.encoder(x[0])
    for linear in model.linears:
        h = linear(h)
    h = h.detach().requires_grad_()
    nn.functional.cross_entropy(model.decoder(h), y).backward()
    g, expected = h.grad, []
    for linear in reversed(model.linears):
        g = g @ linear.weight
        expected.insert(0, g.norm().item())
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


def test_a_deep_residual_net_starts_near_the_identity():
    torch.manual_seed(0)
    model = depth.DeepNet(16, neurons.MSF(), shortcut=True)
    assert all(norm.weight[0].item() == pytest.approx(0.2) for norm in model.norms)
    plain = depth.DeepNet(16, neurons.MSF(), shortcut=False)
    x, y = torch.rand(2, 32, 64), torch.arange(32) % 10
    with_shortcut, without = (depth.gradient_norms(net, x, y) for net in (model, plain))
    assert 0.5 < with_shortcut[0] / with_shortcut[-1] < 5
    assert len(without) == 16


def test_energy_of_a_sweep_is_the_formula():
    """Nobody fires: the encoder's MACs, 8 (n - 1) for each PMSN update, the decoder on zeros."""
    model = digits.build(neurons.PMSN(3))
    with torch.no_grad():
        for norm in model.norms:
            norm.weight.zero_()
            norm.bias.fill_(0.0)
    x = torch.rand(64, 5, 1)
    macs = 64 * 64 + 3 * 64 * 64 * 8 * 2
    assert sweep.nanojoules(model, x) == pytest.approx(macs * 4.6e-3)


def test_sweeps_draw_their_curves():
    pytest.importorskip("matplotlib").use("agg")
    rows = [
        {"neuron": "PMSN", "size": f"n = {n}", "energy": 100.0 * n, "accuracy": 50.0 + n + seed}
        for n in (2, 5)
        for seed in (0, 2)
    ]
    axes = sweep.plot(rows)
    (line,) = axes.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[200, 0.53], [500, 0.56]], rtol=1e-6)
    assert line.get_label() == "PMSN, n = 2, n = 5"
    assert not axes.texts
    more = [*rows, {"neuron": "PMSN", "size": "n = 9", "energy": 900.0, "accuracy": 60.0}]
    axes = sweep.plot([*more, {"neuron": "LIF", "size": "-", "energy": 90.0, "accuracy": 20.0}])
    assert [line.get_label() for line in axes.get_lines()] == ["PMSN", "LIF"]
    assert [text.get_text() for text in axes.texts] == ["n = 2", "n = 5", "n = 9"]


CONFIG = """\
model:
  network:
    class_path: recipes.models.SequenceNet
    init_args:
      in_features: 2
      hidden: [8, 8]
      classes: 3
      neuron: {class_path: recipes.neurons.PMSN, init_args: {coeff: 0.2}}
data: {class_path: recipes.data.sines.Sines}
"""


def test_a_sweep_changes_the_compartments_alone(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    path = "--model.network.init_args.neuron"
    assert sweep.overrides(config, neurons.PMSN(9)) == [f"{path}.init_args.compartments", "9"]
    name, line = sweep.overrides(config, neurons.SlidingPSN(8))
    assert (name, json.loads(line)) == (
        path,
        {"class_path": "recipes.neurons.SlidingPSN", "init_args": {"k": 8}},
    )
    config.write_text(CONFIG.replace("neurons.PMSN", "neurons.MSF"))
    assert json.loads(sweep.overrides(config, neurons.PMSN(9))[1])["init_args"]["compartments"] == 9


def test_a_sweep_of_a_configuration_trains_tests_and_goes_on(tmp_path, monkeypatch):
    """train.py is played here: it leaves a log of the accuracy, the configuration and a checkpoint."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    calls = []

    def played(command, check):
        calls.append(command)
        assert check
        folder = Path(command[command.index("--out") + 1])
        log = folder / "logs" / f"version_{command[2] == 'test':d}"
        log.mkdir(parents=True)
        setting = command[command.index("--config") + 3]
        if command[2] == "fit":
            assert command[-4:-2] == ["--data.root", "here"]
            (log / "config.yaml").write_text(CONFIG.replace("coeff: 0.2", f"compartments: {setting}"))
            (log / "metrics.csv").write_text("step,val/acc\n1,0.5\n")
            model = SequenceNet(2, [8, 8], 3, neurons.PMSN(int(setting)))
            (folder / "checkpoints").mkdir()
            state = {f"network.{k}": v for k, v in model.state_dict().items()}
            torch.save({"state_dict": state}, folder / "checkpoints" / "best.ckpt")
        else:
            (log / "config.yaml").write_text((folder / "logs/version_0/config.yaml").read_text())
            (log / "metrics.csv").write_text("step,test/acc\n1,0.75\n")

    monkeypatch.setattr(sweep.subprocess, "run", played)
    signals = torch.randn(7, 5, 2)
    monkeypatch.setattr("recipes.data.sines.Sines.setup", lambda self, stage: None)
    monkeypatch.setattr("recipes.data.sines.Sines.test_dataloader", lambda self: [(signals,)])
    monkeypatch.setattr("recipes.data.sines.Sines.arrange", lambda self, batch: batch)
    candidates = {("PMSN", f"n = {n}"): neurons.PMSN(n) for n in (2, 5)}
    out = tmp_path / "out"
    rows = list(sweep.with_config(config, out, candidates, ["--data.root", "here"]))
    assert [command[2] for command in calls] == ["fit", "test"] * 2
    assert [(row["size"], row["accuracy"]) for row in rows] == [("n = 2", 75.0), ("n = 5", 75.0)]
    assert [row["parameters"] for row in rows] == [
        sum(p.numel() for p in SequenceNet(2, [8, 8], 3, neurons.PMSN(n)).parameters()) for n in (2, 5)
    ]
    assert 0 < rows[0]["energy"] < rows[1]["energy"]
    # an interrupted sweep goes on: what was tested is not trained again
    more = {**candidates, ("PMSN", "n = 3"): neurons.PMSN(3)}
    assert len(list(sweep.with_config(config, out, more, ["--data.root", "here"]))) == 3
    assert len(calls) == 6


def series_of(*lengths):
    generator = np.random.default_rng(0)
    return [generator.normal(5.0, 3.0, (2, n)) for n in lengths]


def test_series_of_unequal_length_are_standardised_and_padded():
    train = series_of(4, 7), np.array(["b", "a"])
    test = series_of(9, 3), np.array(["a", "b"])
    task = series.data(train, test)
    assert task.x.shape == (9, 2, 2)  # the longest of both sets
    assert task.lengths.tolist() == [4, 7]
    assert task.lengths_test.tolist() == [9, 3]
    assert task.y.tolist() == [1, 0]
    assert task.y_test.tolist() == [0, 1]
    everything = torch.cat([task.x[:4, 0], task.x[:7, 1]])
    torch.testing.assert_close(everything.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(everything.std(0, correction=0), torch.ones(2))
    assert task.x[4:, 0].abs().max() == 0
    equal = series.data((series_of(5, 5), np.array(["a", "b"])), (series_of(5, 5), np.array(["a", "b"])))
    assert equal.lengths is None


def test_series_without_aeon_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aeon.datasets", None)
    with pytest.raises(common.Unavailable, match="pip install --no-deps aeon"):
        list(series.runs(common.Options(fast=True, seeds=1)))


# The page


def test_the_pages_are_made_of_the_files():
    for path in (run.PAGE, *run.ELSEWHERE.values()):
        page = path.read_text()
        assert run.with_tables(page, run.OUT, path) == page
    assert {path.stem for path in run.OUT.glob("*.json")} <= set(run.NAMES)


def test_a_changed_number_changes_the_page(tmp_path):
    done = json.loads((run.OUT / "sine.json").read_text())
    done["rows"][0]["last"] *= 2
    (tmp_path / "sine.json").write_text(json.dumps(done))
    page = run.PAGE.read_text()
    assert run.with_tables(page, tmp_path) != page
    with pytest.raises(SystemExit, match="expected one pair of markers for sine, found 0"):
        run.with_tables("# Experiments", tmp_path)


def test_a_neuron_in_the_place_of_the_hosts_learns_as_it_does():
    """As docs/defaults.md says: within three points with the hosts' defaults, far below with the paper's constants."""
    rows = json.loads((run.OUT / "defaults.json").read_text())["rows"]
    for kind in ("counts", "membranes"):
        by_name = {}
        for row in rows:
            if kind in row:
                by_name.setdefault(row["neuron"], []).append(row[kind])
        mean = {name: sum(values) / len(values) for name, values in by_name.items()}
        for host, ours in (("Leaky(0.9)", "MSF({}D={})"), ("LIFNode()", "MSFNode({}D={})")):
            if host not in mean:
                continue
            for D in (1, 4):
                name = ours.format("0.9, " if host.startswith("Leaky") else "", D)
                assert mean[name] > mean[host] - 3
            assert mean[ours.split("(")[0] + ".published(D=4)"] < mean[host] - 20


def test_what_was_obtained_is_what_the_page_promises():
    """Seed 42, that of the published code, gives what its weights give; MSF is far better in every seed."""
    rows = json.loads((run.OUT / "sine.json").read_text())["rows"]
    best = {(row["neuron"], row.get("seed")): row["best"] for row in rows}
    assert len(best) == 8
    assert best["LIF, published weights", None] == pytest.approx(0.089540, abs=1e-6)
    assert best["MSF, published weights", None] == pytest.approx(0.006645, abs=1e-6)
    assert best["LIF", 42] == pytest.approx(0.08954, rel=0.01)
    assert best["MSF", 42] == pytest.approx(0.006645, rel=0.05)
    for seed in (42, 43, 44):
        assert best["MSF", seed] < best["LIF", seed] / 8
