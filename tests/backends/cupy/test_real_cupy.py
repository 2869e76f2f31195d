"""Launches through CuPy's own host code and NVRTC, without a device (see ``shim.real_cupy``).

For a process of its own, with a CuPy on the path: ``make test-kernels`` runs this file over CuPy 13.6 and the newest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch

if importlib.util.find_spec("cupy") is None:
    pytest.skip("CuPy is not on the path: make test-kernels puts it there", allow_module_level=True)
if torch.cuda.is_available():
    pytest.skip("there is a device, which test_cupy_gpu.py uses", allow_module_level=True)

from helpers import poisoned_empty
from msf_pmsn_plugins import backends
from msf_pmsn_plugins.backends.cupy import compile as compile_module
from msf_pmsn_plugins.backends.cupy import launch
from msf_pmsn_plugins.backends.cupy.compile import OPTIONS, Kernel
from msf_pmsn_plugins.backends.cupy.launch import CudaDevice
from msf_pmsn_plugins.neurons import MSF, PMSN
from shim import nvrtc
from shim.cases import (
    MSFCase,
    PMSNCase,
    check_msf,
    check_pmsn,
    cut_time,
    msf_backward,
    msf_forward,
    msf_problem,
)
from shim.real_cupy import RealCupyDevice, current_device, install
from tolerances import assert_same

pytestmark = pytest.mark.kernels

LEGACY, PER_THREAD, OWN = 0, 2, 0x7F00_1234_5678  # streams, as pointers


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUPY_CACHE_DIR", str(tmp_path_factory.mktemp("cupy")))
        yield install()


@pytest.fixture
def torch_cuda(monkeypatch):
    """CUDA as far as the backend asks torch for it."""
    said = SimpleNamespace(stream=LEGACY, index=0)

    @contextlib.contextmanager
    def device(index):
        before, said.index = said.index, index
        yield
        said.index = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: said.index)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=said.stream))
    return said


@pytest.fixture
def real(driver, torch_cuda, monkeypatch):
    """The backend over real CuPy; any warning is an error."""
    device = RealCupyDevice(driver)
    monkeypatch.setattr(launch, "device", device)
    with warnings.catch_warnings(), poisoned_empty():
        warnings.simplefilter("error")
        yield device


CASES = {
    "published": MSFCase(),
    "one lane": MSFCase("lif", "soft", "triangle", shape=(3, 5), lengths=True, detach=False),
    "numbers in memory": MSFCase(
        "plif", "soft", learned="lanes", threshold="one", amount="lanes", lengths=True
    ),
    "bytes in half precision": MSFCase(keep="code", dtype=torch.float16, shape=(2, 16)),
    "bfloat16": MSFCase(dtype=torch.bfloat16, shape=(2, 16)),
    "double": MSFCase(dtype=torch.float64, grad_membrane=True),
    "most thresholds by value": MSFCase(levels=256, steps=2, shape=(2, 4)),
    "thresholds in memory": MSFCase(levels=300, steps=2, shape=(2, 4)),
    "PMSN": PMSNCase(lengths=True),
    "PMSN, groups": PMSNCase(6, "cumulative", dtype=torch.float64, threshold=0.75),
}


@pytest.mark.parametrize("name", list(CASES))
def test_arguments_arrive_as_the_kernels_take_them(real, name):
    case = CASES[name]
    (check_msf if isinstance(case, MSFCase) else check_pmsn)(case)
    assert real.launches


def test_chunks_arrive(real, monkeypatch):
    cut_time(monkeypatch, real)
    check_pmsn(PMSNCase(5, lengths=True, steps=11))
    assert {"pmsn_chunk", "pmsn_carry", "pmsn_soma"} <= {one.kernel.name for one in real.launches}


@pytest.mark.parametrize("stream", [LEGACY, PER_THREAD, OWN], ids=["legacy", "per-thread", "own"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_launch_goes_to_torchs_stream_and_device(real, torch_cuda, index, stream):
    real.index, torch_cuda.stream = index, stream
    p = msf_problem(MSFCase())
    msf_backward("cupy", MSFCase(), p, msf_forward("cupy", MSFCase(), p)[1])
    assert [(one.device, one.stream) for one in real.launches] == [(index, stream)] * 2
    assert current_device() == 0
    assert torch_cuda.index == 0


def test_backward_comes_from_another_thread(real):
    real.index = 1
    case, results = MSFCase(), []
    p = msf_problem(case)
    kept = msf_forward("cupy", case, p)[1]
    expected = msf_backward("cupy", case, p, kept)
    thread = threading.Thread(target=lambda: results.append(msf_backward("cupy", case, p, kept)))
    thread.start()
    thread.join()
    for one, two in zip(results[0], expected, strict=True):
        assert_same(one, two)
    assert [one.device for one in real.launches] == [1, 1, 1]


@pytest.mark.parametrize("neuron", [MSF(backend="cupy"), PMSN(8, backend="cupy")], ids=["MSF", "PMSN"])
def test_a_neuron_trains(real, neuron, chosen_on_cpu):
    x_seq, grads = torch.randn(4, 2, 8) * 4, []
    neuron.requires_grad_(True)
    for name in ("cupy", "torch"):
        neuron.backend = name
        x = x_seq.clone().requires_grad_()
        neuron(x)[0].square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    assert real.launches


def small(i: int, name: str = "probe") -> Kernel:
    """One of many kernels that compile at once."""
    return Kernel("probe.cu", name, (("IO", "IO_FLOAT"), ("SETTING", i)))


def counted(driver, function):
    """How many modules, functions and launches a call took."""
    before = vars(driver.counts())
    function()
    return {key: value - before[key] for key, value in vars(driver.counts()).items()}


def launch_many(device, kernels):
    x = torch.ones(1)
    on_device = SimpleNamespace(device=SimpleNamespace(index=0))
    for kernel in kernels:
        device.launch(kernel, on_device, 1, (1, 1), [x])


def test_ten_equal_launches_look_a_function_up_once(driver, torch_cuda):
    driver.set_hook(lambda *args: 0)
    device = CudaDevice()
    took = counted(driver, lambda: launch_many(device, [small(-1)] * 10))
    assert took == {"modules": 1, "functions": 1, "launches": 10}
    assert counted(driver, lambda: launch_many(device, [small(-1)])) == {
        "modules": 0,
        "functions": 0,
        "launches": 1,
    }


def test_each_setting_is_loaded_once(driver, torch_cuda):
    driver.set_hook(lambda *args: 0)
    device, kernels = CudaDevice(), [small(i) for i in range(24)]
    took = counted(driver, lambda: launch_many(device, kernels * 2))
    assert took == {"modules": 24, "functions": 24, "launches": 48}


def test_kernels_of_one_text_share_a_module(real):
    case = PMSNCase(3, grad_drive=False)
    took = counted(real.driver, lambda: check_pmsn(case))
    texts = {one.kernel.text for one in real.launches}
    assert took["modules"] == len(texts)
    assert took["functions"] == len({one.kernel for one in real.launches}) > len(texts)


def test_a_warm_cache_on_disk_runs_no_compiler(driver, torch_cuda, monkeypatch):
    import cupy
    from cupy.cuda import compiler

    runs = []

    class Program(compiler._NVRTCProgram):
        def compile(self, *args, **kwargs):
            runs.append(self)
            return super().compile(*args, **kwargs)

    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    driver.set_hook(lambda *args: 0)
    kernels = [small(100 + i) for i in range(5)]
    compiler._empty_file_preprocess_cache.clear()  # as in a new process
    launch_many(CudaDevice(), kernels)
    assert len(runs) == 5 + 1  # and one of nothing, by which CuPy learns the compiler's version
    cupy.clear_memo()
    compiler._empty_file_preprocess_cache.clear()
    took = counted(driver, lambda: launch_many(CudaDevice(), kernels))
    assert took["modules"] == 5
    assert len(runs) == 5 + 2


def test_the_options_are_those_that_the_gates_compile_with(driver, torch_cuda, monkeypatch):
    from cupy.cuda import compiler

    seen = []

    class Program(compiler._NVRTCProgram):
        def compile(self, options, *args, **kwargs):
            seen.append(options)
            return super().compile(options, *args, **kwargs)

    monkeypatch.setattr(compiler, "_NVRTCProgram", Program)
    driver.set_hook(lambda *args: 0)
    launch_many(CudaDevice(), [small(200)])
    theirs = [option for option in seen[-1] if not option.startswith("-I")]
    ours = [option for option in nvrtc.options("sm_90") if not option.startswith("-I")]
    assert sorted(theirs) == sorted(ours)
    # Of several -ftz the last counts.
    assert theirs.index("-ftz=true") > theirs.index("--fmad=false")
    assert set(OPTIONS) <= set(theirs)


# The choice of auto


def chosen() -> str:
    return backends.resolve("auto", torch.ones(1), "msf", ("reset 'hard'", "charge 'decay'"))


def test_auto_takes_cupy_where_it_compiles(real, chosen_on_cpu):
    assert chosen() == "cupy"


def test_auto_says_once_why_cupy_is_not_taken(real, chosen_on_cpu, monkeypatch):
    monkeypatch.setattr(compile_module, "OPTIONS", ())
    monkeypatch.setattr(launch, "OPTIONS", ("--no-such-option",))
    with pytest.warns(
        RuntimeWarning, match="'cupy' is installed but not used: .*could not compile"
    ) as caught:
        assert [chosen(), chosen()] == ["torch"] * 2
    backends._choose.cache_clear()
    assert chosen() == "torch"
    assert len(caught) == 1
    with pytest.raises(ImportError, match="does not work here, .*could not compile probe"):
        backends.resolve("cupy", torch.ones(1), "msf", ())
