"""Runs in processes of their own: kill -9, several of them at once."""
# ruff: noqa: E402

import csv
import socket
from types import SimpleNamespace

import pytest
import torch

for name in ("lightning", "torchmetrics", "spikingjelly", "tonic", "torchvision", "timm"):
    pytest.importorskip(name)

import train
from recipes import RecipeError, resume
from recipes.data.sines import Sines

from fixtures.runs import arguments, ends, equal, kill, logged, start

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Lightning's hints about workers and logging intervals
    pytest.mark.usefixtures("command_line"),
]


@pytest.mark.slow
def test_signals_to_a_process_with_workers_then_resume(tmp_path, fixtures):
    """With workers that read ahead and get the signal too, and dropout; killed twice, stopped once."""
    given = ["--trainer.max_epochs=2", "--save_every=1", "--data.num_workers=2"]

    def run(out, *more):
        process = start("fit", *arguments("shd", out, fixtures, *given, *more))
        said = process.communicate(timeout=600)[0]
        return process.returncode, said

    code, said = run(tmp_path / "whole")
    assert code == 0, said
    killed = tmp_path / "killed"
    code, said = run(killed, kill(3, "on_train_batch_start", "SIGINT", group=True))
    assert code == 130, said
    assert "SIGINT: stops after this batch\nstopped by SIGINT; --ckpt_path last goes on" in said
    assert ends(killed)[2] == 4
    code, said = run(
        killed, "--ckpt_path=last", kill(5, "on_validation_batch_end", "SIGKILL")
    )  # 5 steps an epoch
    assert code == -9, said
    code, said = run(killed, "--ckpt_path=last", kill(7, "on_train_batch_start", "SIGKILL"))
    assert code == -9, said
    assert ends(killed)[2] == 7
    code, said = run(killed, "--ckpt_path=last")
    assert code == 0, said
    expected, got = ends(tmp_path / "whole"), ends(killed)
    assert got[1:] == expected[1:]
    assert equal(got[0], expected[0])
    assert logged(killed) == logged(tmp_path / "whole")


# -- several processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "two nodes"])
def test_two_processes_equal_one(launcher, tmp_path, fixtures):
    """The same global batches: weights and validation loss agree to the rounding of sums in another order."""
    given = ["--trainer.max_epochs=2", "--data.batch_size=32", "--data.amplitudes=1"]
    one, two = tmp_path / "one", tmp_path / "two"
    train.main(["fit", *arguments("sine", one, fixtures, *given)])
    given += ["--trainer.strategy=ddp", "--trainer.devices=2"]
    torchrun, port = ["-m", "torch.distributed.run"], free_port()
    if launcher == "lightning":
        launchers = [[]]
    elif launcher == "torchrun":
        launchers = [[*torchrun, "--nproc-per-node=2", f"--master-port={port}"]]
    else:
        given += ["--trainer.devices=1", "--trainer.num_nodes=2"]
        rendezvous = ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
        launchers = [[*torchrun, "--nnodes=2", f"--node-rank={rank}", *rendezvous] for rank in range(2)]
    started = [start("fit", *arguments("sine", two, fixtures, *given), launcher=each) for each in launchers]
    for process in started:
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
    expected, got = ends(one), ends(two)
    assert got[1:] == expected[1:]
    assert expected[2] == 2 * 15
    for key, value in expected[0].items():
        torch.testing.assert_close(got[0][key], value, rtol=1e-4, atol=1e-6)

    def losses(out):
        rows = [row for path in out.glob("logs/*/metrics.csv") for row in csv.DictReader(path.open())]
        return [float(row["val/loss"]) for row in rows if row["val/loss"]]

    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_signals_to_two_processes_then_resume(tmp_path, fixtures):
    """Each process goes on with its own order and dropout."""
    given = ["--trainer.max_epochs=2", "--save_every=1", "--trainer.strategy=ddp", "--trainer.devices=2"]

    def run(out, *more):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        process = start("fit", *arguments("shd", out, fixtures, *given, *more), launcher=launcher)
        said = process.communicate(timeout=600)[0]
        return process.returncode, said

    code, said = run(tmp_path / "whole")
    assert code == 0, said
    expected = ends(tmp_path / "whole")
    middle = expected[2] // 2 + 1
    assert middle < expected[2]
    code, said = run(tmp_path / "killed", kill(middle, "on_train_batch_start", "SIGKILL"))
    assert code != 0
    assert "SIGKILL" in said
    assert ends(tmp_path / "killed")[2] == middle
    # SIGTERM to one of them stops both at the same batch
    code, said = run(
        tmp_path / "killed", "--ckpt_path=last", kill(middle, "on_train_batch_start", "SIGTERM", rank=1)
    )
    assert code != 0
    assert "stopped by SIGTERM" in said
    assert ends(tmp_path / "killed")[2] == middle + 1
    code, said = run(tmp_path / "killed", "--ckpt_path=last")
    assert code == 0, said
    got = ends(tmp_path / "killed")
    assert got[1:] == expected[1:]
    assert equal(got[0], expected[0])


def test_processes_draw_numbers_of_their_own_and_get_them_back():
    def process(rank, world=2):
        return SimpleNamespace(global_rank=rank, world_size=world)

    draws, states = [], []
    for rank in range(2):
        torch.manual_seed(3)
        numbers = resume.RandomNumbers()
        numbers.on_train_start(process(rank), None)
        states += numbers.state_dict()["processes"]
        draws.append(torch.rand(()).item())
    torch.manual_seed(3)
    assert draws[0] == torch.rand(()).item() != draws[1]
    for rank in range(2):
        numbers.load_state_dict({"processes": states})
        numbers.on_train_batch_start(process(rank), None, None, 0)
        assert torch.rand(()).item() == draws[rank]
    numbers.load_state_dict({"processes": states})
    with pytest.warns(UserWarning, match="of 2 processes, now there are 4"):
        numbers.on_train_batch_start(process(0, world=4), None, None, 0)


def test_batch_size_must_divide_among_processes():
    data = Sines(batch_size=3)
    data.setup()
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)
    with pytest.raises(RecipeError, match="3 does not divide among 2"):
        data.train_dataloader()
