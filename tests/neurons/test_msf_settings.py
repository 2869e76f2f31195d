"""MSF: settings, before and after construction, and input that it refuses."""

import math

import numpy as np
import pytest
import torch

from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.surrogate import Surrogate
from tolerances import F32, F64

# ---------------------------------------------------------------- settings and bad input


def test_settings_changed_after_construction_take_effect():
    x = torch.full((1, 1), 3.0)
    neuron = MSF(D=4)
    assert neuron(x)[0].item() == 3
    neuron.v_threshold = 2.0
    assert neuron(x)[0].item() == 2
    neuron.D = 1
    assert neuron(x)[0].item() == 1
    neuron.D, neuron.threshold_step = 4, 0.25
    assert neuron.thresholds == [2.0, 2.25, 2.5, 2.75]
    assert neuron(x)[0].item() == 4
    neuron.decay = 1.0
    assert neuron(torch.tensor([[1.0], [0.5]]))[1][0].item() == 1.5


def test_default_rectangle_is_half_the_spacing():
    assert MSF().surrogate == Surrogate("rectangular", 0.5)
    assert MSF(threshold_step=0.5).surrogate == Surrogate("rectangular", 0.25)
    assert MSF(threshold_step=0.5, surrogate="rectangular").surrogate == Surrogate("rectangular", 0.5)


def test_default_rectangle_follows_a_changed_spacing():
    """Specification, section 4: for a spacing h the default half-width is h/2, or slopes overlap or leave gaps."""
    neuron = MSF()
    neuron.threshold_step = 0.5
    assert neuron.surrogate == Surrogate("rectangular", 0.25)


def test_own_surrogate_survives_a_changed_spacing():
    neuron = MSF(surrogate=Surrogate("rectangular", 0.5))
    neuron.threshold_step = 0.5
    assert neuron.surrogate == Surrogate("rectangular", 0.5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"D": 0}, "D, the number of thresholds"),
        ({"D": 2.0}, "D, the number of thresholds"),
        ({"D": True}, "D, the number of thresholds"),
        ({"decay": -0.1}, "decay must lie"),
        ({"decay": 1.1}, "decay must lie"),
        ({"decay": math.nan}, "decay must be a finite number"),
        ({"v_threshold": math.nan}, "v_threshold must be a finite number"),
        ({"input_scale": math.inf}, "input_scale must be a finite number"),
        ({"v_reset": math.nan}, "v_reset must be a finite number"),
        ({"threshold_step": 0.0}, "threshold_step must be positive"),
        ({"threshold_step": -1.0, "surrogate": "atan"}, "threshold_step must be positive"),
        ({"reset_mode": "zero"}, "unknown reset_mode 'zero'.*'hard', 'soft', 'none'"),
        ({"charge": "leaky"}, "unknown charge 'leaky'.*lif_product"),
        ({"charge": "lif"}, "needs a finite tau > 1"),
        ({"charge": "lif", "tau": 1.0}, "needs a finite tau > 1"),
        ({"charge": "plif"}, "needs w"),
        ({"surrogate": "rect"}, "unknown surrogate 'rect'"),
        ({"backend": "cuda"}, "unknown backend 'cuda'.*'auto', .*'torch'"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MSF(**kwargs)


def test_bad_setting_after_construction_raises_at_the_call():
    neuron = MSF()
    for name, value in (("D", 0), ("decay", 2.0), ("reset_mode", "zero"), ("threshold_step", -1.0)):
        before = getattr(neuron, name)
        with pytest.raises(ValueError, match=name):
            setattr(neuron, name, value)
            neuron(torch.zeros(2, 3))
        setattr(neuron, name, before)


def test_unknown_backend_after_construction():
    neuron = MSF()
    with pytest.raises(ValueError, match="unknown backend 'cpu'; known: 'auto'"):
        neuron.backend = "cpu"
    assert neuron.backend == "auto"


def test_input_must_be_real():
    x = torch.zeros(3, 2, dtype=torch.complex64)
    for call in (lambda: MSF()(x), lambda: MSF().step(x[0], (torch.zeros(2),))):
        with pytest.raises(TypeError, match=r"MSF takes real numbers, got torch\.complex64: .*x\.abs\(\)"):
            call()
    with pytest.raises(TypeError, match=r"takes real numbers, got torch\.quint8: .*x\.dequantize\(\)"):
        MSF()(torch.quantize_per_tensor(torch.zeros(3, 2), 0.1, 0, torch.quint8))


def test_input_must_be_a_tensor_with_a_time_axis():
    with pytest.raises(TypeError, match="takes a torch.Tensor, got list"):
        MSF()([[1.0]])
    with pytest.raises(TypeError, match="takes a torch.Tensor, got ndarray"):
        MSF().step(np.zeros((2, 3)), (torch.zeros(2, 3),))
    with pytest.raises(ValueError, match=r"time first.*without axes.*step\(x, state\)"):
        MSF()(torch.tensor(5.0))


def test_state_of_another_batch():
    neuron = MSF()
    _, state = neuron(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*left by another batch"):
        neuron(torch.zeros(2, 5, 3), state)
    with pytest.raises(ValueError, match="left by another batch"):
        neuron.step(torch.zeros(5, 3), state)
    with pytest.raises(ValueError, match="tuple of 1 tensors.*got 2"):
        neuron(torch.zeros(2, 4, 3), (*state, *state))


def test_state_follows_the_dtype_of_the_input():
    neuron = MSF()
    _, (v,) = neuron(torch.full((1, 2), 0.3, dtype=F64))
    s, (v,) = neuron(torch.zeros(1, 2, dtype=torch.float16), (v,))
    assert (s.dtype, v.dtype) == (torch.float16, F32)
