"""The detector of the MSF paper: published parameter counts, outputs and gradients; narrow and of every neuron."""
# ruff: noqa: E402

import numpy as np
import pytest
import torch
from torch import nn

for name in ("lightning", "torchvision", "spikingjelly"):
    pytest.importorskip(name)

from recipes.detection.boxes import decode, probabilities
from recipes.models import count_parameters
from recipes.models.detector import PAFPN, Anchors, Detector, Head, mhsanet50
from recipes.models.mhsanet import Block
from recipes.neurons import LIF, MSF, PMSN, ReLU, reset

from fixtures.detection import by_rule, golden, load, ours, placed, stored, tensor, uniform
from msf_pmsn_plugins import checkpoints
from msf_pmsn_plugins.spikingjelly import SpikingJellyNode

NEURON = MSF(D=8)


def assert_near(value, expected, tolerance=1e-9):
    expected = tensor(expected)
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


def assert_gradients(net, file, prefix="", tolerance=1e-5):
    """The gradients of all parameters; the published neuron sends its own on as float32."""
    named = dict(net.named_parameters())
    keys = [key for key in file.files if key.startswith(f"{prefix}grad/")]
    assert len(keys) == len(named)
    for key in keys:
        expected = tensor(file[key])
        grad = named[ours(key.split("grad/", 1)[1])].grad
        assert (grad - expected).abs().max() <= tolerance * max(expected.abs().max(), 1e-6), key


# -- counts


@pytest.mark.parametrize(
    ("build", "count", "neurons"),
    [
        (lambda: mhsanet50(NEURON), 49_251_360, 80),
        (lambda: PAFPN((256, 512, 1024), 3, NEURON), 19_523_072, 40),
        (lambda: Head((256, 512, 1024), 256, 80, NEURON), 7_609_855, 15),
        (lambda: Head((256, 512, 1024), 256, 2, NEURON), 7_549_717, 15),
        (lambda: Detector(80, NEURON), 76_384_287, 135),
        (lambda: Detector(2, NEURON), 76_324_149, 135),
        (lambda: Detector(3, NEURON), 76_324_920, 135),
    ],
    ids=["backbone", "neck", "head-80", "head-2", "coco", "gen1", "1mpx"],
)
def test_parameters_and_neurons_are_the_published_ones(build, count, neurons):
    with torch.device("meta"):
        net = build()
    assert count_parameters(net) == count
    assert sum(isinstance(m, SpikingJellyNode) for m in net.modules()) == neurons


# -- what the published code computes


def test_neuron_of_eight_thresholds_is_the_published_one():
    file = golden("neuron_D8")
    x = tensor(file["x"]).requires_grad_()
    y = NEURON(3)(x)
    assert torch.equal(y, tensor(file["y"]))
    (y * tensor(file["gy"])).sum().backward()
    assert_near(x.grad, file["gx"], 1e-6)


@pytest.mark.parametrize(("kind", "tolerance", "loose"), [("f64", 1e-9, 1e-5), ("f32", 1e-4, 2e-3)])
def test_blocks_compute_what_the_published_ones_compute(kind, tolerance, loose):
    file = golden("block_detection")
    net = nn.Sequential(Block(16, 32, 24, 4, 2, True, NEURON), Block(32, 32, 24, 4, 1, False, NEURON))
    net = load(net, stored(file)).to(torch.float64 if kind == "f64" else torch.float32)
    dtype = net[0].convs[0][1].weight.dtype
    x = tensor(file["x"]).to(dtype).requires_grad_()
    with torch.no_grad():
        assert_near(net.eval()(x), file[f"{kind}/eval"], tolerance)
    reset(net)
    y = net.train()(x)
    assert_near(y, file[f"{kind}/train"], tolerance)
    (y * tensor(file["gy"]).to(dtype)).sum().backward()
    expected = tensor(file[f"{kind}/grad_x"])
    assert (x.grad - expected).abs().max() <= loose * expected.abs().max()
    assert_gradients(net, file, f"{kind}/", loose)
    if kind == "f32":
        state = net.state_dict()
        for key in (k for k in file.files if k.startswith("after/")):
            assert_near(state[ours(key.removeprefix("after/"))], file[key], 1e-5)


@pytest.mark.parametrize("name", ["pafpn_even", "pafpn_odd", "pafpn_gen1"])
def test_neck_computes_what_the_published_one_computes(name):
    file = golden(name)
    net = load(PAFPN((8, 16, 32), 1, NEURON), stored(file)).double()
    assert count_parameters(net) == file["parameters"]
    xs = [tensor(file[f"x{i}"]).requires_grad_() for i in range(3)]
    with torch.no_grad():
        for i, y in enumerate(net.eval()(xs)):
            assert_near(y, file[f"eval{i}"])
    reset(net)
    ys = net.train()(xs)
    for i, y in enumerate(ys):
        assert_near(y, file[f"train{i}"])
    sum((y * tensor(file[f"g{i}"])).sum() for i, y in enumerate(ys)).backward()
    for i, x in enumerate(xs):
        assert_near(x.grad, file[f"gx{i}"], 1e-5)
    assert_gradients(net, file)


def test_head_predicts_what_the_published_one_predicts():
    file = golden("head")
    net = load(Head((8, 16, 32), 8, 3, NEURON), stored(file)).double().eval()
    assert count_parameters(net) == file["parameters"]
    with torch.no_grad():
        predictions = net([tensor(file[f"x{i}"]) for i in range(3)])
    raw = predictions.raw.clone()
    raw[..., 4:] = raw[..., 4:].sigmoid()
    assert_near(raw, file["eval/raw"])
    for own, theirs in (("x", "x_shifts"), ("y", "y_shifts"), ("stride", "strides")):
        assert torch.equal(getattr(predictions.anchors, own), tensor(file[f"plain/{theirs}"])[0].float())


def test_whole_detectors_compute_what_the_published_ones_compute():
    """One after the other, 1.1 GB: of 80 classes, and of 2 for an image whose size 32 does not divide."""
    for name, classes in (("yolox_80", 80), ("yolox_2", 2)):
        file = golden(name)
        net = load(Detector(classes, NEURON), by_rule(file["names"]), placed)
        assert count_parameters(net) == file["parameters"]
        net = net.double().eval()
        found = []
        net.neck.register_forward_hook(lambda module, given, out, found=found: found.extend(out))
        with torch.no_grad():
            predictions = net(tensor(file["x"]))
        for i, y in enumerate(found):
            assert_near(y, file[f"fpn{i}"])
        raw = probabilities(predictions.raw)
        assert_near(raw, file["raw"])
        assert_near(probabilities(decode(predictions.raw, predictions.anchors)), file["decoded"])


@pytest.mark.slow
def test_backbone_computes_what_the_published_one_computes():
    """Outputs of repeated images too, and gradients in training mode: 1.1 GB, one minute."""
    file = golden("backbone_50_4x24w")
    net = load(mhsanet50(NEURON), by_rule(file["names"])).double().eval()
    for steps in (1, 2):
        net.steps = steps
        with torch.no_grad():
            outputs = net(tensor(file["x"]))
        reset(net)
        for i, y in enumerate(outputs[1:]):
            assert_near(y, file[f"eval/T{steps}/out{i}"])
    net.steps = 1
    x = tensor(file["x2"]).requires_grad_()
    outputs = net.train()(x)[1:]
    loss = torch.zeros((), dtype=torch.float64)
    for i, y in enumerate(outputs):
        assert_near(y, file[f"train/out{i}"])
        loss = loss + (y * tensor(2 * uniform(5010 + i, y.shape) - 1)).sum()
    assert loss.item() == pytest.approx(float(file["train/loss"]), rel=1e-9)
    loss.backward()
    assert_near(x.grad, file["train/grad_x2"], 1e-5)
    assert_near(net.conv1[0].weight.grad, file["train/grad_conv1"], 1e-5)
    named = dict(net.named_parameters())
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    names = [entry.split(" ")[0] for entry in file["names"]]
    norms = [named[ours(n)].grad.norm().item() for n in names if not n.endswith(buffers)]
    np.testing.assert_allclose(norms, file["train/grad_norm"], rtol=1e-5, atol=1e-8)


def test_a_published_checkpoint_loads():
    """Under the published names, in its wrapper; the two renames are those of docs/tasks.md."""
    other, net = Detector(3, NEURON, width=1 / 8), Detector(3, NEURON, width=1 / 8)
    state = {}
    for name, value in other.state_dict().items():
        path, own = name.rsplit(".", 1)
        path = path.replace("backbone.", "backbone.backbone.") if path.startswith("backbone.") else path
        path = f"backbone.{path.removeprefix('neck.')}" if path.startswith("neck.") else path
        kind = type(other.get_submodule(name.rsplit(".", 1)[0])).__name__
        state[f"{path}{ {'Conv': '.0', 'Norm': '.bn'}.get(kind, '') }.{own}"] = value
    file = {"model": state, "start_epoch": 300, "best_ap": 0.4}
    report = checkpoints.read(file, net, rename={"backbone.backbone": "backbone", "backbone": "neck"})
    assert report.source == "msf-detection"
    assert report.ok
    for own, theirs in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(own, theirs)


# -- ours


@pytest.mark.parametrize("neuron", [LIF(), NEURON, PMSN(), ReLU()], ids=repr)
@pytest.mark.parametrize("frames", [False, True], ids=["image", "frames"])
def test_narrow_detector_of_every_neuron_learns(neuron, frames):
    net = Detector(2, neuron, width=1 / 16, depth=1 / 3, frames=frames, in_channels=2)
    x = torch.rand(3, 2, 2, 40, 56) if frames else torch.rand(2, 2, 40, 56)
    predictions = net(x)
    anchors = 5 * 7 + 3 * 4 + 2 * 2
    assert predictions.raw.shape == (2, anchors, 7)
    assert predictions.anchors.stride.unique().tolist() == [8, 16, 32]
    predictions.raw.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_width_too_small_for_the_backbone_is_named():
    with pytest.raises(ValueError, match="planes=2 with base_width=24"):
        Detector(2, NEURON, width=1 / 32)


def test_first_guess_is_one_in_a_hundred():
    net = Detector(2, NEURON, width=1 / 8, depth=1 / 3)
    assert all(torch.allclose(layer.bias.sigmoid(), torch.tensor(0.01)) for layer in net.head.cls_preds)


def test_anchors_run_row_by_row_through_the_levels():
    anchors = Anchors.of([torch.zeros(1, 1, 1, 2, 3), torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 1)])
    assert anchors.x.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert anchors.y.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert anchors.stride.tolist() == [8] * 6 + [16] * 2 + [32]
