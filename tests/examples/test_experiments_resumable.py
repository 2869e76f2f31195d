"""Experiments of hours: rows that stay, trainings that go on to the same bits, reports that are not continued."""
# ruff: noqa: E402

import json
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

for needed in ("spikingjelly", "sklearn", "lightning"):
    pytest.importorskip(needed)
EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "experiments")]

import common
import detection
import resumable
import run
import smnist
from recipes import neurons
from resumable import Beginning, Checkpoint, Job, provenance

from tolerances import assert_same


class Killed(BaseException):
    """What happens in the middle of a training."""


# A training


def sequences():
    """20 steps of one number; which half is louder."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(24) % 2
    x = torch.rand(20, 24, 1, generator=generator)
    x[:10] += y[None, :, None]
    return common.Data(x, y, x[:, :8], y[:8])


def killed_in(monkeypatch, module, name, call, after):
    """Make the ``call``-th call of a part of a training end, after its work or after that of a later update."""
    real, calls = getattr(module, name), []

    def part(*arguments):
        calls.append(None)
        real(*arguments)
        if len(calls) == call + 1 and after:
            real(*arguments)
        if len(calls) == call + 1:
            raise Killed

    monkeypatch.setattr(module, name, part)
    return calls


@pytest.mark.parametrize(
    "neuron", [neurons.LIF(), neurons.MSF(), neurons.PMSN(), neurons.SlidingPSN(4)], ids=repr
)
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_resumed_smnist_row_equals_that_of_one_go_to_the_bit(neuron, epoch, tmp_path, monkeypatch):
    weights = []
    real = common.evaluate

    def evaluate(model, data):
        weights.append(model.state_dict())
        return real(model, data)

    monkeypatch.setattr(common, "evaluate", evaluate)
    monkeypatch.setattr(
        smnist, "build", lambda neuron: smnist.SequenceNet(1, [8, 8], 10, neuron, dropout=0.5)
    )
    data, checkpoint = sequences(), Checkpoint(tmp_path / "place", "this")

    def row(kept):
        measured = smnist.row(data, neuron, 3, 4, kept)
        assert measured.pop("seconds") > 0
        return measured

    whole = row(Checkpoint())
    with monkeypatch.context() as patch:
        calls = killed_in(patch, smnist, "epoch", epoch, after=True)
        with pytest.raises(Killed):
            row(checkpoint)
        assert len(calls) == epoch + 1
    with monkeypatch.context() as patch:
        calls = killed_in(patch, smnist, "epoch", 99, after=False)
        torch.manual_seed(0)  # another process has drawn other numbers
        resumed = row(checkpoint)
        assert len(calls) == 4 - epoch
    assert resumed == whole
    once, twice = weights
    assert once.keys() == twice.keys()
    for name in once:
        assert_same(once[name], twice[name])
    assert torch.load(tmp_path / "place")["done"] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_the_beginning_of_a_training_does_not_depend_on_how_its_weights_lie(dtype):
    """The published neuron trains the real parts of complex tensors: every second number of the memory."""

    def weights(value):
        beginning = Beginning()
        beginning.write({"parts": 1, "schedule": {}, "model": {"w": value}})
        return beginning.weights

    values = torch.arange(24.0).reshape(4, 6).to(dtype)
    expected = weights(values[:, 0].clone())
    assert weights(values[:, 0]) == expected
    assert weights(values.t()) == weights(values.t().clone(memory_format=torch.contiguous_format))
    assert weights(values[:, 1]) != expected
    assert weights(torch.ones((), dtype=dtype)) != weights(torch.zeros((), dtype=dtype))


def test_without_its_random_numbers_a_training_is_another(tmp_path, monkeypatch):
    monkeypatch.setattr(
        smnist, "build", lambda neuron: smnist.SequenceNet(1, [8, 8], 10, neuron, dropout=0.5)
    )
    monkeypatch.setattr(common, "evaluate", lambda model, data: {"weight": model.encoder.weight.sum().item()})
    checkpoint = Checkpoint(tmp_path / "place", "this")
    with monkeypatch.context() as patch:
        killed_in(patch, smnist, "epoch", 1, after=False)
        with pytest.raises(Killed):
            smnist.row(sequences(), neurons.MSF(), 3, 4, checkpoint)
    place = torch.load(tmp_path / "place")
    whole = smnist.row(sequences(), neurons.MSF(), 3, 4, Checkpoint())
    for name, other in (("random", torch.get_rng_state()), ("order", torch.Generator().get_state())):
        torch.save({**place, name: other}, tmp_path / "place")
        assert smnist.row(sequences(), neurons.MSF(), 3, 4, checkpoint)["weight"] != whole["weight"]


def test_a_resumed_detection_row_equals_that_of_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "PARTS", 2)
    monkeypatch.setattr(detection, "PART", 1)
    monkeypatch.setattr(detection, "BATCH", 2)
    total = lambda net, data: {"sum": sum(p.double().sum().item() for p in net.parameters())}  # noqa: E731
    monkeypatch.setattr(detection, "evaluate", total)
    data, checkpoint = detection.load("digits", True, tmp_path), Checkpoint(tmp_path / "place", "this")
    row = lambda kept: detection.row(data, {"steps": 1}, "MSF", 0, False, kept)  # noqa: E731
    whole = row(Checkpoint())
    with monkeypatch.context() as patch:
        killed_in(patch, detection, "train", 1, after=False)
        with pytest.raises(Killed):
            row(checkpoint)
    resumed = row(checkpoint)
    assert resumed["sum"] == whole["sum"]
    assert resumed["parameters"] == whole["parameters"]


def test_the_place_of_another_training_is_not_taken_up(tmp_path, capsys):
    Checkpoint(tmp_path / "place", "this").write({"done": 3})
    assert Checkpoint(tmp_path / "place", "this").read()["done"] == 3
    assert Checkpoint(tmp_path / "place", "that").read() is None
    assert "place is of another training, which is not continued" in capsys.readouterr().out
    Checkpoint(tmp_path / "place", "that").remove()
    assert list(tmp_path.iterdir()) == []
    assert Checkpoint().read() is None


# A report


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """An experiment of two neurons whose runs are counted, and which is killed at the run ``kill``."""
    (tmp_path / "source.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "SOURCES", {"experiments/toy": ("source.py",)})
    machine(monkeypatch, "AVX2")
    calls = []

    def jobs(options):
        for seed in range(options.seeds):
            for neuron in ("LIF", "MSF"):

                def run(checkpoint, neuron=neuron, seed=seed):
                    calls.append((neuron, seed))
                    if len(calls) == toy.kill:
                        raise Killed
                    return {"neuron": neuron, "accuracy": 10.0 * seed}

                yield Job({"neuron": neuron, "seed": seed}, run, in_parts=False)

    toy = SimpleNamespace(__file__="toy.py", TITLE="Toy", KEYS=("neuron",), VALUES=("accuracy",), SEEDS=3)
    toy.jobs, toy.calls, toy.kill, toy.path = jobs, calls, 0, tmp_path / "toy.json"
    toy.runs = lambda options: resumable.rows(jobs(options))
    toy.source = tmp_path / "source.py"
    return toy


def machine(monkeypatch, instructions, cpu="a CPU"):
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine(cpu, instructions, "abc"))


def measured(toy, **options):
    resumable.go_on(toy, common.Options(**options), toy.path)
    return json.loads(toy.path.read_text())


def test_rows_are_written_as_they_finish_and_a_second_start_goes_on(toy, monkeypatch):
    toy.kill = 4
    with pytest.raises(Killed):
        measured(toy)
    report = json.loads(toy.path.read_text())
    assert [(row["neuron"], row["seed"]) for row in report["rows"]] == [("LIF", 0), ("MSF", 0), ("LIF", 1)]
    assert [(row["neuron"], row["seed"]) for row in report["unfinished"]] == [
        ("MSF", 1),
        ("LIF", 2),
        ("MSF", 2),
    ]
    toy.calls.clear()
    toy.kill = 0
    machine(monkeypatch, "AVX2", cpu="B CPU")
    done = measured(toy)
    assert toy.calls == [("MSF", 1), ("LIF", 2), ("MSF", 2)]
    assert "unfinished" not in done
    assert done["measured"] == {
        "commit": "abc",
        "cpu": "B CPU and a CPU",
        "instructions": ["AVX2"],
        "threads": [torch.get_num_threads()],
        "sources": provenance.digest("experiments/toy"),
    }
    assert done["seconds"] > report["seconds"]
    assert done["command"] == "python examples/experiments/toy.py --seeds 3"
    # as in one go
    plain = common.report(toy, common.Options())
    assert [{**row, "instructions": "AVX2"} for row in plain["rows"]] == done["rows"]
    # and nothing is left to do
    toy.calls.clear()
    assert measured(toy)["rows"] == done["rows"]
    assert toy.calls == []


def test_another_instruction_set_gives_rows_of_its_own(toy, monkeypatch):
    assert len(measured(toy, seeds=1)["rows"]) == 2
    machine(monkeypatch, "AVX512")
    toy.kill = 4
    with pytest.raises(Killed):
        measured(toy, seeds=1)
    report = json.loads(toy.path.read_text())
    assert report["unfinished"] == [{"neuron": "MSF", "seed": 0, "instructions": "AVX512"}]
    toy.kill = 0
    report = measured(toy, seeds=1)
    assert [(row["neuron"], row["instructions"]) for row in report["rows"]] == [
        ("LIF", "AVX2"),
        ("LIF", "AVX512"),
        ("MSF", "AVX2"),
        ("MSF", "AVX512"),
    ]
    assert report["measured"]["instructions"] == ["AVX2", "AVX512"]


def test_in_a_table_of_hours_a_row_with_any_instruction_set_will_do(toy, monkeypatch):
    monkeypatch.setattr(provenance, "LONG", ("experiments/toy",))
    toy.kill = 2
    with pytest.raises(Killed):
        measured(toy, seeds=1)
    machine(monkeypatch, "AVX512")
    toy.kill = 0
    report = measured(toy, seeds=1)
    assert [(row["neuron"], row["instructions"]) for row in report["rows"]] == [
        ("LIF", "AVX2"),
        ("MSF", "AVX512"),
    ]
    assert report["measured"]["instructions"] == ["AVX2", "AVX512"]
    assert "unfinished" not in report
    said = run.with_each_set(toy.KEYS, report["rows"])
    assert not said


def test_more_seeds_are_added_to_those_that_are_there(toy):
    measured(toy, seeds=1)
    toy.calls.clear()
    report = measured(toy, seeds=2)
    assert toy.calls == [("LIF", 1), ("MSF", 1)]
    assert [row["seed"] for row in report["rows"]] == [0, 0, 1, 1]


@pytest.mark.parametrize("change", ["sources", "threads", "toy size", "versions"])
def test_a_report_of_other_sources_or_settings_is_not_continued(change, toy):
    report = measured(toy, seeds=1)
    if change == "sources":
        toy.source.write_text("x = 2\n")
    elif change == "threads":
        toy.path.write_text(json.dumps({**report, "threads": 7}))
    elif change == "versions":
        toy.path.write_text(json.dumps({**report, "versions": {**report["versions"], "torch": "1.0"}}))
    before = toy.path.read_text()
    why = (
        "does not say how the training of neuron LIF, seed 0 began with AVX2"
        if change in ("sources", "versions")
        else f"no training is the same with other {change}"
    )
    with pytest.raises(
        resumable.Other, match=rf"of other sources or settings \({change} .*, now .*\).*{why}. Move it away"
    ):
        measured(toy, seeds=2, fast=change == "toy size")
    assert toy.path.read_text() == before


def test_sources_that_change_meanwhile_leave_the_report_as_it_was(toy):
    measured(toy, seeds=1)
    before = toy.path.read_text()
    jobs = toy.jobs

    def changing(options):
        for job in jobs(options):

            def run(kept, job=job):
                toy.source.write_text("x = 3\n")
                return job.run(kept)

            yield Job(job.labels, run, in_parts=False)

    toy.jobs = changing
    with pytest.raises(SystemExit, match="the sources of experiments/toy changed while it was measured"):
        measured(toy, seeds=2)
    assert toy.path.read_text() == before


def test_the_place_in_a_training_lies_beside_the_report_until_the_row_is_there(toy, monkeypatch):
    seen = []

    def jobs(options):
        def run(checkpoint):
            seen.append(checkpoint.read())
            checkpoint.write({"done": 1})
            if len(seen) == 1:
                raise Killed
            return {"accuracy": 1.0}

        yield Job({"neuron": "LIF", "seed": 0}, run, in_parts=False)

    toy.jobs = jobs
    with pytest.raises(Killed):
        measured(toy)
    assert not toy.path.exists()
    measured(toy)
    assert seen[0] is None
    assert seen[1]["done"] == 1
    assert [path.name for path in toy.path.parent.iterdir() if path.suffix != ".py"] == ["toy.json"]


@pytest.fixture
def trained(toy):
    """The toy as a training of two parts, whose numbers the file of its sources decides."""

    def jobs(options):
        for neuron, seed in product(("LIF", "MSF"), range(options.seeds)):

            def run(checkpoint, neuron=neuron, seed=seed):
                toy.calls.append((neuron, seed))
                rate = float(toy.source.read_text().split("=")[1])
                torch.manual_seed(seed)
                net = torch.nn.Linear(2, 1)
                optimizer = torch.optim.SGD(net.parameters(), rate if neuron == toy.concerned else 1.0)
                schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, toy.factor)
                training = resumable.Training(net, optimizer, schedule, torch.Generator())

                def part():
                    net(torch.ones(1, 2)).sum().backward()
                    optimizer.step()
                    schedule.step()

                training.run(toy.parts, part, checkpoint)
                return {"seconds": training.seconds, "accuracy": float(net.bias.detach())}

            yield Job({"neuron": neuron, "seed": seed}, run)

    toy.jobs, toy.concerned, toy.parts, toy.factor = jobs, "MSF", 2, 0.1
    return toy


def test_the_beginning_of_a_training_is_kept_for_every_line_of_the_table(trained):
    report = measured(trained, seeds=2)
    assert trained.calls == [("LIF", 0), ("LIF", 0), ("LIF", 1), ("MSF", 0), ("MSF", 0), ("MSF", 1)]
    begun = report["beginnings"]
    assert [(b["neuron"], b["seed"], b["instructions"]) for b in begun] == [
        ("LIF", 0, "AVX2"),
        ("MSF", 0, "AVX2"),
    ]
    assert all("seconds" not in b and len(b["weights"]) == 16 for b in begun)
    assert [b["accuracy"] for b in begun] != [row["accuracy"] for row in report["rows"] if row["seed"] == 0]


def test_rows_hold_when_their_trainings_begin_to_the_same_bits(trained, monkeypatch, capsys):
    before = measured(trained, seeds=1)
    trained.source.write_text("x =  1\n")
    trained.calls.clear()
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("a CPU", "AVX2", "def"))
    after = measured(trained, seeds=2)
    assert "neuron LIF, seed 0: does it begin as before?" in capsys.readouterr().out
    assert trained.calls == [("LIF", 0), ("MSF", 0), ("LIF", 1), ("MSF", 1)]  # no row anew
    assert [row for row in after["rows"] if row["seed"] == 0] == before["rows"]
    assert (after["measured"]["commit"], after["measured"]["since"]) == ("def", "abc")
    assert after["measured"]["sources"] == provenance.digest("experiments/toy")
    assert "commit def, with rows since abc" in provenance.line(after)
    # and once more, without a row to measure: the report is of the new sources, and the first commit stays
    monkeypatch.setattr(provenance.Machine, "here", lambda: provenance.Machine("a CPU", "AVX2", "ghi"))
    trained.source.write_text("x =   1\n")
    last = measured(trained, seeds=2)
    assert last["rows"] == after["rows"]
    assert (last["measured"]["commit"], last["measured"]["since"]) == ("ghi", "abc")
    assert last["measured"]["sources"] == provenance.digest("experiments/toy")
    trained.calls.clear()
    measured(trained, seeds=2)
    assert trained.calls == []


def test_what_began_with_the_set_of_this_cpu_stands_for_the_rows_of_all(trained, monkeypatch):
    monkeypatch.setattr(provenance, "LONG", ("experiments/toy",))
    measured(trained, seeds=1)
    machine(monkeypatch, "AVX512")
    trained.source.write_text("x =  1\n")
    with pytest.raises(resumable.Other, match="does not say how .* LIF, seed 0 began with AVX512"):
        measured(trained, seeds=1)
    report = json.loads(trained.path.read_text())
    report["beginnings"] += [{**row, "instructions": "AVX512"} for row in report["beginnings"]]
    trained.path.write_text(json.dumps(report))
    confirmed = measured(trained, seeds=1)
    assert [row["instructions"] for row in confirmed["rows"]] == ["AVX2", "AVX2"]
    assert provenance.line(confirmed).startswith("a CPU, AVX2, ")
    trained.calls.clear()
    trained.source.write_text("x =    1\n")
    report = measured(trained, seeds=2)
    assert trained.calls == [("LIF", 0), ("MSF", 0), ("LIF", 1), ("MSF", 1)]  # two beginnings, two rows
    assert [row["instructions"] for row in report["rows"]] == ["AVX2", "AVX512", "AVX2", "AVX512"]
    assert provenance.line(report).endswith(
        "commit abc, with rows since abc: their trainings begin to the same bits with AVX512"
    )
    report["beginnings"][-1]["weights"] = "another"
    trained.path.write_text(json.dumps(report))
    trained.source.write_text("x =   1\n")
    with pytest.raises(resumable.Other, match="the training of neuron MSF, seed 0 begins otherwise"):
        measured(trained, seeds=2)


@pytest.mark.parametrize("change", ["length", "schedule"])
def test_rows_of_a_training_that_goes_on_otherwise_are_not_continued(change, trained):
    measured(trained, seeds=1)
    trained.source.write_text("x =  1\n")
    if change == "length":
        trained.parts = 3
    else:
        trained.factor = 0.5
    with pytest.raises(resumable.Other, match="the training of neuron LIF, seed 0 begins otherwise"):
        measured(trained, seeds=1)


@pytest.mark.parametrize("concerned", ["LIF", "MSF"])
def test_rows_of_a_training_that_begins_otherwise_are_not_continued(concerned, trained):
    trained.concerned = concerned
    measured(trained, seeds=1)
    trained.source.write_text("x = 1.0000001\n")
    before = trained.path.read_text()
    with pytest.raises(resumable.Other, match=f"the training of neuron {concerned}, seed 0 begins otherwise"):
        measured(trained, seeds=2)
    assert trained.path.read_text() == before


def test_rows_that_a_start_cannot_repeat_stay_and_are_named(trained):
    measured(trained, seeds=1)
    trained.source.write_text("x =  1\n")
    before, jobs = trained.path.read_text(), trained.jobs
    trained.jobs = lambda options: (job for job in jobs(options) if job.labels["neuron"] == "LIF")
    with pytest.raises(SystemExit, match="was not asked for neuron MSF, seed 0"):
        measured(trained, seeds=1)
    assert trained.path.read_text() == before


def test_the_command_line_of_a_resumable_experiment(toy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--json", str(toy.path), "--seeds", "1"])
    resumable.main(toy)
    assert "Toy: 0 rows are there, 2 are asked for" in (said := capsys.readouterr().out)
    assert "  neuron LIF, seed 0\n" in said
    assert said.count("| LIF ") == 1
    toy.source.write_text("x = 2\n")
    with pytest.raises(SystemExit) as stopped:
        resumable.main(toy)
    assert stopped.value.code == provenance.OTHER_REPORT
    assert "Move it away, or name another file with --json" in capsys.readouterr().err
    toy.PUBLISHED = "a clone of somebody's"
    monkeypatch.setattr(sys, "argv", ["toy.py", "--help"])
    with pytest.raises(SystemExit):
        resumable.main(toy)
    assert "a clone of somebody's" in capsys.readouterr().out


def test_the_page_says_which_seeds_are_missing():
    def rows(*cells):
        return [{"neuron": neuron, "seed": seed} for neuron, seed in cells]

    partial = {"rows": rows(("LIF", 0), ("MSF", 0)), "unfinished": rows(("LIF", 1), ("MSF", 1))}
    assert run.unfinished(("neuron",), partial) == "1 of 2 seeds"
    partial = {"rows": rows(("LIF", 0), ("LIF", 1)), "unfinished": rows(("MSF", 0), ("MSF", 1))}
    assert run.unfinished(("neuron",), partial) == "MSF: 0 of 2 seeds"
    # of a table of hours each row is measured with one set, whichever the machine had
    partial["rows"][0]["instructions"] = "AVX512"
    assert run.unfinished(("neuron",), partial) == "MSF: 0 of 2 seeds"
    # others are repeated with each
    partial["unfinished"] += [{**row, "instructions": "AVX512"} for row in partial["unfinished"]]
    expected = "MSF: 0 of 4 runs (seeds with each instruction set)"
    assert run.unfinished(("neuron",), partial).endswith(expected)
