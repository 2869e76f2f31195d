"""The spiking EEGNet: equal to the published network, general in channels and steps."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

for name in ("lightning", "spikingjelly"):
    pytest.importorskip(name)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from recipes.models import EEGNet, count_parameters  # noqa: E402
from recipes.neurons import LIF, MSF, PMSN, ReLU, reset  # noqa: E402

# the LIF of the paper's code is MSF with one threshold
NEURONS = {"eegnet_msf": MSF(D=4), "eegnet_lif": MSF(D=1)}


def published(name):
    """The golden numbers, and the network with their weights."""
    golden = np.load(ROOT / "tests" / "golden" / f"{name}.npz")
    net = EEGNet(1, 30, 100, 5, NEURONS[name], dropout=0.0)
    state = {ours(key[6:]): torch.from_numpy(golden[key]) for key in golden.files if key.startswith("state/")}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [key for key in missing if "neuron" not in key]
    return golden, net


def ours(name):
    """block1.0.0.weight is conv1.weight, block1.1.0.bias is norm1.bias."""
    if not name.startswith("block"):
        return name
    block, part, _, rest = name.split(".", 3)
    return f"{('conv', 'norm')[int(part)]}{block[-1]}.{rest}"


@pytest.mark.parametrize(("kind", "tolerance"), [("f64", 1e-9), ("f32", 1e-4)])
@pytest.mark.parametrize("name", NEURONS)
def test_logits_loss_and_gradients_are_the_published_ones(name, kind, tolerance):
    golden, net = published(name)
    net = net.double() if kind == "f64" else net.float()
    x = torch.from_numpy(golden["x"]).to(next(net.parameters()).dtype).unsqueeze(1).requires_grad_()
    net.eval()
    torch.testing.assert_close(
        net(x).detach(), torch.from_numpy(golden[f"{kind}/eval"]), rtol=tolerance, atol=tolerance
    )
    reset(net)
    net.train()
    means = []
    for neuron in (net.neuron1, net.neuron2, net.neuron3):
        neuron.register_forward_hook(lambda module, given, spikes: means.append(spikes.mean().item()))
    out = net(x)
    assert means == pytest.approx(golden[f"{kind}/spike_means"].tolist(), rel=1e-6 if kind == "f64" else 1e-4)
    torch.testing.assert_close(
        out.detach(), torch.from_numpy(golden[f"{kind}/train"]), rtol=tolerance, atol=tolerance
    )
    loss = F.cross_entropy(out, torch.from_numpy(golden["y"]))
    assert loss.item() == pytest.approx(float(golden[f"{kind}/loss"]), rel=tolerance)
    loss.backward()
    grads = {f"{kind}/grad_x": x.grad.squeeze(1)}
    named = dict(net.named_parameters())
    grads |= {
        key: named[ours(key.split("/grad/")[1])].grad
        for key in golden.files
        if key.startswith(f"{kind}/grad/")
    }
    assert len(grads) == 12
    for key, grad in grads.items():
        expected = torch.from_numpy(golden[key])
        scale = expected.abs().max()
        # the published neuron hands its gradient on as float32
        assert (grad - expected).abs().max() <= (1e-5 if kind == "f64" else 1e-3) * scale, key


@pytest.mark.parametrize(
    ("channels", "steps", "samples", "classes", "count"),
    [(1, 30, 100, 5, 21_893), (32, 60, 128, 2, 21_922), (64, 3, 160, 4, 19_492), (6, 4, 224, 2, 17_506)],
    ids=["sleep", "deap", "mmidb", "six channels"],
)
def test_parameter_counts(channels, steps, samples, classes, count):
    assert count_parameters(EEGNet(channels, steps, samples, classes, MSF())) == count


@pytest.mark.parametrize("neuron", [MSF(), LIF(), PMSN(), ReLU()], ids=repr)
def test_every_neuron_learns_from_several_channels(neuron):
    net = EEGNet(3, 4, 40, 2, neuron)
    x = torch.randn(5, 3, 160)
    loss = F.cross_entropy(net(x), torch.tensor([0, 1, 0, 1, 0]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"takes \[N, 3, 4 \* 40\] signals, got \(5, 3, 150\)"):
        net(x[..., :150])


@pytest.mark.parametrize("kernels", [(32, 16), (7, 5), (8, 1), (1, 2)], ids=str)
def test_it_pads_as_same_does_and_prints_nothing(kernels):
    net = EEGNet(3, 4, 40, 2, MSF(), dropout=0.0, kernels=kernels)
    x = torch.randn(5, 3, 160)
    convolutions = [net.conv1, net.conv3]
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            out = net(x)
            grads = torch.autograd.grad(out.sum(), [conv.weight for conv in convolutions])
    finally:
        torch.set_warn_always(False)
    reset(net)
    for conv in convolutions:
        conv.padding = "same"
        conv.register_forward_pre_hook(lambda conv, given: (given[0][..., : net.shape[2]],))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
    assert torch.equal(out, expected)
    expected_grads = torch.autograd.grad(expected.sum(), [conv.weight for conv in convolutions])
    for grad, own in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, own)


def test_samples_of_a_batch_do_not_meet():
    net = EEGNet(2, 3, 20, 2, MSF()).eval()
    x = torch.randn(4, 2, 60)
    together = net(x)
    reset(net)
    for i in range(4):
        torch.testing.assert_close(net(x[i : i + 1]), together[i : i + 1])
        reset(net)


def test_norms_are_bounded_at_the_start():
    torch.manual_seed(0)
    net = EEGNet(2, 3, 20, 2, MSF())
    assert net.conv2.weight.flatten(1).norm(dim=1).max() <= 1 + 1e-6
    assert net.fc.weight.norm(dim=1).max() <= 0.25 + 1e-6
