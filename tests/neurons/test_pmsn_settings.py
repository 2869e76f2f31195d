"""PMSN: settings, before and after construction, and input that it refuses."""

import math

import pytest
import torch

from helpers import randn
from msf_pmsn_plugins.neurons import PMSN, parallel_reset
from msf_pmsn_plugins.neurons.pmsn import RESET_MODES
from msf_pmsn_plugins.settings import PMSNSettings
from msf_pmsn_plugins.surrogate import Soft, Surrogate
from subjects import SOMAS, TRIANGLE, build_pmsn
from tolerances import F32, F64, assert_same

# ---------------------------------------------------------------- settings and bad input


def test_settings_changed_after_construction_take_effect():
    neuron, x = build_pmsn(3), 2 * randn(60, 2, 3, dtype=F32)
    low = neuron(x)[0].sum()
    neuron.v_threshold = 4.0
    high = neuron(x)[0].sum()
    assert high < low
    assert_same(neuron(x)[0], build_pmsn(3, v_threshold=4.0)(x)[0])
    neuron.surrogate = "atan"
    assert neuron.surrogate == Surrogate("atan", 2.0)
    neuron.surrogate = None
    assert neuron.surrogate == TRIANGLE


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"compartments": 1}, "compartments must be an integer from 2 to 17"),
        ({"compartments": 18}, "compartments must be an integer from 2 to 17"),
        ({"compartments": 5.0}, "compartments must be an integer from 2 to 17"),
        ({"channels": 0}, "channels must be a positive integer or None"),
        ({"channels": -3}, "channels must be a positive integer or None"),
        ({"channels": 2.0}, "channels must be a positive integer or None"),
        ({"v_threshold": 0.0}, "v_threshold must be (positive|a finite number)"),
        ({"v_threshold": -1.0}, "v_threshold must be (positive|a finite number)"),
        ({"v_threshold": math.nan}, "v_threshold must be (positive|a finite number)"),
        ({"init": "smnist"}, "unknown init 'smnist'; known: sequence, shd, imagenet"),
        ({"surrogate": "tri"}, "unknown surrogate 'tri'"),
        ({"backend": "fft"}, "unknown backend 'fft'.*'auto', .*'torch'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PMSN(**kwargs)


def test_unknown_backend_after_construction():
    neuron = build_pmsn(3)
    with pytest.raises(ValueError, match="unknown backend 'numba_'"):
        neuron.backend = "numba_"
    assert neuron.backend == "auto"


def test_input_must_be_real():
    x = torch.zeros(3, 2, 3, dtype=torch.complex64)
    for call in (
        lambda: build_pmsn(3)(x),
        lambda: build_pmsn(3).step(x[0], build_pmsn(3).initial_state(torch.zeros(2, 3))),
    ):
        with pytest.raises(TypeError, match=r"takes real numbers.*x\.abs\(\)"):
            call()
    lazy = PMSN()
    with pytest.raises(TypeError):
        lazy(x)
    assert lazy.channels is None  # a refused input leaves no trace


def test_input_must_be_a_tensor_with_a_time_axis():
    with pytest.raises(TypeError, match="takes a torch.Tensor, got list"):
        build_pmsn(3)([[1.0]])
    with pytest.raises(ValueError, match="time first"):
        build_pmsn(3)(torch.tensor(5.0))
    with pytest.raises(ValueError, match="3 channels.*has 1"):  # five steps of one neuron
        build_pmsn(3)(torch.zeros(5))


def test_state_of_another_batch():
    neuron = build_pmsn(3)
    _, state = neuron(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*left by another batch"):
        neuron(torch.zeros(2, 5, 3), state)
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.step(torch.zeros(5, 3), state)
    with pytest.raises(ValueError, match="tuple of 2 tensors.*got 1"):
        neuron(torch.zeros(2, 4, 3), state[:1])
    with pytest.raises(ValueError, match="left by another batch"):  # another number of modes
        build_pmsn(3, 4)(torch.zeros(2, 4, 3), state)


def test_state_follows_the_dtype_of_the_input():
    neuron = build_pmsn(3)
    _, state = neuron(torch.full((1, 2, 3), 0.3, dtype=F64))
    assert [t.dtype for t in state] == [F64, torch.complex128]
    s, state = neuron(torch.zeros(1, 2, 3, dtype=torch.float16), state)
    assert [s.dtype, *(t.dtype for t in state)] == [torch.float16, F32, torch.complex64]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reset_mode": "hard"}, "unknown reset_mode 'hard'; known: 'floor', 'serial', 'none', 'cumulative'"),
        ({"burst": "sawtooth"}, "unknown burst"),
        ({"burst": True, "reset_mode": "none"}, "removes none"),
        ({"residual": "fixed", "reset_mode": "serial"}, "belongs to reset_mode='floor'"),
        ({"residual": "double"}, "unknown residual"),
        ({"context": "all"}, "unknown context"),
        ({"coeff": 0.0}, "coeff must be positive"),
        ({"dt_scale": -1.0}, "dt_scale must be positive"),
        ({"dt_scale": math.nan}, "dt_scale must be a finite number"),
    ],
)
def test_bad_variants(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PMSN(3, **kwargs)
    neuron = PMSN(3)
    for name, value in kwargs.items():
        setattr(neuron, name, value)
    with pytest.raises(ValueError, match=message):
        neuron(torch.zeros(2, 2, 3))


@pytest.mark.parametrize("surrogate", [None, Soft("atan")], ids=["kernel", "soft"])
def test_functions_refuse_unknown_words(surrogate):
    y = torch.zeros(2, 3)
    for settings in (PMSNSettings(reset_mode="hard"), PMSNSettings(burst="true")):
        with pytest.raises(ValueError, match="unknown reset_mode or burst"):
            parallel_reset(y, settings=settings, surrogate=surrogate)


def test_reset_modes_have_a_line_each():
    assert all(RESET_MODES.values())
    assert set(RESET_MODES) == {soma[0] for soma in SOMAS}


def test_repr_names_what_is_not_usual():
    assert repr(PMSN(3)) == (
        "PMSN(channels=3, compartments=5, channel_dim=1, v_threshold=1.0, init='sequence', backend='auto')"
    )
    assert "burst=True, coeff=0.2, " in repr(PMSN(3, burst=True, coeff=0.2))
