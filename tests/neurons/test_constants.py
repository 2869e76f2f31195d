"""Settings that are one number: a tensor is read once, and one that would have to learn is refused."""

import copy

import pytest
import torch
from torch import nn

from msf_pmsn_plugins.neurons import MSF, MSN, PMSN, ParallelIF

LEAKS = {"charge": "lif_decay_input", "tau": 2.0}
MADE = {
    "msf": lambda **words: MSF(**words),
    "msf tau": lambda **words: MSF(**{**LEAKS, **words}),
    "pmsn": lambda **words: PMSN(5, **words),
    "parallel_if": lambda **words: ParallelIF(**words),
    "msn": lambda **words: MSN(5, **words),
}
WORDS = [
    *(("msf", name) for name in ("input_scale", "threshold_step", "v_reset")),
    ("msf tau", "tau"),
    *(("pmsn", name) for name in PMSN.constants),
    ("parallel_if", "v_threshold"),
    *(("msn", name) for name in MSN.constants),
]
LEARNING = {
    "parameter": lambda: nn.Parameter(torch.tensor(1.5)),
    "computed": lambda: torch.tensor(0.75, requires_grad=True) * 2,
}
X = torch.rand(3, 2, 5)


@pytest.mark.parametrize(("kind", "word"), WORDS, ids=lambda word: word.replace(" ", "_"))
@pytest.mark.parametrize("made", LEARNING)
def test_what_would_have_to_learn_is_refused(kind, word, made):
    value = LEARNING[made]()
    said = rf"^{word} is a number here and is not learned, .* give its value, float\({word}\.detach\(\)\)$"
    with pytest.raises(TypeError, match=said):
        MADE[kind](**{word: value})
    neuron = MADE[kind]()
    before, state = getattr(neuron, word), neuron.state_dict().keys()
    with pytest.raises(TypeError, match=said):
        setattr(neuron, word, value)
    assert getattr(neuron, word) == before
    assert neuron.state_dict().keys() == state
    setattr(neuron, word, float(value.detach()))  # the remedy
    assert getattr(neuron, word) == 1.5


@pytest.mark.parametrize(("kind", "word"), WORDS, ids=lambda word: word.replace(" ", "_"))
@pytest.mark.parametrize("value", [torch.tensor(1.5), nn.Parameter(torch.tensor([1.5]), requires_grad=False)])
def test_one_number_in_a_tensor_is_that_number(kind, word, value):
    plain, given, later = MADE[kind](**{word: 1.5}), MADE[kind](**{word: value}), MADE[kind]()
    setattr(later, word, value)
    for neuron in (given, later, copy.deepcopy(given)):
        assert type(getattr(neuron, word)) is float
        assert neuron.state_dict().keys() == plain.state_dict().keys()
        neuron.load_state_dict(plain.state_dict())
        assert torch.equal(neuron(X)[0], plain(X)[0])
    with pytest.raises(TypeError, match=f"^{word} must be a finite number, got "):
        setattr(later, word, torch.rand(5))


def test_a_tau_that_cannot_be_is_named_wherever_it_is_set():
    neuron = MSF(**LEAKS)
    for tau in (1.0, 0.5, None):
        neuron.tau = tau
        with pytest.raises(ValueError, match=r"^charge 'lif_decay_input' needs a finite tau > 1, got "):
            neuron(X)
