"""Constructors explain a word that they do not take, and keep their signatures."""

import copy
import inspect
import pickle
import re

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import adapters, neurons, snntorch, spikingjelly, swap, words

CLASSES = {
    "neurons.MSF": neurons.MSF,
    "neurons.PMSN": neurons.PMSN,
    "neurons.MSN": neurons.MSN,
    "snntorch.MSF": snntorch.MSF,
    "snntorch.PMSN": snntorch.PMSN,
    "MSFNode": spikingjelly.MSFNode,
    "PMSNNode": spikingjelly.PMSNNode,
    "neurons.ParallelIF": neurons.ParallelIF,
    "snntorch.ParallelIF": snntorch.ParallelIF,
    "ParallelIFNode": spikingjelly.ParallelIFNode,
    "swap.MSF": swap.MSF,
    "swap.PMSN": swap.PMSN,
}
# What a swap is told besides its targets.
TOLD = {
    "swap.Keep": swap.Keep,
    "swap.Rule": swap.Rule,
    "swap.Read": swap.Read,
    "swap.Activation": swap.Activation,
}
REASONS = [
    *(words.PMSN_HAS_NOT, words.MSN_HAS_NOT, words.NODE_HAS_NOT, words.PARALLEL_IF_HAS_NOT),
    *(swap.spec.OF_THE_SITE, swap.spec.OF_THE_READING, swap.spec.OF_THE_TARGET),
]
FOREIGN = sorted({*words.HERE, *(word for has_not in REASONS for word in has_not)})


@pytest.mark.parametrize("name", [*CLASSES, *TOLD])
def test_no_word_of_another_framework_ends_without_a_remedy(name):
    cls = {**CLASSES, **TOLD}[name]
    accepted = set(words._words(cls))
    for word in set(FOREIGN) - accepted:
        with pytest.raises(TypeError, match=rf"^{cls.__name__} takes no '{word}': ") as error:
            cls(**{word: 0.5})
        said = str(error.value).partition(": ")[2]
        reasons = {reason for has_not in REASONS for reason in has_not.values()}
        assert said.startswith("say ") or "It takes " in said or said in reasons
        # what it says to write is what the constructor takes
        if found := re.match(r"say (\w+)", said):
            assert found[1] in {*accepted, "nothing", "from_neuron"}


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("snntorch.MSF", "tau", "say beta=1 - 1/tau"),
        ("MSFNode", "beta", "say tau=1 / (1 - beta)"),
        ("neurons.MSF", "beta", "say decay"),
        ("snntorch.PMSN", "beta", "its compartments learn their own decays"),
        ("PMSNNode", "tau", "its compartments learn their own decays"),
        ("PMSNNode", "D", "it has one threshold"),
        ("MSFNode", "spike_grad", "say surrogate_function"),
        ("snntorch.MSF", "surrogate_function", "say spike_grad"),
        ("MSFNode", "surogate_function", "did you mean 'surrogate_function'? It takes tau, decay_input"),
        ("swap.MSF", "beta", "every neuron keeps its own"),
        ("swap.MSF", "threshold", "say v_threshold"),
        ("swap.MSF", "thresholds", "D is how many"),
        ("MSFNode", "learn_beta", 'charge="plif" with w learns it'),
        ("MSFNode", "learn_threshold", "say from_neuron(neurons.MSF(learn_threshold=..))"),
        ("MSFNode", "decay", "say tau=1 / (1 - decay), and decay_input=False"),
        ("PMSNNode", "reset_mode", "say from_neuron(neurons.PMSN(reset_mode=..))"),
        ("snntorch.PMSN", "burst", "say from_neuron(neurons.PMSN(burst=..))"),
        ("neurons.MSF", "reset_mechanism", "say reset_mode"),
        ("neurons.MSF", "learn_beta", "say learn_decay"),
        ("neurons.MSN", "tau", "its time constants are learned: start="),
        ("neurons.MSN", "reset_mechanism", 'say reset_mode, "subtract" or "floor"'),
        ("swap.Keep", "D", "It takes nothing"),
        ("swap.Rule", "D", "say target=swap.MSF(D=..)"),
        ("swap.Rule", "backend", "say target=swap.MSF(backend=..) or swap.PMSN(backend=..)"),
        ("swap.Rule", "traget", "did you mean 'target'? It takes target, channel_dim"),
        ("swap.Read", "tau", "say dynamics={..}, in the words of MSFNode"),
        ("snntorch.ParallelIF", "beta", "it integrates without a decay"),
        ("snntorch.ParallelIF", "v_threshold", "say threshold"),
        ("snntorch.ParallelIF", "init_hiden", "did you mean 'init_hidden'?"),
    ],
)
def test_what_is_said(name, word, said):
    cls = {**CLASSES, **TOLD}[name]
    with pytest.raises(TypeError, match=re.escape(f"{cls.__name__} takes no '{word}': {said}")):
        cls(**{word: 2.0})
    if hasattr(cls, "published"):
        with pytest.raises(TypeError, match=re.escape(said)):
            cls.published(**{word: 2.0})


def test_the_equations_of_the_remedies_hold():
    """A LIF of either framework, said in the words of the other, is the same neuron."""
    x = torch.rand(6, 2, 3, dtype=torch.float64) * 2
    node = spikingjelly.MSFNode(tau=1 / (1 - 0.8), decay_input=False, v_reset=None, step_mode="m")
    loop = snntorch.MSF(beta=1 - 1 / 5.0, reset_delay=False, sequence=True)
    assert torch.equal(node(x), loop(x)[0])
    assert torch.equal(spikingjelly.MSFNode(w=0.0, charge="plif", step_mode="m").tau, torch.tensor(2.0))


@pytest.mark.parametrize("name", [*CLASSES, *TOLD])
def test_signatures_copies_and_subclasses_stay(name):
    cls = {**CLASSES, **TOLD}[name]

    class Mine(cls):
        def __init__(self, *args, own=1, **more):
            super().__init__(*args, **more)

    written = inspect.signature(cls.__init__.__wrapped__)
    assert [*inspect.signature(cls).parameters.values()] == [*written.parameters.values()][1:]
    made = cls()
    assert repr(pickle.loads(pickle.dumps(made))) == repr(copy.deepcopy(made)) == repr(made)
    Mine(own=2)
    with pytest.raises(TypeError, match="Mine takes no 'bogus'"):
        Mine(bogus=2)


@pytest.mark.parametrize("name", CLASSES)
def test_the_words_of_a_subclass_are_listed_before_those_that_it_hands_on(name):
    cls = CLASSES[name]

    class Mixed:
        def __init__(self, *args, mixed_in=1, **more):
            super().__init__(*args, **more)

    class Mine(Mixed, cls):
        def __init__(self, *args, own_gain=1, held=None, **more):
            super().__init__(*args, **more)

    class Grandchild(Mine):
        def __init__(self, *args, own_bias=1, **more):
            super().__init__(*args, **more)

    inherited = ", ".join(words._words(cls))
    for extended, own in ((Mine, "own_gain, held, "), (Grandchild, "own_bias, own_gain, ")):
        extended(own_gain=2, mixed_in=3)
        with pytest.raises(TypeError) as error:
            extended(own_gian=2)
        assert str(error.value) == (
            f"{extended.__name__} takes no 'own_gian': did you mean 'own_gain'? "
            f"It takes {own}mixed_in, {inherited}"
        )
    with pytest.raises(TypeError, match="Grandchild takes no 'backed': did you mean 'backend'"):
        Grandchild(backed="torch")


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_subclass_itself_says_wrongly_is_not_laid_to_its_caller(name):
    cls = CLASSES[name]

    class Forwards(cls):
        def __init__(self, own=1, **more):
            super().__init__(own=own, **more)

    class Closed(cls):
        def __init__(self, own=1):
            super().__init__(gain=own)

    class ByPosition(cls):
        def __init__(self, *args, own=1):
            super().__init__(*args, gain=own)

    for extended, word in ((Forwards, "own"), (Closed, "gain"), (ByPosition, "gain")):
        said = f"{cls.__name__}, extended by {extended.__name__}, takes no '{word}': "
        with pytest.raises(TypeError, match=re.escape(said)) as error:
            extended(own=2)
        assert f"It takes {', '.join(words._words(cls))}" in str(error.value)
    assert words._words(ByPosition) == ["own"]


@pytest.mark.parametrize(
    ("call", "options", "said"),
    [
        (swap.msf, {"beta": 0.5}, "swap.msf takes no 'beta': every neuron keeps its own"),
        (swap.msf, {"dynamic": "published"}, "swap.msf takes no 'dynamic': did you mean 'dynamics'?"),
        (swap.pmsn, {"D": 4}, "swap.pmsn takes no 'D': it has one threshold"),
        (swap.pmsn, {"n": 5}, "swap.pmsn takes no 'n': say compartments"),
        (
            swap.msf,
            {"target": swap.MSF()},
            "swap.msf takes no 'target': the target's words are said one by one",
        ),
        (swap.msf, {"folded": "fix"}, "swap.msf takes no 'folded': say rules={path: swap.Rule(folded=..)}"),
        (swap.plan, {"D": 4}, "swap.plan takes no 'D': say target=swap.MSF(D=..)"),
        (swap.plan, {"target": swap.MSF(), "D": 4}, "swap.plan takes no 'D': say target=swap.MSF(D=..)"),
        (swap.plan, {"init": "shd"}, "swap.plan takes no 'init': say target=swap.PMSN(init=..)"),
        (
            swap.plan,
            {"v_threshold": 1.0},
            "no 'v_threshold': say target=swap.MSF(v_threshold=..) or swap.PMSN(v_threshold=..)",
        ),
        (swap.plan, {"tau": 2.0}, "swap.plan takes no 'tau': every neuron keeps its own"),
        (swap.plan, {"step_mode": "m"}, "no 'step_mode': say neuron_classes={..: swap.Read(step_mode=..)}"),
        (swap.plan, {"dynamic": "site"}, "swap.plan takes no 'dynamic': did you mean 'dynamics'?"),
        (swap.plan, {}, "swap.plan(model, example_input, target, ..): missing a required argument: 'target'"),
        (adapters.get("spikformer").plan, {"D": 4}, "recipe.plan takes no 'D': say target=swap.MSF(D=..)"),
        (
            adapters.get("spikformer").plan,
            {"target": swap.MSF(), "dynamic": "site"},
            "recipe.plan takes no 'dynamic': did you mean 'dynamics'?",
        ),
        (swap.lif, {"losy": True}, "swap.lif takes no 'losy': did you mean 'lossy'?"),
        (swap.verify, {"pases": 20}, "swap.verify takes no 'pases': did you mean 'passes'?"),
    ],
)
def test_a_swap_in_one_call_explains_its_words_too(call, options, said):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(TypeError, match=re.escape(said)):
        call(net, torch.rand(2, 3), **options)


@pytest.mark.parametrize("call", [swap.plan, swap.msf, swap.pmsn, swap.lif, swap.verify])
def test_a_call_of_the_swap_keeps_its_signature_and_counts_its_arguments(call):
    parameters = inspect.signature(call).parameters
    assert [*parameters.values()] == [*inspect.signature(call.__wrapped__).parameters.values()]
    assert next(iter(parameters)) == "model"
    name = re.escape(f"swap.{call.__name__}(model, ")
    with pytest.raises(TypeError, match=f"^{name}.*: too many positional arguments$"):
        call(nn.Linear(3, 4), torch.rand(2, 3), swap.MSF(), 4)
    with pytest.raises(TypeError, match=r": missing a required argument: 'model'$"):
        call()


@pytest.mark.parametrize("kind", [swap.MSF, swap.PMSN, swap.Keep])
def test_a_target_that_was_not_called_is_told_to_be(kind):
    said = re.escape(f"got the class swap.{kind.__name__}: call it, swap.{kind.__name__}()")
    if kind is not swap.Keep:
        with pytest.raises(TypeError, match=said):
            swap.plan(nn.Linear(3, 4), torch.rand(2, 3), kind)
    with pytest.raises(TypeError, match=said):
        swap.plan(nn.Linear(3, 4), torch.rand(2, 3), swap.MSF(), rules={"1": kind})
    with pytest.raises(TypeError, match=said):
        swap.Rule(target=kind)


def test_no_class_is_told_to_be_called_where_its_object_does_not_belong():
    for kind in (swap.Keep, swap.Rule, nn.ReLU):
        with pytest.raises(TypeError, match=rf"or swap\.PMSN\(\.\.\.\), got the class {kind.__name__}$"):
            swap.plan(nn.Linear(3, 4), torch.rand(2, 3), kind)
    with pytest.raises(TypeError, match="or swap.Keep, got the class Rule$"):
        swap.Rule(target=swap.Rule)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            {nn.ReLU: swap.Activation},
            "ReLU is read by a swap.Read or swap.Activation, got the class swap.Activation",
        ),
        ({nn.ReLU: swap.Read}, "got the class swap.Read: call it, swap.Read()"),
        ({nn.ReLU: "m"}, "ReLU is read by a swap.Read or swap.Activation, got 'm'"),
        (nn.ReLU, "neuron_classes are several: say (ReLU,), or {ReLU: swap.Read(..)}"),
        ([nn.ReLU()], "neuron_classes names classes, as MyLIF, got an object: ReLU()"),
        (["ReLU"], "neuron_classes names classes, as MyLIF, got an object: 'ReLU'"),
    ],
)
@pytest.mark.parametrize("call", [swap.plan, adapters.get("spikformer").plan])
def test_classes_to_read_are_told_from_objects(call, classes, said):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(TypeError, match=re.escape(said)):
        call(net, torch.rand(2, 3), swap.MSF(), neuron_classes=classes)


def test_rules_that_are_no_mapping_are_explained():
    with pytest.raises(TypeError, match="rules are a mapping from a path to a target or a swap.Rule, got "):
        swap.plan(nn.Linear(3, 4), torch.rand(2, 3), swap.MSF(), rules=[("1", swap.Keep())])


@pytest.mark.parametrize(
    "call",
    [
        lambda model: swap.plan(model, torch.rand(2, 3), swap.MSF()),
        lambda model: swap.msf(model, torch.rand(2, 3), D=4),
        lambda model: swap.pmsn(model, torch.rand(2, 3)),
        lambda model: adapters.get("spikformer").plan(model, torch.rand(2, 3), swap.MSF()),
        swap.lif,
        lambda model: swap.verify(model, torch.rand(2, 3)),
        lambda model: swap.load_published(model, {}),
        lambda model: swap.Plan.from_dict(model, {"format": swap.saving.FORMAT, "model": {}}),
        lambda model: swap.calibrate.firing_rates(model, [torch.rand(2, 3)], [""]),
        lambda model: swap.calibrate.match_rates(model, [torch.rand(2, 3)], {"": 0.1}),
        lambda model: swap.calibrate.match_norms(model, [torch.rand(2, 3)]),
        lambda model: swap.calibrate.set_thresholds(model, D=2),
        lambda model: swap.calibrate.set_steps(model, 4),
    ],
)
def test_a_model_that_was_not_built_is_told_to_be(call):
    with pytest.raises(
        TypeError, match=r"model must be a built torch\.nn\.Module, got the class ReLU: call it"
    ):
        call(nn.ReLU)
    with pytest.raises(TypeError, match=r"model must be a built torch\.nn\.Module, got 'net'"):
        call("net")


@pytest.mark.parametrize("cls", [neurons.MSF, snntorch.MSF, spikingjelly.MSFNode])
def test_a_number_of_thresholds_is_told_from_a_list_of_them(cls):
    with pytest.raises(TypeError, match="thresholds must be a list of volts, got 4: D is how many"):
        cls(thresholds=4)
    for given in (torch.tensor(4), "12", b"12"):
        with pytest.raises(TypeError, match="thresholds must be a list of volts"):
            cls(thresholds=given)


@pytest.mark.parametrize("cls", [neurons.PMSN, snntorch.PMSN, spikingjelly.PMSNNode])
def test_weights_of_another_number_of_channels_are_named_first(cls):
    net, other = nn.Sequential(cls(4)), nn.Sequential(cls(6))
    with pytest.raises(RuntimeError) as error:
        net.load_state_dict(other.state_dict())
    first = str(error.value).splitlines()[1]
    assert "has 4 channels, and the dict is of 6: build the net with channels=6" in first


@pytest.mark.parametrize(
    ("charge", "more", "said"),
    [("decay", {}, "say decay=1 - 1/tau"), ("plif", {"w": 0.0}, "say w=-log"), ("if", {}, "has no tau")],
)
def test_a_time_constant_that_a_charge_has_not_is_not_ignored(charge, more, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        neurons.MSF(charge=charge, tau=2.0, **more)
