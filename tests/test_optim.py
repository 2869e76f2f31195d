"""Parameter groups with the published rates."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as old_weight_norm

from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.pmsn import PARAMETERS
from msf_pmsn_plugins.optim import RECIPES, param_groups

LR, NEURON_LR, DECAY = 0.02, 0.003, 0.05

# learning rate and weight decay by parameter: specification of PMSN, section 11
SEQUENCE = {
    "log_dt": (NEURON_LR, 0.0),
    "log_A_real": (NEURON_LR, 0.0),
    "A_imag": (10 * NEURON_LR, 0.0),
    "VinvB_real": (10 * NEURON_LR, 0.0),
    "VinvB_imag": (10 * NEURON_LR, 0.0),
    "CV_real": (10 * NEURON_LR, 0.0),
    "CV_imag": (10 * NEURON_LR, 0.0),
    "D": (LR, DECAY),
}
PUBLISHED = {
    "smnist": SEQUENCE | {"VinvB_real": (10 * NEURON_LR, 10 * NEURON_LR)},
    "shd": SEQUENCE,
    "imagenet": dict.fromkeys(SEQUENCE, (NEURON_LR, DECAY))
    | {"A_imag": (10 * NEURON_LR, DECAY), "D": (LR, DECAY)},
}


class Node(nn.Module):
    """A framework's node holds its neuron."""

    def __init__(self, neuron):
        super().__init__()
        self.neuron = neuron


def network(channels=4):
    return nn.Sequential(
        nn.Linear(3, 4),
        nn.BatchNorm1d(4),
        Node(PMSN(channels)),
        nn.Linear(4, 4),
        PMSN(channels, 3),
        MSF(charge="plif", w=0.0),
    )


def rates(groups):
    """Parameter id -> (lr, weight decay); every parameter must occur once."""
    found = {}
    for group in groups:
        assert set(group) == {"params", "lr", "weight_decay"}
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("channels", [4, None])
@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_rates(recipe, channels):
    model = network(channels)
    found = rates(param_groups(model, LR, NEURON_LR, DECAY, recipe))
    assert found.keys() == {id(p) for p in model.parameters()}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            expected = PUBLISHED[recipe][name] if isinstance(module, PMSN) else (LR, DECAY)
            assert found[id(parameter)] == pytest.approx(expected, rel=1e-12), name


def test_every_recipe_is_covered_here():
    assert set(RECIPES) == set(PUBLISHED)


def test_default_decay_and_neuron_rate():
    """S-MNIST's VinvB_real decays by ten times the neuron rate: 0.01 at the published 1e-3."""
    neuron = PMSN(2)
    found = rates(param_groups(neuron, 1e-2))
    assert found[id(neuron.VinvB_real)] == pytest.approx((0.01, 0.01))
    assert found[id(neuron.log_dt)] == pytest.approx((1e-3, 0.0))
    assert found[id(neuron.D)] == (1e-2, 0.0)


def test_equal_rates_do_not_lose_or_repeat_a_parameter():
    model = network()
    found = rates(
        param_groups(model, lr=1e-2, neuron_lr=1e-3, weight_decay=0.0, recipe="shd")
    )  # lr = 10 neuron_lr
    assert len(found) == len(list(model.parameters()))


def test_a_shared_neuron_occurs_once():
    neuron = PMSN(4)
    model = nn.Sequential(neuron, nn.Linear(4, 4), Node(neuron))
    assert len(rates(param_groups(model, LR))) == len(PARAMETERS) + 2


def test_a_model_without_pmsn_is_one_group():
    model = nn.Sequential(nn.Linear(2, 2), MSF())
    (group,) = param_groups(model, LR, weight_decay=DECAY)
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (LR, DECAY, 2)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="unknown recipe 'mnist'; known: smnist, shd, imagenet"):
        param_groups(PMSN(2), LR, recipe="mnist")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_groups_made_before_the_channels_are_known_train_after(kind):
    model = nn.Sequential(nn.Linear(3, 4), PMSN())
    optimizer = kind(param_groups(model, LR, weight_decay=DECAY))
    x = 4 * torch.randn(20, 5, 3, generator=torch.Generator().manual_seed(0))
    model(x)
    before = [p.detach().clone() for p in model.parameters()]
    (model(x)[0].mean() - 1).square().backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


class Scaled(nn.Module):
    """A parametrisation with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, value):
        return self.scale * value


def pruned_twice(neuron, name):
    prune.l1_unstructured(neuron, name, 0.25)
    prune.random_unstructured(neuron, name, 0.25)


# what computes a parameter of others -> the names that it gives those
COMPUTED = {
    "own": (
        lambda n, name: parametrize.register_parametrization(n, name, Scaled()),
        ["parametrizations.{}.original"],
    ),
    "weight_norm": (
        parametrizations.weight_norm,
        ["parametrizations.{}.original0", "parametrizations.{}.original1"],
    ),
    "old_weight_norm": (old_weight_norm, ["{}_g", "{}_v"]),
    "pruned": (lambda n, name: prune.l1_unstructured(n, name, 0.5), ["{}_orig"]),
    "pruned_twice": (pruned_twice, ["{}_orig"]),
}


@pytest.mark.parametrize("in_node", [False, True])
@pytest.mark.parametrize("recipe", PUBLISHED)
@pytest.mark.parametrize("way", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_what_a_parameter_is_computed_from_has_its_rates(way, recipe, in_node):
    compute, names = COMPUTED[way]
    for computed in ("A_imag", "VinvB_real", "CV_imag"):
        neuron = PMSN(4)
        compute(neuron, computed)
        model = nn.Sequential(nn.Linear(2, 4), Node(neuron) if in_node else neuron, MSF(learn_decay=True))
        found = rates(param_groups(model, LR, NEURON_LR, DECAY, recipe))
        assert found.keys() == {id(p) for p in model.parameters()}
        originals = {form.format(computed): computed for form in names}
        for name, parameter in neuron.named_parameters():
            expected = PUBLISHED[recipe].get(originals.pop(name, name), (LR, DECAY))
            assert found[id(parameter)] == pytest.approx(expected, rel=1e-12), name
        assert not originals
