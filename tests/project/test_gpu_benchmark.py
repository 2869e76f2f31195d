"""The benchmark of a GPU, as far as it can be shown without one."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from msf_pmsn_plugins import backends

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


@pytest.fixture
def works(monkeypatch):
    """A GPU's backends: where each is installed, why it does not work."""

    def table(**reasons):
        ours = {}
        for name, backend in backends.BACKENDS.items():
            needs = "torch" if name in reasons else "no_such_library"
            ours[name] = replace(backend, needs=needs) if backend.device == "cuda" else backend
        monkeypatch.setattr(backends, "BACKENDS", ours)
        monkeypatch.setattr(backends, "unusable", lambda name: reasons.get(name, ""))
        backends._choose.cache_clear()

    yield table
    backends._choose.cache_clear()


def test_all_backends_that_work_are_measured(gpu, works):
    works(cupy="", triton="")
    assert gpu.backends_of(CUDA) == ["cupy", "triton"]
    works(cupy="CuPy is for another CUDA", triton="")
    assert gpu.backends_of(CUDA) == ["triton"]


def test_what_is_missing_is_said(gpu, works):
    works(triton="Triton needs a C compiler: apt install gcc")
    with pytest.raises(SystemExit, match=r"(?s)'cupy': .*pip install.*'triton': .*apt install gcc"):
        gpu.backends_of(CUDA)
    with pytest.raises(SystemExit, match=r"'numba' runs on 'cpu' tensors|runs on 'cuda' tensors"):
        gpu.backends_of(torch.device("cpu"), ["cupy"])
    with pytest.raises(SystemExit, match="unknown backend 'cuda'; known: 'auto', 'numba', 'cupy', 'triton'"):
        gpu.backends_of(torch.device("cpu"), ["cuda"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device, which it would measure")
def test_without_a_device_it_says_so(gpu):
    with pytest.raises(SystemExit, match="no CUDA device: this measures one. `--rehearse`"):
        gpu.main(["--only", "msf"])


class FakeCUDA:
    """torch.cuda as far as replays use it: a log of what was asked, a clock that each call moves by ``cost``."""

    def __init__(self, monkeypatch, fails=False):
        self.log, self.now, self.fails = [], 0.0, fails
        fakes = {
            "Stream": lambda device: SimpleNamespace(wait_stream=lambda other: None),
            "current_stream": lambda device: None,
            "stream": contextlib.nullcontext,
            "synchronize": lambda device: self.log.append("wait"),
            "CUDAGraph": lambda: SimpleNamespace(replay=self.replay),
            "graph": self.graph,
            "graph_pool_handle": lambda: "shared",
            "Event": lambda enable_timing: self.Event(self),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    class Event:
        def __init__(self, cuda):
            self.cuda = cuda

        def record(self):
            self.at = self.cuda.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 1e3 * (end.at - self.at)

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        assert pool == "shared"
        self.log.append("capture")
        yield
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        self.log.append("captured")

    def replay(self):
        self.log.append("replay")
        self.now += 6.0

    def call(self):
        self.log.append("call")
        self.now += 5.0
        return torch.ones(2)


def test_a_graph_holds_as_many_calls_as_there_are_inputs(gpu, monkeypatch):
    cuda = FakeCUDA(monkeypatch)
    call = gpu.captured(cuda.call, 3, CUDA, "shared")
    assert cuda.log == [*["call"] * 3, "wait", "capture", *["call"] * 3, "captured", "replay", "wait"]
    cuda.log.clear()
    assert gpu.seconds(call, CUDA, busy=True) == 6.0
    assert cuda.log == ["wait", "replay", "replay"]


def test_a_graph_that_computes_something_else_is_none(gpu, monkeypatch):
    cuda, given = FakeCUDA(monkeypatch), iter(range(9))
    with pytest.raises(RuntimeError, match="its graph gives other results"):
        gpu.captured(lambda: torch.tensor(float(next(given))), 2, CUDA, "shared")
    assert "captured" in cuda.log


def test_the_time_of_one_call_and_who_has_no_graph(gpu, monkeypatch):
    cuda = FakeCUDA(monkeypatch)
    found = gpu.timed(
        {"ours, triton": cuda.call, "a rival": cuda.call}, {"ours, triton": 3, "a rival": 2}, CUDA, 3
    )
    assert found["replayed"] == {"ours, triton": [2.0, 2.0], "a rival": [3.0, 3.0]}
    assert found["called"] == {"ours, triton": (5.0, 5.0), "a rival": (5.0, 5.0)}
    cuda.fails = True
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        gpu.timed({"ours, triton": cuda.call}, {"ours, triton": 3}, CUDA, 3)
    found = gpu.timed({"a rival": cuda.call}, {"a rival": 3}, CUDA, 3)
    assert found["uncaptured"] == {"a rival": "operation not permitted when stream is capturing"}
    assert found["replayed"] == {}
    assert found["called"] == {"a rival": (5.0, 5.0)}


def times(uncaptured=""):
    """Made up: 20, 10 and 40 microseconds on the device, 60 as called."""
    replayed = {"ours, cupy": [2e-5, 1e-5], "ours, triton": [1e-5, 9e-6], "a rival": [4e-5, 4e-5]}
    called = {name: [6e-5, 5e-5] for name in replayed}
    replayed.pop(uncaptured, None)
    return {
        "replayed": replayed,
        "called": called,
        "uncaptured": {uncaptured: "it waits"} if uncaptured else {},
    }


REPORT = {
    "device": "NVIDIA H0 (no such)",
    "versions": {"torch": "2.9", "triton": "3.5"},
    "date": "2026-01-01",
    "cases": [
        {
            "case": "MSF [4, 500]",
            "shape": [4, 500],
            "times": {"forward": times(), "train": times("a rival")},
            "copy": [1e-5, 9e-6],
            "saved": dict.fromkeys(("ours, cupy", "ours, triton", "a rival"), 2000),
            "peak": dict.fromkeys(("ours, cupy", "ours, triton", "a rival"), 3 << 20),
        }
    ],
}


def test_the_page_is_written_from_a_report(gpu, tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps(REPORT))
    gpu.main(["--page", str(kept)])
    text = (tmp_path / "benchmarks-nvidia-h0-no-such.md").read_text()
    assert text.startswith("# Benchmarks on NVIDIA H0 (no such)\n")
    assert "NVIDIA H0 (no such); torch 2.9, triton 3.5; 2026-01-01." in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    head, _, cupy, triton, rival = rows
    assert head[1:7] == [
        "forward µs",
        "ratio",
        "as called µs",
        "forward+backward µs",
        "ratio",
        "as called µs",
    ]
    assert cupy[:4] == ["ours, cupy", "20.0 (10.0)", "1.0", "60.0 (50.0)"]
    assert triton[:4] == ["ours, triton", "10.0 (9.0)", "0.5", "60.0 (50.0)"]
    assert triton[7:] == ["100%", "1.0", "3"]
    assert rival[1:7] == ["40.0 (40.0)", "2.0", "60.0 (50.0)", "", "", "60.0 (50.0)"]
    assert "No graph of a rival: it waits" in text
    assert json.loads((tmp_path / "benchmarks-nvidia-h0-no-such.json").read_text()) == REPORT


@pytest.mark.slow
def test_a_rehearsal_compares_backends_and_keeps_what_it_found(gpu, tmp_path, capsys):
    given = ["--rehearse", "--only", "msf", "--out", str(tmp_path)]
    gpu.main([*given, "--backends", "numba,torch"] if not torch.cuda.is_available() else given)
    (written,) = tmp_path.glob("benchmarks-*.md")
    shown, text = capsys.readouterr().out, written.read_text()
    assert "### MSF [4, 2, 8, 4, 4]" in text
    for row in ("| ours, ", "| published loop |"):
        assert row in text
        assert row in shown
    if not torch.cuda.is_available():
        assert [line for line in text.splitlines() if line.startswith("| ours, torch |")]


def test_results_are_checked_before_they_are_timed(gpu, monkeypatch):
    """A backend whose spikes are others is not timed."""
    wrong = backends.load("torch", "msf").msf_forward

    def flipped(*args):
        s_seq, kept, v = wrong(*args)
        return 1 - s_seq, kept, v

    monkeypatch.setattr(backends.load("numba", "msf"), "msf_forward", flipped)
    with pytest.raises(SystemExit, match=r"of the spikes of 'ours, numba' differ from ours"):
        gpu.runs_of(gpu.TOY[0], torch.device("cpu"), ["torch", "numba"])
