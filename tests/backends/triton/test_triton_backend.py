"""Who gets Triton, and what is said where it cannot work."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="torch's wheels bring Triton on Linux only")

import triton

from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends.triton import config, launch, msf, pmsn
from msf_pmsn_plugins.backends.triton.kernels import charges, resets, soma, surrogates
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.pmsn.step import BURSTS, RESET_MODES
from msf_pmsn_plugins.resets import RESETS
from msf_pmsn_plugins.settings import MSFSettings, PMSNSettings, asks
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import MSFParameters
from shim.cases import MSFCase, PMSNCase, msf_forward, msf_problem, pmsn_forward, pmsn_problem

CACHES = (backends._choose, backends.unusable, backends._warn_unusable)


@pytest.fixture(autouse=True)
def _choosing_afresh():
    """``auto`` remembers nothing from before, and nothing of this afterwards."""
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


def on_cuda(name="auto", neuron="msf", words=()):
    """What is chosen for a CUDA tensor."""
    return backends.resolve(name, SimpleNamespace(device=torch.device("cuda")), neuron, words)


@pytest.fixture
def working(monkeypatch):
    """A CUDA device on which whatever is installed works."""
    for name in ("cupy", "triton"):
        module = __import__(f"msf_pmsn_plugins.backends.{name}", fromlist=["unusable"])
        monkeypatch.setattr(module, "unusable", lambda: "")


def installed(monkeypatch, **there):
    """A table whose libraries are installed or not."""
    table = {
        name: replace(
            backend, needs={True: "torch", False: "no_such_library"}.get(there.get(name), backend.needs)
        )
        for name, backend in backends.BACKENDS.items()
    }
    monkeypatch.setattr(backends, "BACKENDS", table)


@pytest.mark.parametrize(
    ("cupy", "hip", "chosen"), [(True, None, "cupy"), (False, None, "triton"), (True, "6.4", "triton")]
)
def test_who_computes_on_a_gpu(monkeypatch, working, cupy, hip, chosen):
    installed(monkeypatch, cupy=cupy, triton=True)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert on_cuda() == chosen
    assert on_cuda("triton") == "triton"


def test_cupy_by_name_on_rocm(monkeypatch, working):
    installed(monkeypatch, cupy=True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(
        ValueError, match="'cupy' runs on NVIDIA's devices, this torch is built for ROCm: set"
    ):
        on_cuda("cupy")


@pytest.mark.parametrize("cupy", [True, False], ids=["cupy", "triton"])
def test_everything_is_known(monkeypatch, working, cupy):
    """No setting of ours makes ``auto`` pass the first backend of a GPU by."""
    installed(monkeypatch, cupy=cupy)
    first, tensors = "cupy" if cupy else "triton", MSFParameters(*[torch.ones(())] * 3)
    for charge in CHARGES:
        for reset in RESETS:
            for retake in (False, True):
                settings = MSFSettings(
                    charge, (1.0,), reset_mode=reset, reset_delay=not retake, retake=retake
                )
                assert on_cuda(words=asks(settings, tensors)) == first
    for reset in RESET_MODES:
        kept = PMSNSettings(reset_mode=reset, keep_membrane=True, keep_residual=True)
        assert on_cuda(neuron="pmsn", words=asks(kept)) == first
    assert backends.knows(first, "msf", "states out")


def test_what_is_not_known_raises_by_name_and_goes_elsewhere(monkeypatch, working):
    installed(monkeypatch, cupy=False)
    with pytest.raises(ValueError, match="'triton' has no charge 'cosine': set backend='auto'"):
        on_cuda("triton", words=("charge 'cosine'",))
    assert on_cuda(words=("charge 'cosine'",)) == "torch"


def test_the_kernels_have_every_name():
    assert set(charges.NAMES) == set(CHARGES)
    assert set(resets.NAMES) == set(RESETS)
    assert set(soma.RESETS) == set(RESET_MODES)
    assert set(soma.BURSTS) == set(BURSTS.values())
    assert set(surrogates.CONSTANTS) == set(SURROGATES)
    assert all(f"surrogate {name!r}" in module.KNOWS for name in SURROGATES for module in (msf, pmsn))


def test_the_texts_keep_to_the_oldest_triton():
    """Triton 3.2 takes no chain of more than two conditions."""
    files = sorted(Path(charges.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for file in files:
        chains = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.BoolOp)]
        assert all(len(node.values) == 2 for node in chains), file.name


@pytest.mark.parametrize("neuron", [MSF(backend="triton"), PMSN(6, backend="triton")], ids=["MSF", "PMSN"])
def test_tensors_of_a_cpu_are_refused(neuron):
    with pytest.raises(
        ValueError, match=r"'triton' runs on 'cuda' tensors, this input is on 'cpu': .*'auto'"
    ):
        neuron(torch.randn(3, 2, 6))


def test_other_devices_and_dtypes_are_refused(monkeypatch):
    case, p = MSFCase(), msf_problem(MSFCase())
    with pytest.raises(ValueError, match=r"CUDA and ROCm tensors, this input is on cpu.*backend='auto'"):
        msf_forward("triton", case, p)
    monkeypatch.setattr(launch, "check", lambda x: None)
    with pytest.raises(ValueError, match="all tensors on one device: the input is on cpu, v on meta"):
        msf_forward("triton", case, {**p, "v": p["v"].to("meta")})
    with pytest.raises(TypeError, match=r"v in torch.float32 for this input, got torch.float64"):
        msf_forward("triton", case, {**p, "v": p["v"].double()})
    with pytest.raises(TypeError, match=r"no kernel for torch.float8_e4m3fn: convert the input to one of"):
        msf_forward("triton", case, {**p, "x_seq": p["x_seq"].to(torch.float8_e4m3fn)})
    q = pmsn_problem(PMSNCase())
    with pytest.raises(TypeError, match=r"z in torch.complex64 for this input, got torch.complex128"):
        pmsn_forward("triton", PMSNCase(), {**q, "z": q["z"].to(torch.complex128)})
    with pytest.raises(ValueError, match="needs reset_mode 'floor', got 'serial'"):
        pmsn_forward("triton", PMSNCase(reset_mode="serial", fixed=True), q)


def test_a_triton_that_is_missing(monkeypatch):
    installed(monkeypatch, triton=False, cupy=False)
    with pytest.raises(
        ImportError, match="'triton' needs no_such_library: pip install no_such_library, or set"
    ):
        on_cuda("triton")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert on_cuda() == "torch"


def test_a_triton_that_is_too_old(monkeypatch):
    installed(monkeypatch, cupy=False)
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    with pytest.raises(
        ImportError, match=r"Triton 3.1.0 is too old, 3.2 is the oldest .*pip install --upgrade"
    ):
        on_cuda("triton")
    with pytest.warns(RuntimeWarning, match="'triton' is installed but not used: Triton 3.1.0") as caught:
        assert [on_cuda(), on_cuda(neuron="pmsn")] == ["torch"] * 2
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("error", "compiler", "headers", "advice"),
    [
        (
            AssertionError("libcuda.so cannot found!\n"),
            True,
            True,
            "sudo ldconfig, or set TRITON_LIBCUDA_PATH",
        ),
        (RuntimeError("0 active drivers ([])."), True, True, "finds no driver of a GPU: see what nvidia-smi"),
        (RuntimeError("Failed to find C compiler."), False, True, "needs a C compiler: apt install gcc"),
        (OSError("gcc: exit status 1"), True, False, "Python.h is missing: apt install python3-dev"),
        (OSError("ptxas died"), True, True, "please report it with this text"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, tmp_path, error, compiler, headers, advice):
    def warmup(*args, grid):
        raise error

    installed(monkeypatch, cupy=False)
    monkeypatch.setattr(launch, "probe_kernel", SimpleNamespace(warmup=warmup))
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch.shutil, "which", lambda name: "/usr/bin/cc" if compiler else None)
    (tmp_path / "Python.h").touch()
    include = tmp_path if headers else tmp_path / "none"
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(include)})
    with pytest.raises(ImportError, match=advice) as caught:
        on_cuda("triton")
    assert str(error).strip() in str(caught.value)
    with pytest.warns(RuntimeWarning, match=advice):
        assert on_cuda() == "torch"


DEVICE = config.Device(processors=132)


def test_the_shape_of_a_launch_follows_from_sizes():
    """Wide accesses where lanes fill the device, one lane a thread of one warp where they do not."""
    assert config.for_lanes(2**21, 4, DEVICE) == config.Config(512, 4, config.STAGES)
    assert config.for_lanes(2**21, 2, DEVICE) == config.Config(1024, 4, config.STAGES)
    assert config.for_lanes(2048, 4, DEVICE) == config.Config(32, 1, config.LIGHT_STAGES)
    assert config.for_lanes(1, 4, config.Device(132, warp=64)) == config.Config(64, 1, config.LIGHT_STAGES)
    assert config.for_modes(2048, 4, config.WALK[4], DEVICE) == config.Config(32, 1, config.FEW_STAGES)
    assert config.for_modes(2048, 1, config.WALK[4], DEVICE) == config.Config(32, 1, config.LIGHT_STAGES)
    assert config.for_modes(2**21, 4, config.WALK[4], DEVICE) == config.Config(128, 4, config.STAGES)
    assert config.for_modes(2**21, 16, config.WALK[8], DEVICE) == config.Config(16, 1, config.STAGES)
    assert config.for_modes(10, 1024, config.GATHER[4], DEVICE).block == 1


@pytest.mark.parametrize("lanes", [1, 600, 2048, 2**21])
@pytest.mark.parametrize("narrowest", [1, 2, 4, 8])
@pytest.mark.parametrize("warp", [32, 64])
def test_a_thread_reads_enough_to_read_ahead(lanes, narrowest, warp):
    """Copies that are under way are of four bytes at least; full programs are as they were."""
    found = config.for_lanes(lanes, 4, config.Device(132, warp), narrowest)
    assert found.block // (found.warps * warp) * narrowest >= config.COPIED
    assert lanes < 2**21 or found == config.for_lanes(lanes, 4, config.Device(132, warp))


@pytest.mark.parametrize("lanes", [1, 31, 33, 600, 2**21 + 1, 2**33])
@pytest.mark.parametrize("processors", [1, 132])
def test_programs_hold_all_lanes_and_none_is_idle(lanes, processors):
    device = config.Device(processors)
    for found in (config.for_lanes(lanes, 4, device), config.for_modes(lanes, 8, config.GATHER[4], device)):
        assert (found.programs(lanes) - 1) * found.block < lanes <= found.programs(lanes) * found.block


@pytest.mark.parametrize("leads", [1, 3, 90, 2**20])
@pytest.mark.parametrize("columns", [1, 6, 130, 2**16])
@pytest.mark.parametrize("modes", [1, 8, 16])
def test_sums_for_the_weights_stay_bounded(leads, columns, modes):
    found = config.for_gather(leads, columns, modes, 4, DEVICE)
    assert found.wide * found.high == found.config.block
    assert (found.across - 1) * found.wide < columns <= found.across * found.wide
    assert 1 <= found.rows <= config.parts(leads, found.high)
    lanes_at_once = found.rows * found.across * found.config.warps * DEVICE.warp
    assert found.rows == 1 or lanes_at_once <= DEVICE.processors * config.GATHERING


def test_where_time_is_cut():
    assert config.for_time(1024, 2048, 4, False, DEVICE) == config.Chunks(16, 64)
    assert config.for_time(800, 6, 4, False, DEVICE) == config.Chunks(12, 67)
    for uncut in (
        config.for_time(767, 6, 4, False, DEVICE),
        config.for_time(800, 6, 4, True, DEVICE),
        config.for_time(800, 6, 0, False, DEVICE),
        config.for_time(800, 10_000, 4, False, DEVICE),
    ):
        assert uncut.count == 1
