"""The Numba backend as others see it: what it knows and refuses, warming up, and a neuron that names it."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("numba", reason="needs the extra cpu")

from numba_problems import CONSTANT, only_spikes, pmsn_problem, randn

from helpers import loop
from msf_pmsn_plugins.backends import numba as backend
from msf_pmsn_plugins.backends.numba import kernels
from msf_pmsn_plugins.backends.numba.kernels import charges, resets, somas, surrogates
from msf_pmsn_plugins.backends.numba.msf import msf_backward, msf_forward
from msf_pmsn_plugins.backends.numba.pmsn import pmsn_backward, pmsn_forward
from msf_pmsn_plugins.charges import CHARGES
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.pmsn import RESET_MODES
from msf_pmsn_plugins.resets import RESETS
from msf_pmsn_plugins.settings import MSFSettings, PMSNSettings
from msf_pmsn_plugins.surrogate import SURROGATES
from msf_pmsn_plugins.tensors import MSFGrads, MSFParameters
from tolerances import F32, F64, assert_close, assert_same


def test_every_part_of_the_equations_is_known():
    assert set(charges.CHARGES) == set(CHARGES)
    assert set(resets.RESETS) == set(RESETS)
    assert set(somas.SOMAS) == {*RESET_MODES, "fixed"}
    assert set(surrogates.SURROGATES) == set(SURROGATES)
    for name, charge in CHARGES.items():
        assert bool(charges.CHARGES[name].rate) == (charge.rate_grad is not None)
    for name, reset in RESETS.items():
        assert resets.RESETS[name].before_charge == reset.before_charge
    codes = [surrogates.Slope.of(name, 0.5).code for name in SURROGATES]
    assert len(set(codes)) == len(SURROGATES)


def test_refusals():
    x, v, settings = torch.zeros(2, 3), torch.zeros(3), MSFSettings("decay", (1.0,))
    with pytest.raises(TypeError, match=r"float32 and float64, got torch\.int64"):
        msf_forward(x.long(), v, CONSTANT, None, settings)
    with pytest.raises(ValueError, match="CPU tensors, this input is on meta"):
        msf_forward(x.to("meta"), v, CONSTANT, None, settings)
    with pytest.raises(ValueError, match="no charge 'leak'; known: decay"):
        msf_forward(x, v, CONSTANT, None, MSFSettings("leak", (1.0,)))
    grads = MSFGrads(x, None, None)
    with pytest.raises(ValueError, match="no surrogate 'step'; known: rectangular"):
        msf_backward(grads, x, x, v, CONSTANT, None, None, MSFSettings("decay", (1.0,), surrogate="step"))
    rate = MSFParameters(torch.ones(()))
    with pytest.raises(ValueError, match="charge 'lif' has no gradient to its rate"):
        msf_backward(grads, x, x, v, rate, None, None, MSFSettings("lif", (1.0,), 2.0))
    problem, wrong = pmsn_problem(1, (1, 1, 1), 1), PMSNSettings(reset_mode="serial", fixed=True)
    rest = (problem.state, problem.weights, None)
    with pytest.raises(ValueError, match="fixed point belongs to reset_mode 'floor', got 'serial'"):
        pmsn_forward(problem.x, *rest, wrong)
    with pytest.raises(ValueError, match="fixed point belongs to reset_mode 'floor', got 'serial'"):
        pmsn_backward(only_spikes(problem.x), problem.x, problem.x, *rest, None, wrong)


def test_kernels_are_compiled_once_per_dtype():
    assert backend.warm_up(dtypes=(F32, F64)) > 0
    for name in kernels.__all__:
        assert set(getattr(kernels, name)._compiled) == {"float32", "float64"}
    assert backend.warm_up() < 1
    with pytest.raises(ValueError, match="'msf', 'pmsn'"):
        backend.warm_up(["lif"])


def test_a_call_like_an_earlier_one_is_prepared_already():
    """And one that differs in anything is not taken for it."""
    x, v = randn(4, 3, 50), randn(3, 50, seed=1)
    settings = MSFSettings("decay", (1.0, 2.0), 0.5)
    first = msf_forward(x, v, CONSTANT, None, settings)
    for other in (
        MSFSettings("decay", (1.0, 2.0), 0.25),
        MSFSettings("decay", (1.0, 1.5), 0.5),
        MSFSettings("decay", (1.0, 2.0), 0.5, v_reset=-0.5),
        MSFSettings("decay", (1.0, 2.0), 0.5, reset_mode="soft", reset_amount=0.75),
    ):
        outputs = msf_forward(x, v, CONSTANT, None, other)
        assert not all(map(torch.equal, outputs[:2], first[:2]))  # counts, membranes
    rate = MSFParameters(torch.full((50,), 0.25, dtype=F64))
    assert not torch.equal(msf_forward(x, v, rate, None, settings)[1], first[1])
    lengths = torch.tensor([1, 2, 3])
    assert not torch.equal(msf_forward(x, v, CONSTANT, lengths, settings)[1], first[1])
    again = msf_forward(x, v, CONSTANT, None, MSFSettings("decay", (1.0, 2.0), 0.5))
    for got, want in zip(again, first, strict=True):
        assert_same(got, want)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_through_the_neurons(dtype):
    """Named as a backend: counts, states, membranes and gradients of the loop."""
    x = (randn(9, 4, 3, 5, dtype=dtype) * 2).requires_grad_()
    msf, pmsn = MSF(backend="numba", reset_mode="soft", learn_decay=True), PMSN(3, backend="numba").to(dtype)
    gs = randn(*x.shape, seed=1, dtype=dtype)
    for neuron in (msf, pmsn):
        (s, state, m), (s_, state_, m_) = neuron.sequence(x, membrane=True), loop(neuron, x)
        assert_same(s, s_)
        assert_close(m, m_, "drive")
        for ours, expected in zip(state, state_, strict=True):
            assert_close(ours, expected, "residual")
        leaves = [x, *neuron.parameters()]
        grads, grads_ = (torch.autograd.grad((spikes * gs).sum(), leaves) for spikes in (s, s_))
        for ours, expected in zip(grads, grads_, strict=True):
            assert_close(ours, expected, "pmsn_adjoint")


AUTO = """
import warnings
{before}
import torch
from msf_pmsn_plugins.neurons import MSF
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        s, _, _ = MSF(decay=0.5).sequence(torch.tensor([[[1.0]], [[0.25]], [[1.0]]]))
assert s.flatten().tolist() == [1, 0, 1]
(said,) = (str(w.message) for w in caught if "numba" in str(w.message))
print(said)
try:
    MSF(backend="numba").sequence(torch.zeros(1, 1, 1))
except ImportError as error:
    print(error)
"""
BROKEN = """
import sys, types
class Broken:
    def find_spec(self, name, path, target=None):
        if name == "numba.core":
            raise ImportError("Numba needs NumPy 2.2 or less")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.parametrize(
    ("before", "environment", "reason"),
    [("", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT"), (BROKEN, {}, "Numba needs NumPy 2.2 or less")],
    ids=["switched off", "broken"],
)
def test_without_a_compiler_auto_computes_and_says_so_once(before, environment, reason):
    done = subprocess.run(
        [sys.executable, "-P", "-c", AUTO.format(before=before)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, refused = done.stdout.splitlines()
    assert reason in said
    assert reason in refused
