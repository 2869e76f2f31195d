"""The loops of snnTorch's official tutorials at toy size, with our neurons in the place of ``Leaky``.

The quickstart, tutorials 2, 3, 5 and 6, population coding, regression and forward-forward: what they record, sum up and
train must work as it stands there, and training must lower the loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, softplus

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
from snntorch import functional as SF  # noqa: E402
from snntorch import surrogate  # noqa: E402

from msf_pmsn_plugins.snntorch import MSF, PMSN, patched, reset  # noqa: E402

STEPS, BATCH, CLASSES = 6, 8, 4

# width -> a neuron, with the words that each tutorial adds
NEURONS: dict[str, Callable[..., Any]] = {
    "MSF": lambda width, **words: MSF(beta=0.9, **words),
    "MSF, published": lambda width, **words: MSF.published(threshold=0.4, **words),
    "PMSN": lambda width, **words: PMSN(width, **words),
}
each = pytest.mark.parametrize("make", NEURONS.values(), ids=NEURONS)


@pytest.fixture(autouse=True)
def _start() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the host's reset does not know our neurons
        yield


def classes(*shape: int) -> tuple[Tensor, Tensor]:
    """Inputs that four means tell apart."""
    targets = torch.arange(BATCH) % CLASSES
    means = torch.rand(CLASSES, *shape)
    return 3 * means[targets] + 0.05 * torch.rand(BATCH, *shape), targets


def lowered(net: nn.Module, loss_of: Callable[[], Tensor], rounds: int = 12, rate: float = 1e-2) -> None:
    """Train, and raise unless the loss went down and every weight had a finite gradient."""
    loss_of()  # gives neurons without a width theirs
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.999)), []
    for _ in range(rounds):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def hidden_convolutions(make: Callable[..., Any], **words: Any) -> nn.Sequential:
    """The net of the quickstart and of tutorial 6: states inside, spikes and membranes out of the last layer."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.MaxPool2d(2),
        make(4, init_hidden=True, **words),
        nn.Conv2d(4, 6, 3),
        nn.MaxPool2d(2),
        make(6, init_hidden=True, **words),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
        make(CLASSES, init_hidden=True, output=True, **words),
    )


def forward_pass(net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
    """Rest, then the same picture in every step; what the last layer gives, recorded."""
    reset(net)
    spk_rec, mem_rec = [], []
    for _ in range(STEPS):
        spk, mem = net(data)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@each
def test_quickstart(make):
    data, targets = classes(1, 10, 10)
    net, loss = hidden_convolutions(make), SF.ce_rate_loss()
    spk_rec, mem_rec = forward_pass(net, data)
    assert spk_rec.shape == mem_rec.shape == (STEPS, BATCH, CLASSES)
    lowered(net, lambda: loss(forward_pass(net, data)[0], targets))
    accuracy = SF.accuracy_rate(forward_pass(net, data)[0], targets)
    assert 0 <= accuracy <= 1


@each
def test_quickstart_with_the_hosts_reset(make):
    """The script's own ``utils.reset(net)``, inside ``patched()``."""
    from snntorch import utils

    data, _ = classes(1, 10, 10)
    net = hidden_convolutions(make)
    first, _ = forward_pass(net, data)
    with patched():
        utils.reset(net)
    spk_rec = torch.stack([net(data)[0] for _ in range(STEPS)])
    assert torch.equal(spk_rec, first)


@each
@pytest.mark.parametrize("shape", [(), (1,)])
def test_tutorial_2_and_3_one_neuron_and_a_step_current(make, shape):
    """A current that begins at step 10, one number a step, and a membrane recorded to be plotted."""
    current = torch.cat([torch.zeros(10, *shape), torch.full((60, *shape), 0.8)])
    lif = make(1)
    carries = isinstance(lif, PMSN)
    mem = lif.reset_mem() if carries else torch.zeros(1)
    spk_rec, mem_rec = [], []
    for step in range(len(current)):
        spk, mem = lif(current[step], mem)
        mem_rec.append(mem)
        spk_rec.append(spk)
    mem_rec, spk_rec = torch.stack(mem_rec), torch.stack(spk_rec)
    assert mem_rec.shape == spk_rec.shape == current.shape
    assert mem_rec.detach().flatten().numpy().shape == (70,)
    assert not spk_rec[:10].any()
    if carries:  # what it is told once it would have to know about its compartments
        with pytest.raises(ValueError, match="has lost the state"):
            lif(current[0], torch.ones(1) * 0.9)
    else:
        lif(current[0], torch.ones(1) * 0.9)


class Feedforward(nn.Module):
    """Tutorials 3 and 5: two layers, the states by hand, spikes and membranes recorded."""

    def __init__(
        self, make: Callable[..., Any], inputs: int = 9, outputs: int = CLASSES, **words: Any
    ) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(inputs, 16), make(16, **words)
        self.fc2, self.lif2 = nn.Linear(16, outputs), make(outputs, **words)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@pytest.mark.parametrize(
    "make", [*NEURONS.values(), lambda width, **words: PMSN(**words)], ids=[*NEURONS, "unsized"]
)
def test_tutorial_5_cross_entropy_of_every_membrane(make):
    data, targets = classes(9)
    net = Feedforward(make)

    def loss_of() -> Tensor:
        _, mem_rec = net(data)
        loss = torch.zeros(1)
        for step in range(STEPS):
            loss = loss + cross_entropy(mem_rec[step], targets)
        return loss.squeeze()

    lowered(net, loss_of)
    with torch.no_grad():
        net.eval()
        spk_rec, _ = net(data)
    _, predicted = spk_rec.sum(dim=0).max(1)
    assert predicted.shape == targets.shape


@each
def test_tutorial_6_a_surrogate_by_name_of_the_host(make):
    data, targets = classes(1, 10, 10)
    net = hidden_convolutions(make, spike_grad=surrogate.fast_sigmoid(slope=5))

    def loss_of() -> Tensor:
        _, mem_rec = forward_pass(net, data)
        return torch.stack([cross_entropy(mem, targets) for mem in mem_rec]).sum()

    lowered(net, loss_of)


@each
def test_population_coding(make):
    data, targets = classes(9)
    population = 5 * CLASSES
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(9, 16),
        make(16, init_hidden=True),
        nn.Linear(16, population),
        make(population, init_hidden=True, output=True),
    )
    words = {"population_code": True, "num_classes": CLASSES}
    loss = SF.mse_count_loss(correct_rate=1.0, incorrect_rate=0.0, **words)
    lowered(net, lambda: loss(forward_pass(net, data)[0], targets))
    assert 0 <= SF.accuracy_rate(forward_pass(net, data)[0], targets, **words) <= 1


@each
def test_regression_of_a_membrane_over_time(make):
    """The last layer does not reset and its membrane follows a curve: all steps, one sample, one number."""
    target = torch.linspace(0, 1, 20).sqrt().reshape(-1, 1, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(1, 24), make(24)
            self.fc2 = nn.Linear(24, 1)
            never = {} if isinstance(self.lif1, PMSN) else {"reset_mechanism": "none"}
            self.lif2 = make(1, **never)

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2, mem_rec = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for x_t in x:
                spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
                mem_rec.append(mem2)
            return torch.stack(mem_rec)

    net = Net()
    assert net(target).shape == target.shape
    lowered(net, lambda: mse_loss(net(target), target), rounds=15, rate=5e-3)


@each
def test_forward_forward_trains_each_layer_by_itself(make):
    """Goodness of true and of false data, a loss and an optimizer for each layer, and no gradient between layers."""

    class Layer(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(inputs, outputs), make(outputs)

        def forward(self, x: Tensor) -> Tensor:
            mem, spk_rec = self.lif.reset_mem(), []
            current = self.fc(x / (x.norm(2, 1, keepdim=True) + 1e-4))
            for _ in range(STEPS):
                spk, mem = self.lif(2 * current, mem)
                spk_rec.append(spk)
            return torch.stack(spk_rec).mean(0)

        def goodness(self, x: Tensor) -> Tensor:
            return self(x).pow(2).mean(1)

        def loss(self, true: Tensor, false: Tensor) -> Tensor:
            return softplus(torch.cat([0.5 - self.goodness(true), self.goodness(false) - 0.5])).mean()

    data, targets = classes(9)
    label = torch.eye(CLASSES)
    true, false = (torch.cat([data, label[t]], 1) for t in (targets, (targets + 1) % CLASSES))
    for layer in (Layer(9 + CLASSES, 16), Layer(16, 16)):
        lowered(layer, lambda layer=layer, x=(true, false): layer.loss(*x), rounds=25)
        true, false = layer(true).detach(), layer(false).detach()
        assert true.grad_fn is None
