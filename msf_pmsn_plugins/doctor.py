"""What is installed, what of it runs, and a short self-test: ``python -m msf_pmsn_plugins doctor``."""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from torch import nn

from . import __version__, backends, swap
from .neurons import MSF, PMSN

Inputs = list[tuple[tuple[int, ...], torch.dtype]]

PACKAGES = (
    "torch",
    "spikingjelly",
    "snntorch",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "triton",
    "timm",
    "nir",
    "nirtorch",
)


@dataclass(frozen=True)
class Finding:
    """What was found of a backend, which runs or is missing, or of a test: ok, skipped or FAILED; and more of it."""

    status: Literal["runs", "missing", "ok", "skipped", "FAILED"]
    detail: str

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


def run(args: argparse.Namespace) -> int:
    """Print the report, as text or with ``args.json`` as JSON; returns 1 if a test failed."""
    installed, usable, tests = _versions(), _backends(), []
    if not args.json:
        _print("versions", installed)
        _print("backends", usable)
        print("self-test")
    for name, test in TESTS.items():
        start = time.perf_counter()
        try:
            found = test()
        except Exception as error:
            found = Finding("FAILED", f"{type(error).__name__}: {error}")
        seconds = round(time.perf_counter() - start, 2)
        tests.append({"name": name, **asdict(found), "seconds": seconds})
        if not args.json:
            print(f"  {name}: {found} ({seconds} s)", flush=True)
    failed = sum(row["status"] == "FAILED" for row in tests)
    if args.json:
        found_of = {name: asdict(found) for name, found in usable.items()}
        report = {"versions": installed, "backends": found_of, "tests": tests, "ok": not failed}
        print(json.dumps(report, indent=2))
    else:
        print("all is well" if not failed else f"{failed} of {len(tests)} failed")
        if torch.cuda.is_available():
            print("Kernels for GPUs were proved without one: please send us all of the above, well or not")
    return 1 if failed else 0


def _print(title: str, entries: Mapping[str, str | Finding]) -> None:
    print(title)
    width = max(map(len, entries))
    for name, text in entries.items():
        print(f"  {name.ljust(width)}  {text}")


def _versions() -> dict[str, str]:
    found = {
        "msf-pmsn-plugins": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    return {**found, "CUDA of torch": torch.version.cuda or "none: a build for the CPU", "GPU": gpu}


def _backends() -> dict[str, Finding]:
    """Every backend and why it cannot run, or on what it does."""
    found = {}
    for name in backends.BACKENDS:
        device = backends.BACKENDS[name].device
        if device == "cuda" and not torch.cuda.is_available():
            found[name] = Finding("missing", "torch sees no CUDA device")
            continue
        try:
            backends.resolve(name, torch.empty(0, device=device or "cpu"), "msf", ())
        except Exception as error:
            found[name] = Finding("missing", str(error))
        else:
            found[name] = Finding("runs", f"on {device or 'any device'}")
    return found


# Inputs of the self-test: [T, N, C] and dtype. On a GPU also one that is long for its few lanes (time in chunks, steps
# read ahead), in double, where no rounding moves a spike; and halves.
SMALL: Inputs = [((8, 2, 6), torch.float32)]
ON_GPU: Inputs = [
    *SMALL,
    ((8, 2, 6), torch.float16),
    ((8, 4, 64), torch.bfloat16),
    ((800, 2, 6), torch.float64),
]


def _cases() -> Iterator[tuple[str, Any, torch.Tensor]]:
    for name, found in _backends().items():
        if found.status != "runs":
            continue
        device = backends.BACKENDS[name].device or ("cuda" if torch.cuda.is_available() else "cpu")
        for shape, dtype in ON_GPU if device == "cuda" else SMALL:
            generator = torch.Generator().manual_seed(0)
            x = (torch.randint(-64, 65, shape, generator=generator) / 16).to(device, dtype)
            torch.manual_seed(0)
            for neuron in (MSF(D=4, backend=name), PMSN(shape[-1], compartments=3, backend=name)):
                yield name, neuron.to(device), x


def _test_backends() -> Finding:
    """Every backend against a loop of steps, spikes and gradients."""
    checked = []
    for name, neuron, x in _cases():
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        state, steps = neuron.initial_state(x[0]), []
        for step in inputs[0]:
            s, state, _ = neuron.step(step, state)
            steps.append(s)
        outputs = [torch.stack(steps), neuron(inputs[1])[0]]
        for y in outputs:
            (y * torch.linspace(1, 6, x.shape[-1], device=x.device).to(x.dtype)).sum().backward()
        what = f"{name}: {type(neuron).__name__} on {x.dtype} {tuple(x.shape)}"
        if not torch.equal(*outputs):
            raise AssertionError(f"{what} emits other spikes than its steps")
        rtol, atol = (1e-2, 1e-3) if x.dtype.itemsize == 2 else (1e-4, 1e-5)
        one, other = (torch.as_tensor(given.grad) for given in inputs)
        if not torch.allclose(one, other, rtol=rtol, atol=atol):
            raise AssertionError(f"{what} has another gradient than its steps")
        checked.append(name)
    return Finding("ok", f"MSF and PMSN on {', '.join(dict.fromkeys(checked))} equal a loop of their steps")


def _test_spikingjelly() -> Finding:
    """A swap at D = 1 changes no bit."""
    try:
        from spikingjelly.activation_based import layer, neuron
    except ImportError as error:
        return Finding("skipped", str(error))
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(6, 8, step_mode="m"), neuron.LIFNode(step_mode="m", detach_reset=True))
    return _same_after_swap(net, torch.randn(5, 3, 6) * 4)


def _test_snntorch() -> Finding:
    try:
        import snntorch
    except ImportError as error:
        return Finding("skipped", str(error))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), snntorch.Leaky(beta=0.5, init_hidden=True, reset_mechanism="zero"))
    return _same_after_swap(net, torch.randn(3, 6) * 4)


def _same_after_swap(net: nn.Module, x: torch.Tensor) -> Finding:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for a network of the user's own
        before = net(x)
        swap.msf(net, x, D=1)
        after = net(x)
    if not torch.equal(before, after):
        raise AssertionError("MSF with D = 1 in place of the stock neuron emits other spikes")
    return Finding("ok", "a swap at D = 1 leaves every spike as it was")


TESTS: dict[str, Callable[[], Finding]] = {
    "backends": _test_backends,
    "SpikingJelly": _test_spikingjelly,
    "snnTorch": _test_snntorch,
}
