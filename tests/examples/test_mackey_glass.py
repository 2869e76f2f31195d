"""NeuroBench's Mackey-Glass task: the series, the network, the forecast on its own answers, the figures."""
# ruff: noqa: E402

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("neurobench", "lightning", "spikingjelly", "torchvision"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import mackey_glass
from recipes import RecipeError, neurons
from recipes.data import chaos
from recipes.models import Forecaster

from msf_pmsn_plugins import state

GOLDEN = Path(__file__).parents[1] / "golden" / "mackey_glass.npz"


@pytest.mark.parametrize("step", [0.05, 0.025])
def test_the_series_is_the_golden_one(step):
    golden = np.load(GOLDEN, allow_pickle=False)
    x = np.array(chaos.mackey_glass(golden["t"].tolist(), step=step))
    np.testing.assert_allclose(x, golden["x"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(x[:201], golden["x"][:201], rtol=0, atol=1e-7)


def test_the_series_between_the_steps_and_before_it_bends():
    """Up to t = 17 the delayed value is constant: a linear equation, solved by hand."""
    t = np.array([0.0, 0.01, 1.2345, 16.99])
    past = 0.7206597
    limit = 10 * 0.2 * past / (1 + past**10)
    exact = limit + (past - limit) * np.exp(-0.1 * t)
    np.testing.assert_allclose(chaos.mackey_glass(t.tolist()), exact, rtol=0, atol=1e-11)
    assert chaos.mackey_glass([]) == []
    with pytest.raises(ValueError, match=r"step must divide the delay of 17, got 0\.3"):
        chaos.mackey_glass([1.0], step=0.3)


def test_points_are_75_in_a_lyapunov_time_and_shift_by_half():
    x = chaos.points(80)
    assert x.shape == (80, 1)
    assert x.dtype == torch.float64
    assert x[75, 0].item() == pytest.approx(chaos.mackey_glass([197.0])[0], abs=1e-12)
    torch.testing.assert_close(chaos.points(10, 37), x[37:47], rtol=0, atol=1e-12)
    data = chaos.MackeyGlass(series=1)
    torch.testing.assert_close(data.points[:10], chaos.points(10, 37).float())


def test_training_validation_and_test_share_no_target():
    data = chaos.MackeyGlass(window=20)
    data.points = torch.arange(1501.0).unsqueeze(1)  # each point tells its number
    data.setup()
    seen = {}
    for split in ("train", "val", "test"):
        x, y = data.arrange(data.collate([data.samples[split][i] for i in range(len(data.samples[split]))]))
        assert x.shape == y.shape
        assert x.shape[0] == 20
        assert torch.equal(x[1:], y[:-1]), "y is x one point later"
        seen[split] = set(y.flatten().tolist())
    assert not seen["train"] & seen["val"]
    assert not (seen["train"] | seen["val"]) & seen["test"]
    assert len(seen["test"]) == 750 // 20 * 20
    for wrong in ({"window": 0}, {"window": 75}, {"series": -1}):
        with pytest.raises(RecipeError, match=r"data\.(window|series) must"):
            chaos.MackeyGlass(**wrong)


@pytest.mark.parametrize("neuron", mackey_glass.NEURONS)
def test_the_forecast_goes_on_from_the_known_points_on_its_own_answers(neuron):
    torch.manual_seed(0)
    net = Forecaster([8, 8], mackey_glass.NEURONS[neuron]).eval()
    series = chaos.points(40).float()
    known, new = series[:30], series[30:]
    forecast = mackey_glass.Forecast(net, known)
    with torch.no_grad():
        answers = forecast(net, new.unsqueeze(1))
        neurons.reset(net)
        # by hand: everything so far is given again and again
        given = series[:31]
        for _ in range(len(new)):
            neurons.reset(net)
            given = torch.cat([given, net(given.unsqueeze(1))[-1]])
    neurons.reset(net)
    torch.testing.assert_close(answers, given[31:], rtol=1e-5, atol=1e-6)
    later = new.clone()
    later[1:] = 7.0
    with torch.no_grad():
        assert torch.equal(forecast(net, later.unsqueeze(1)), answers), "only the first point is looked at"
    neurons.reset(net)
    assert not state.read(net)


def test_the_command_prints_and_writes_neurobenchs_figures(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["mackey_glass.py", "--fast", "--json", str(out)])
    mackey_glass.main()
    rows, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["neuron"] for row in rows] == ["LIF", "MSF", "PMSN"]
    for row in rows:
        assert 0 < row["SMAPE"] <= 200
        assert row["ParameterCount"] == (521 if row["neuron"] == "PMSN" else 105)
        # a real input to 8 neurons; all else are counts
        assert row["SynapticOperations"]["Effective_MACs"] == 8
        assert row["SynapticOperations"]["Dense"] == 8 + 64 + 16
        assert 0 < row["MembraneUpdates"] <= 16
        assert f"| {row['neuron']} | 1 | {row['SMAPE']:.1f}" in printed
    assert f"the mean of the training points | 1 | {rows[0]['constant']:.1f}" in printed
    assert "not done" not in printed
    known, new = chaos.points(100).float(), chaos.points(20, 101).float()
    mean = known.mean()
    assert rows[0]["constant"] == pytest.approx(
        200 * float(((mean - new).abs() / (mean + new)).mean()), rel=1e-5
    )


def test_a_command_that_was_ended_goes_on(tmp_path, monkeypatch, capsys):
    """Series by series; what is in the file is not computed again, and ends as if it had never stopped."""
    ran = []

    def run(neuron, number, epochs, fast):
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append((neuron, number))
        figures = {"SMAPE": 10.0 + number, "loss": 0.01, "constant": 20.0 + number, "ParameterCount": 7}
        figures |= {
            "SynapticOperations": {"Effective_MACs": 1, "Effective_ACs": 2},
            "ActivationSparsity": 0.5,
        }
        figures |= {"NeuronOperations": {"Effective Neuron Ops": 3}, "seconds": 0.0}
        return {"neuron": neuron, "series": number, "epochs": epochs, "points": 750} | figures

    def command(*given):
        out = ["--json", str(tmp_path / "rows.json"), "--neurons", "PMSN", "LIF", "--series", "3", *given]
        monkeypatch.setattr(sys, "argv", ["mackey_glass.py", *out])
        mackey_glass.main()
        return capsys.readouterr().out

    monkeypatch.setattr(mackey_glass, "run", run)
    with pytest.raises(KeyboardInterrupt):
        command()
    assert ran == [("PMSN", 0), ("LIF", 0), ("PMSN", 1), ("LIF", 1)]
    printed = command("--minutes", "0")
    assert "2 of 6 are not done; the same command goes on." in printed
    assert "| PMSN | 2 | 10.5 (10.0 to 11.0) |" in printed
    ran.clear()
    printed = command()
    assert ran == [("PMSN", 2), ("LIF", 2)]
    assert "not done" not in printed
    assert printed.index("| PMSN | 3 |") < printed.index("| LIF | 3 | 11.0 (10.0 to 12.0)")
    assert "| a constant, the mean of the training points | 3 | 21.0 (20.0 to 22.0) |" in printed
    (tmp_path / "rows.json").unlink()
    ran.clear()
    printed = command("--neurons", "LIF", "LIF", "--series", "1")
    assert ran == [("LIF", 0)], "a name given twice is one row"
    assert "| LIF | 1 | 10.0 (10.0 to 10.0) | 0.1000 |" in printed
    assert "| training RMSE |" in printed, "it is the loss of the last epoch"
    with pytest.raises(
        SystemExit, match=r"rows\.json has rows of 100 epochs on 750 points; give another file"
    ):
        command("--epochs", "7")
    (tmp_path / "rows.json").write_text('{"seconds": 1}')
    with pytest.raises(SystemExit, match=r"rows\.json holds no rows of this command"):
        command()
    assert {path.name for path in tmp_path.iterdir()} == {"rows.json"}


def test_the_error_is_neurobenchs():
    """sMAPE of the answers, computed here."""
    torch.manual_seed(0)
    net = Forecaster([8, 8], neurons.MSF())
    series = chaos.points(41).float()
    found = mackey_glass.benchmark(net, series, 10)["SMAPE"]
    with torch.no_grad():
        answers = mackey_glass.Forecast(net, series[:30])(net, series[30:40].unsqueeze(1))
    neurons.reset(net)
    true = series[31:]
    assert found == pytest.approx(
        200 * float(((answers - true).abs() / (answers.abs() + true.abs())).mean()), rel=1e-5
    )


def test_training_learns():
    torch.manual_seed(0)
    net = Forecaster([8, 8], neurons.PMSN())
    series = chaos.points(150).float()
    first = mackey_glass.train(net, series, 1)
    assert mackey_glass.train(net, series, 100) < first / 2


@pytest.mark.parametrize("given", [["--series", "0"], ["--epochs", "0"]])
def test_wrong_numbers_are_said(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mackey_glass.py", *given])
    with pytest.raises(SystemExit, match="--series and --epochs must be at least 1"):
        mackey_glass.main()
