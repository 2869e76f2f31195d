"""The script of docs/several_gpus.md, run by torchrun in two processes on the CPU, gives what one process gives."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("spikingjelly")
if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)

PAGE = (Path(__file__).parents[2] / "docs" / "several_gpus.md").read_text(encoding="utf-8")
SCRIPT, SHARD = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
WIDE = "import torch\n\ntorch.set_default_dtype(torch.float64)\n"  # so that rounding moves no spike


def torchrun(folder, script, processes):
    """What the script prints."""
    folder.mkdir()
    (folder / "train.py").write_text(script.replace("import torch\n", WIDE, 1))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with batches twice as large: what it prints, and its weights."""
    folder, printed, namespace = tmp_path_factory.mktemp("alone"), io.StringIO(), {}
    exec(compile(SCRIPT.replace("BATCH = 16", "BATCH = 32"), "several_gpus.md", "exec"), namespace)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_default_dtype(torch.float64)
    try:
        with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
            namespace["train"](torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
        dist.destroy_process_group()
    return printed.getvalue(), torch.load(folder / "net.pt")


def test_two_processes_give_what_one_gives(alone, tmp_path):
    printed, weights = alone
    assert torchrun(tmp_path / "run", SCRIPT, 2) == printed
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    found = torch.load(tmp_path / "run" / "net.pt")
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_sharded_parameters_give_the_same_losses(alone, tmp_path):
    script = SCRIPT.replace("DistributedDataParallel(net)", "shard(net)", 1)
    script = script.replace('torch.save(net.state_dict(), "net.pt")', "pass").replace(
        "\ndef train(", f"{SHARD}\n\ndef train("
    )
    assert "DistributedDataParallel(" not in script
    assert torchrun(tmp_path / "run", script, 2) == alone[0]
