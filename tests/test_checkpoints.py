"""Published state dicts, built here from the names in the published code, read into our modules."""

import argparse
import contextlib
import io
import os
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from msf_pmsn_plugins.checkpoints import SOURCES, Incomplete, read
from msf_pmsn_plugins.neurons import MSF, PMSN
from msf_pmsn_plugins.neurons.pmsn import PARAMETERS, PER_CHANNEL
from msf_pmsn_plugins.swap import load_published
from tolerances import assert_same

KERNEL = [name for name in PARAMETERS if name != "D"]


def branch(**children):
    """A module with these children (parameters among them)."""
    module = nn.Module()
    for name, child in children.items():
        setattr(module, name, child)
    return module


def published_neuron(channels, modes=4):
    """The layout of the published neuron: seven parameters in `kernel`, D beside it."""
    shapes = {name: (channels,) if name in PER_CHANNEL else (channels, modes) for name in KERNEL}
    kernel = branch(**{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})
    return branch(D=nn.Parameter(torch.randn(channels)), kernel=kernel)


def node(channels):
    """A framework's node, which holds its neuron."""
    return branch(neuron=PMSN(channels))


def many(*modules):
    return nn.ModuleList(modules)


# The published networks, small; `n` makes a neuron of so many channels.


def smnist(n):
    return branch(
        encoder=nn.Linear(1, 6),
        PMSN_layers=many(*(n(6) for _ in range(3))),
        linear_layers=many(nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 1)),
        norms=many(*(nn.BatchNorm1d(6) for _ in range(3))),
        decoder=nn.Linear(6, 10),
    )


def cifar_pixels(n, used=False):
    """`used` leaves out the two convolutions that the published forward computes in vain."""
    return branch(
        encoder=nn.Linear(3, 4),
        PMSN_layers=many(n(4), n(4)),
        linear_layers=many(*(nn.Conv1d(4, 4, 1) for _ in range(1 if used else 2))),
        norms=many(nn.BatchNorm1d(4), nn.BatchNorm1d(4)),
        fc1=nn.Linear(1, 8),
        PMSN_layers2=many(n(8), n(8)),
        linear_layers2=many(*(nn.Conv1d(8, 8, 1) for _ in range(1 if used else 2))),
        norms2=many(nn.BatchNorm1d(8), nn.BatchNorm1d(8)),
        decoder=nn.Linear(2, 10),
    )


def cifar_columns(n):
    conv = lambda: nn.Conv1d(4, 4, 3, padding=1, bias=False)  # noqa: E731
    return branch(
        static_conv=nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, bias=False), nn.BatchNorm1d(4)),
        conv1=nn.Sequential(n(4), conv(), nn.BatchNorm1d(4), n(4), conv(), nn.BatchNorm1d(4)),
        conv2=nn.Sequential(n(4), conv(), nn.BatchNorm1d(4), n(4), nn.AvgPool1d(2)),
        fc=nn.Sequential(nn.Linear(8, 6, bias=False), n(6), nn.Linear(6, 10, bias=False)),
    )


def shd(n, bn=False):
    norm = lambda: [nn.BatchNorm1d(5)] if bn else []  # noqa: E731
    return branch(
        hidden1=nn.Sequential(nn.Linear(7, 5), *norm(), n(5)),
        hidden2=nn.Sequential(nn.Linear(5, 5), *norm(), n(5)),
        fc=nn.Sequential(nn.Linear(5, 3)),
    )


def shd_bn(n):
    return shd(n, bn=True)


def imagenet(n):
    def block(inplanes, planes, downsample=False):
        sides = {"downsample_sn": n(planes)} if downsample else {}
        if downsample:
            sides["downsample"] = nn.Sequential(
                nn.Conv2d(inplanes, planes, 1, bias=False), nn.BatchNorm2d(planes)
            )
        return branch(
            conv1=nn.Conv2d(inplanes, planes, 3, bias=False),
            bn1=nn.BatchNorm2d(planes),
            sn1=n(planes),
            conv2=nn.Conv2d(planes, planes, 3, bias=False),
            bn2=nn.BatchNorm2d(planes),
            sn2=n(planes),
            **sides,
        )

    return branch(
        conv1=nn.Conv2d(3, 4, 7, bias=False),
        bn1=nn.BatchNorm2d(4),
        sn1=n(4),
        layer1=nn.Sequential(block(4, 4), block(4, 4)),
        layer2=nn.Sequential(block(4, 6, downsample=True)),
        fc=nn.Linear(6, 10),
        pe=nn.Parameter(torch.randn(4, 1, 1, 1, 1)),
    )


PMSN_NETS = {
    "pmsn-smnist": smnist,
    "pmsn-cifar-pixels": cifar_pixels,
    "pmsn-cifar-columns": cifar_columns,
    "pmsn-shd": shd,
    "pmsn-imagenet": imagenet,
}
# What each script writes around the state dict.
FILES = {
    "pmsn-smnist": lambda s: {
        "epoch": 3,
        "state_dict": s,
        "best_acc": torch.tensor(99.4),
        "optimizer": {"state": {}},
    },
    "pmsn-cifar-pixels": lambda s: {
        "epoch": 3,
        "state_dict": s,
        "best_acc": torch.tensor(82.1),
        "optimizer": {},
    },
    "pmsn-cifar-columns": lambda s: {"model": s, "acc": 90.97, "epoch": 7},
    "pmsn-shd": lambda s: {
        "best_acc": torch.tensor(0.94),
        "best_epoch": 5,
        "best_net": s,
        "traces": {"train": {"acc": [], "loss": []}},
        "config": argparse.Namespace(lr=0.01, device="cuda:0"),
    },
    "pmsn-imagenet": lambda s: {
        "model": s,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"T_max": 320},
        "epoch": 1,
        "args": argparse.Namespace(model="sew_resnet18", T=4),
        "max_test_acc1": 66.6,
    },
}


def container(*modules):
    """The MSF code's SeqToANNContainer: adds a `0.` to the names."""
    return nn.Sequential(*modules)


def mhsanet(n, dvs=False, stages=3):
    def norm(channels):
        return branch(bn=nn.BatchNorm3d(channels))

    def unit(a, b, k, *more):
        return nn.Sequential(n(), container(nn.Conv2d(a, b, k, bias=False)), norm(b), *more)

    def block(planes):
        mlp = nn.Sequential(
            nn.Conv3d(planes, 1, 1, bias=False), nn.ReLU(), nn.Conv3d(1, planes, 1, bias=False)
        )
        csa = branch(ca=branch(sharedMLP=mlp), sa=branch(conv=nn.Conv2d(2, 1, 7, bias=False)))
        return branch(
            snn_conv1=unit(planes, planes, 1),
            convs=many(unit(2, 2, 3), unit(2, 2, 3)),
            snn_conv3=unit(planes, planes, 1, csa),
            downsample=nn.Sequential(container(nn.Conv2d(planes, planes, 1, bias=False)), norm(planes)),
        )

    stem = {"conv1": nn.Sequential(container(nn.Conv2d(3, 8, 3, bias=False)), norm(8))}
    if dvs:
        stem["conv2"] = nn.Sequential(container(nn.Conv2d(8, 8, 3, bias=False)), norm(8))
    layers = {f"layer{i + 1}": nn.Sequential(block(8)) for i in range(stages)}
    return branch(**stem, **layers, mem_update=n(), fc=nn.Linear(8, 10))


def detection(n):
    unit = branch(
        residual_function=nn.Sequential(n(), container(nn.Conv2d(8, 8, 1)), branch(bn=nn.BatchNorm3d(8)))
    )
    return branch(
        backbone=branch(backbone=mhsanet(n, stages=4), lateral_conv0=unit),
        head=branch(stems=many(unit), cls_preds=many(nn.Conv2d(8, 2, 1))),
    )


def sleep(n):
    act = n()
    block = lambda a, b: nn.Sequential(container(nn.Conv2d(a, b, 3)), container(nn.BatchNorm2d(b)), act)  # noqa: E731
    return branch(act=act, block1=block(1, 4), block2=block(4, 8), block3=block(8, 8), fc=nn.Linear(8, 5))


def sine(n):
    return branch(fc1=container(nn.Linear(1, 32)), act=n(), fc2=container(nn.Linear(32, 1)))


MSF_NETS = {
    "msf-cifar10": mhsanet,
    "msf-cifar10-dvs": lambda n: mhsanet(n, dvs=True),
    "msf-imagenet": lambda n: mhsanet(n, stages=4),
    "msf-detection": detection,
    "msf-sleep": sleep,
    "msf-sine": sine,
}
MSF_KWARGS = {"msf-detection": {"D": 8}, "msf-sine": {"v_threshold": 0.5}}


def published_state(network):
    """A state dict of the published layout, with values unlike any initial ones."""
    state = network(published_neuron).state_dict()
    return OrderedDict(
        (k, v + 1 if k.endswith("tracked") else torch.rand_like(v) + 0.5) for k, v in state.items()
    )


def columns_net(neuron=PMSN):
    return cifar_columns(lambda c: neuron(c, coeff=0.2))


def saved(data):
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return file


def build(source):
    coeff = SOURCES[source].settings["coeff"]
    return PMSN_NETS[source](lambda channels: PMSN(channels, coeff=coeff))


@pytest.fixture(autouse=True)
def _no_warning():
    """Reading warns only where the test says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def check_loaded(model, state, report):
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    assert set(report.loaded.values()) == set(own)
    for published, name in report.loaded.items():
        assert_same(own[name], state[published])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("source", PMSN_NETS)
def test_every_pmsn_script(source, named):
    state = published_state(PMSN_NETS[source])
    model = build(source)
    report = read(saved(FILES[source](state)), model, source if named else None)
    assert report.ok
    assert report.source == source
    assert set(report.loaded) == set(state)
    assert not report.different
    check_loaded(model, state, report)
    neurons = [m for m in model.modules() if isinstance(m, PMSN)]
    assert sum(f"{name}" in key.split(".") for key in report.loaded for name in PARAMETERS) == 8 * len(
        neurons
    )


@pytest.mark.parametrize("source", PMSN_NETS)
def test_neurons_inside_nodes_and_without_channels(source):
    state = published_state(PMSN_NETS[source])
    coeff = SOURCES[source].settings["coeff"]
    model = PMSN_NETS[source](lambda channels: branch(neuron=PMSN(None, coeff=coeff)))
    report = read(FILES[source](state), model)
    check_loaded(model, state, report)
    assert all(".neuron." in name for published, name in report.loaded.items() if "kernel" in published)


def test_shd_with_batch_norm_has_the_neuron_one_place_later():
    state = published_state(shd_bn)
    assert "hidden1.2.kernel.log_dt" in state
    model = shd_bn(PMSN)
    assert read(state, model).source == "pmsn-shd"


def test_a_file_of_one_neuron_and_one_neuron_of_a_file():
    state = published_state(lambda n: n(3))
    assert set(state) == {"D", *(f"kernel.{name}" for name in KERNEL)}
    for neuron in (PMSN(3), PMSN()):
        check_loaded(neuron, state, read(state, neuron, "pmsn"))
    held = node(3)
    check_loaded(held, state, read(state, held, "pmsn"))

    state = published_state(smnist)
    neuron = PMSN()
    report = read(state, neuron, rename={"PMSN_layers.1": "", "": None})
    assert neuron.channels == 6
    assert len(report.loaded) == 8
    assert len(report.left_out) == len(state) - 8
    assert_same(neuron.A_imag, state["PMSN_layers.1.kernel.A_imag"])
    assert "left out as asked" in str(report)


def test_the_published_wrapper_around_a_neuron():
    """seqcifar32 has one, too: a module with the published neuron as `neuron`."""
    state = published_state(lambda n: branch(block=branch(neuron=n(3))))
    for model in (branch(block=PMSN(3)), branch(block=node(3)), branch(block=branch(neuron=node(3)))):
        check_loaded(model, state, read(state, model, "pmsn"))


def test_round_trip_through_our_own_names():
    """A state dict of the read model, with our names turned back, is the published one."""
    state = published_state(smnist)
    model = smnist(PMSN)
    report = read(state, model)
    back = {published: model.state_dict()[name] for published, name in report.loaded.items()}
    assert list(back) == list(state)
    again = smnist(PMSN)
    again.load_state_dict(model.state_dict())
    for name, value in again.state_dict().items():
        assert_same(value, model.state_dict()[name])


def test_the_published_forward_is_computed():
    """CIFAR by columns: y times coeff, then the reset of section 2.4; by hand, float64."""
    torch.manual_seed(0)
    state = {k: v.double() for k, v in published_neuron(3).state_dict().items()}
    neuron = PMSN(3, coeff=0.2).double()
    read(state, neuron, "pmsn")
    x = 4 * torch.randn(20, 2, 3, dtype=torch.float64)
    k = {name: state[f"kernel.{name}"] for name in KERNEL}
    dt, lam = k["log_dt"].exp(), torch.complex(-k["log_A_real"].exp(), k["A_imag"])
    a = torch.exp(lam * dt[:, None])
    b = (a - 1) * torch.complex(k["VinvB_real"], k["VinvB_imag"]) / lam
    c = torch.complex(k["CV_real"], k["CV_imag"])
    hidden, total, spikes = 0, torch.zeros(2, 3, dtype=torch.float64), []
    for x_t in x:
        hidden = a * hidden + b * x_t[..., None]
        y = 0.2 * ((c * hidden).sum(-1).real + state["D"] * x_t)
        spikes.append((torch.floor(total + y.relu()) > torch.floor(total)).double())
        total = total + y.relu()
    s, _ = neuron(x)
    assert 0.05 < s.mean() < 0.95
    assert_same(s, torch.stack(spikes))


# Files that differ from the model


def test_missing_unexpected_and_wrong_shapes_are_all_listed_and_nothing_is_loaded():
    state = published_state(smnist)
    del state["PMSN_layers.0.kernel.A_imag"], state["decoder.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["PMSN_layers.1.kernel.CV_real"] = torch.zeros(6, 2)
    state["PMSN_layers.2.D"] = torch.zeros(5)
    state["encoder.weight"] = torch.zeros(6, 2)
    model = smnist(PMSN)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(Incomplete) as caught:
        read(state, model)
    report = caught.value.report
    assert report.missing == {
        "PMSN_layers.0.A_imag": "PMSN_layers.0.kernel.A_imag",
        "decoder.bias": "decoder.bias",
    }
    assert report.unexpected == ("extra.weight",)
    assert {m.published: m.ours for m in report.mismatched} == {
        "PMSN_layers.1.kernel.CV_real": "PMSN_layers.1.CV_real",
        "PMSN_layers.2.D": "PMSN_layers.2.D",
        "encoder.weight": "encoder.weight",
    }
    text = str(caught.value)
    modes = "the file has (6, 2), the model (6, 4); build the neuron with compartments=3"
    for expected in (
        "nothing was loaded",
        "PMSN_layers.0.A_imag (looked for as PMSN_layers.0.kernel.A_imag)",
        "extra.weight",
        f"PMSN_layers.1.kernel.CV_real -> PMSN_layers.1.CV_real: {modes}",
        "PMSN_layers.2.D -> PMSN_layers.2.D: the file has (5,), the model (6,); build the neuron with channels=5",
        "encoder.weight -> encoder.weight: the file has (6, 2), the model (6, 1)",
    ):
        assert expected in text
    for name, value in model.state_dict().items():
        assert_same(value, before[name])

    with pytest.warns(UserWarning, match="looked for as PMSN_layers.0.kernel.A_imag"):
        loose = read(state, model, strict=False)
    assert loose == report
    for published, name in loose.loaded.items():
        assert_same(model.state_dict()[name], state[published])
    for name in ("PMSN_layers.0.A_imag", "PMSN_layers.1.CV_real", "PMSN_layers.2.D", "decoder.bias"):
        assert_same(model.state_dict()[name], before[name])


def test_neurons_at_other_places_of_the_model():
    state = published_state(smnist)
    layout = smnist(PMSN)
    model = branch(**{name: child for name, child in layout.named_children() if name != "PMSN_layers"})
    model.spiking = branch(body=layout.PMSN_layers)
    with pytest.raises(Incomplete, match=r"body\.0\.log_dt \(looked for as spiking\.body\.0\.kernel"):
        read(state, model)
    report = read(state, model, rename={"PMSN_layers": "spiking.body"})
    check_loaded(model, state, report)
    assert report.loaded["PMSN_layers.2.kernel.log_dt"] == "spiking.body.2.log_dt"
    del state["PMSN_layers.0.D"]
    with pytest.raises(Incomplete) as caught:
        read(state, model, rename={"PMSN_layers": "spiking.body"})
    assert caught.value.report.missing == {"spiking.body.0.D": "PMSN_layers.0.D"}


def test_rename_takes_whole_parts_the_longest_first_and_must_rename():
    state = published_state(smnist)
    model = branch(body=smnist(PMSN))
    model.body.decoder, model.head = nn.Identity(), nn.Linear(6, 10)
    check_loaded(model, state, read(state, model, rename={"": "body", "decoder": "head"}))
    with pytest.raises(ValueError, match=r"no published name begins with \['PMSN_layer'\]"):
        read(state, model, rename={"": "body", "decoder": "head", "PMSN_layer": "x"})
    with pytest.raises(ValueError, match="both belong to PMSN_layers.0.D of the model"):
        read(state, smnist(PMSN), rename={"PMSN_layers.1": "PMSN_layers.0"})


def test_a_parameter_of_that_name_outside_a_neuron_is_not_taken():
    state = published_state(lambda n: branch(body=n(3)))
    impostor = branch(body=branch(**{name: nn.Parameter(torch.zeros(3)) for name in PARAMETERS}))
    with pytest.raises(Incomplete, match=r"unexpected in the file \(8\)"):
        read(state, impostor, "pmsn")


def test_convolutions_that_the_published_forward_never_uses_may_be_lacking():
    state = published_state(cifar_pixels)
    model = cifar_pixels(PMSN, used=True)
    report = read(state, model)
    assert report.unused == tuple(
        f"{stage}.1.{name}" for stage in ("linear_layers", "linear_layers2") for name in ("weight", "bias")
    )
    assert "never used by the published forward pass" in str(report)
    model.linear_layers2 = many()
    with pytest.raises(Incomplete) as caught:
        read(state, model)
    assert caught.value.report.unexpected == ("linear_layers2.0.weight", "linear_layers2.0.bias")


def test_a_tied_neuron_is_told_to_tie_afterwards():
    state = published_state(smnist)
    with pytest.raises(Incomplete, match=r"load into a neuron with tied=False, then call its tie\(\)"):
        read(state, smnist(lambda c: PMSN(c, tied=True)))


def test_kinds_and_values_that_do_not_fit():
    state = published_state(shd)
    state["fc.0.bias"] = torch.zeros(3, dtype=torch.complex64)
    state["hidden1.0.bias"] = torch.full((5,), float("nan"))
    state["hidden1.1.D"] = torch.zeros(5, dtype=torch.int64)
    model = shd(PMSN)
    model.fc[0].weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.complex64))
    state["fc.0.weight"] = torch.zeros(3, 5, dtype=torch.int64)
    with pytest.raises(Incomplete) as caught:
        read(state, model)
    assert {m.ours: m.why for m in caught.value.report.mismatched} == {
        "fc.0.bias": "the file has torch.complex64, the model torch.float32",
        "hidden1.0.bias": "the file has values that are not finite",
        "hidden1.1.D": "the file has torch.int64, the model torch.float32",
        "fc.0.weight": "the file has torch.int64, the model torch.complex64",
    }


def test_a_change_of_precision_is_reported():
    state = {k: v.half() if v.is_floating_point() else v for k, v in published_state(shd).items()}
    report = read(state, shd(PMSN))
    assert len(report.converted) == len(state)
    assert "fc.0.bias: torch.float16 -> torch.float32" in str(report)


def test_disagreeing_sizes_of_a_neuron_without_channels():
    state = published_state(lambda n: branch(body=n(3)))
    state["body.kernel.A_imag"] = torch.zeros(2, 4)
    with pytest.raises(
        Incomplete, match=r"has \(2, 4\), the model \(3, 4\); build the neuron with channels=2"
    ):
        read(state, branch(body=PMSN()), "pmsn")
    model = branch(body=PMSN())
    with pytest.warns(UserWarning, match="not fitting"):
        read(state, model, "pmsn", strict=False)
    assert model.body.channels == 3
    assert_same(model.body.CV_real, state["body.kernel.CV_real"])


def test_a_neuron_without_channels_takes_them_from_what_there_is():
    state = published_state(lambda n: branch(body=n(3)))
    del state["body.D"]
    model = branch(body=PMSN())
    with pytest.warns(UserWarning, match=r"body\.D \(looked for as body\.D\)"):
        read(state, model, "pmsn", strict=False)
    assert model.body.channels == 3
    assert_same(model.body.A_imag, state["body.kernel.A_imag"])


def test_buffers_that_are_not_saved_are_not_missed():
    state = published_state(lambda n: branch(body=n(3)))
    model = branch(body=PMSN(3))
    model.register_buffer("kept", torch.zeros(1), persistent=False)
    assert read(state, model, "pmsn").ok
    model.register_buffer("saved", torch.zeros(1))
    with pytest.raises(Incomplete) as caught:
        read(state, model, "pmsn")
    assert list(caught.value.report.missing) == ["saved"]


def test_nothing_in_common():
    state = published_state(shd)
    with pytest.raises(ValueError, match="no entry of the file has a place in the model"):
        read(state, nn.Conv2d(1, 1, 1), strict=False)


def test_a_scale_beside_the_neuron_is_not_forgotten():
    state = published_state(lambda n: branch(body=n(3)))
    model = branch(body=branch(neuron=PMSN(3), scale=nn.Parameter(torch.ones(1))))
    with pytest.raises(Incomplete) as caught:
        read(state, model, "pmsn")
    assert caught.value.report.missing == {"body.scale": "body.scale"}


# Settings


def test_settings_that_are_not_stored_are_said_and_compared():
    state = published_state(cifar_columns)
    report = read(state, columns_net())
    assert not report.different
    assert any("--reset --coeff 0.2" in note for note in report.not_stored)
    model = columns_net()
    model.conv1[3].coeff = 1.0
    model.fc[1].reset_mode = "none"
    with pytest.warns(UserWarning, match=r"coeff: published 0.2, here 1.0 in conv1\.3"):
        report = read(state, model)
    assert report.different == (
        "coeff: published 0.2, here 1.0 in conv1.3",
        "reset_mode: published 'floor', here 'none' in fc.1",
    )
    assert report.ok


def test_every_source_says_what_is_not_stored():
    for source in SOURCES.values():
        assert any("constants of the code" in note for note in source.notes)
        neuron = source.neuron()
        for name in source.settings:
            assert hasattr(neuron, name)


# Files


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix):
    state = published_state(shd)
    wrapped = OrderedDict((prefix + name, value) for name, value in state.items())
    model = shd(PMSN)
    report = read({"best_net": wrapped}, model)
    check_loaded(model, state, report)
    assert report.weights == f"best_net without the prefix {prefix!r}"


def test_a_wrapped_model_and_a_model_with_such_a_name():
    state = published_state(shd)
    for wrap in (nn.DataParallel, lambda m: torch.compile(m, backend="eager")):
        model = shd(PMSN)
        model.forward = lambda x: x
        report = read({f"module.{k}": v for k, v in state.items()}, wrap(model))
        check_loaded(model, state, report)
    model = branch(module=PMSN(3))
    state = published_state(lambda n: branch(module=n(3)))
    check_loaded(model, state, read(state, model, "pmsn"))


def test_nested_and_ambiguous_files():
    state = published_state(shd)
    model = shd(PMSN)
    assert read({"model": {"state_dict": state, "epoch": 1}}, model).weights == "model / state_dict"
    both = {"state_dict": state, "state_dict_ema": {k: 2 * v for k, v in state.items()}, "epoch": 1}
    with pytest.raises(ValueError, match=r"several entries with weights, \['state_dict', 'state_dict_ema'\]"):
        read(both, model)
    assert read(both, model, weights="state_dict_ema").weights == "state_dict_ema"
    assert_same(model.fc[0].bias, 2 * state["fc.0.bias"])
    assert read({"other": state}, model, weights="other").ok
    with pytest.raises(ValueError, match=r"no entry 'ema'; it holds 'other' \(OrderedDict\)"):
        read({"other": state}, model, weights="ema")
    with pytest.raises(ValueError, match=r"found no state dict: the file holds 'other' \(OrderedDict\)"):
        read({"other": state}, model)
    with pytest.raises(ValueError, match="found no state dict: model holds nothing"):
        read({"model": {}}, model)
    with pytest.raises(ValueError, match="'lr' .float."):
        read({"model": {**state, "lr": 0.1}}, model)
    with pytest.raises(ValueError, match="the file holds a list"):
        read(saved([1, 2]), model)
    with pytest.raises(TypeError, match="pass its state_dict"):
        read(model, model)
    with pytest.raises(FileNotFoundError):
        read("there_is_no_such_file.pth", model)


def test_a_path(tmp_path):
    state = published_state(shd)
    torch.save(FILES["pmsn-shd"](state), tmp_path / "checkpoint.pth")
    for path in (tmp_path / "checkpoint.pth", str(tmp_path / "checkpoint.pth")):
        model = shd(PMSN)
        check_loaded(model, state, read(path, model))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_file_is_refused_and_not_run(tmp_path, zipped):
    target, file = tmp_path / "owned", tmp_path / "evil.pth"
    data = {"state_dict": published_state(shd), "args": Malicious(str(target))}
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    model = shd(PMSN)
    with pytest.raises(ValueError, match=r"may run code.*refused") as caught:
        read(file, model)
    assert "mkdir" in str(caught.value)
    assert not target.exists()
    file.write_bytes(pickle.dumps(data, protocol=2))
    with pytest.raises((ValueError, RuntimeError)):
        read(file, model)
    assert not target.exists()


def test_numpy_numbers_are_refused_unless_allowed_by_the_caller():
    """COCO's best_ap is one."""
    state = published_state(shd)
    file = saved({"best_net": state, "best_ap": np.float64(0.5)})
    model = shd(PMSN)
    with pytest.raises(ValueError, match=r"inside torch\.serialization\.safe_globals"):
        read(file, model)
    file.seek(0)
    number = np.float64(0.5).__reduce__()[0]
    with torch.serialization.safe_globals(
        [number, np.dtype, np.dtypes.Float64DType, __import__("_codecs").encode]
    ):
        assert read(file, model).ok


def test_reading_leaves_the_safe_globals_as_they_were():
    state = published_state(shd)
    before = set(torch.serialization.get_safe_globals())
    assert argparse.Namespace not in before
    read(saved(FILES["pmsn-shd"](state)), shd(PMSN))
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read(saved(FILES["pmsn-shd"](state)), shd(PMSN))
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}


# Files that are no checkpoints: one line each, which names the file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page"),
        (b"\xef\xbb\xbf<html>Not found</html>", "is a web page"),
        ("<html>Not found</html>".encode("utf-16"), "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b'{"error": "not found"}', "is JSON"),
        (b"\x10\0\0\0\0\0\0\0" + b'{"a": 1}', "is a safetensors file"),
        (b"weights", "cannot be read: it is no checkpoint of torch.save, or was cut short or damaged"),
        (pickle.dumps([1, 2]), "cannot be read"),
    ],
    ids=["empty", "html", "html_bom", "html_utf16", "lfs", "json", "safetensors", "text", "pickle"],
)
@pytest.mark.parametrize("reader", [read, load_published], ids=["read", "load_published"])
def test_a_file_that_is_no_checkpoint_is_named_in_one_line(tmp_path, reader, content, message):
    file = tmp_path / "w.pth"
    file.write_bytes(content)
    given = (file, PMSN(4)) if reader is read else (PMSN(4), file)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        reader(*given)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_at_any_byte_is_named_in_one_line(tmp_path, zipped):
    file = tmp_path / "w.pth"
    torch.save(PMSN(4, compartments=3).state_dict(), file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    for size in range(0, len(data), 7 if zipped else 3):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"w\.pth") as caught:
            read(file, PMSN(4), "pmsn")
        assert "\n" not in str(caught.value)
        assert "may run code" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (lambda: torch.ones(4).to_sparse(), "no dense tensor (sparse_coo)"),
        (lambda: torch.eye(4).to_sparse_csr(), "no dense tensor (sparse_csr)"),
        (lambda: torch.ones(4, device="meta"), "a meta tensor"),
        (lambda: torch.ones(4).to(torch.float8_e4m3fn), "floats of 8 bits or fewer"),
        (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "quantized"),
    ],
    ids=["coo", "csr", "meta", "fp8", "quantized"],
)
def test_an_entry_without_plain_numbers_is_named_in_one_line(tmp_path, entry, message):
    file = tmp_path / "w.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about such tensors
        torch.save({"state_dict": {**published_state(shd), "odd": entry()}}, file)
    with pytest.raises(ValueError, match=rf"w\.pth': entry 'odd' is .*{re.escape(message)}") as caught:
        read(file, shd(PMSN))
    assert "\n" not in str(caught.value)


def test_an_entry_that_was_never_initialized_is_named():
    state = {**published_state(shd), "odd": nn.parameter.UninitializedParameter()}
    with pytest.raises(ValueError, match="entry 'odd' is not initialized"):
        read(state, shd(PMSN))


@pytest.mark.parametrize("reader", [read, load_published], ids=["read", "load_published"])
@pytest.mark.parametrize(
    ("given", "message"), [(None, "got NoneType"), ([1], "got list"), (io.StringIO("a"), "mode 'rb'")]
)
def test_what_is_no_file_is_said(reader, given, message):
    with pytest.raises(TypeError, match=message):
        reader(*((given, PMSN(4)) if reader is read else (PMSN(4), given)))


def test_a_dict_that_holds_itself_ends():
    own = {}
    own["state_dict"] = {"model": own}
    with pytest.raises(ValueError, match="a dict that holds itself, at state_dict / model"):
        read(own, PMSN(4))


# Which script


def test_a_wrong_or_unknown_source():
    state = published_state(shd)
    with pytest.raises(ValueError, match="unknown source 'shd'; known: pmsn, pmsn-smnist"):
        read(state, shd(PMSN), "shd")
    with pytest.raises(
        ValueError, match=r"no file of pmsn-smnist: no name matches encoder.*It looks like pmsn-shd"
    ):
        read(state, shd(PMSN), "pmsn-smnist")
    with pytest.raises(ValueError, match=r"no file of pmsn: .*Then use load_state_dict"):
        read(shd(PMSN).state_dict(), shd(PMSN), "pmsn")
    with pytest.raises(ValueError, match=r"alike: none.*'pmsn' or 'msf' for a network of your own"):
        read(published_state(lambda n: n(3)), PMSN(3))
    with pytest.raises(
        ValueError, match="it has names that those files do not have. It looks like pmsn-cifar-pixels"
    ):
        read(published_state(cifar_pixels), cifar_pixels(PMSN), "pmsn-smnist")


def test_every_special_source_is_recognised_alone_and_covered_here():
    assert {name for name in SOURCES if "-" in name} == {*PMSN_NETS, *MSF_NETS}
    states = {name: published_state(net) for name, net in PMSN_NETS.items()}
    states |= {name: net(nn.Identity).state_dict() for name, net in MSF_NETS.items()}
    for name, state in states.items():
        assert [s for s in SOURCES if "-" in s and SOURCES[s].fits(state)] == [name]


# MSF: neurons without parameters


@pytest.mark.parametrize("source", MSF_NETS)
def test_every_msf_script(source):
    state = {k: v + 1 for k, v in MSF_NETS[source](nn.Identity).state_dict().items()}
    model = MSF_NETS[source](lambda: MSF(**MSF_KWARGS.get(source, {})))
    file = {"state_dict": state, "epoch": 1, "args": argparse.Namespace(), "metric": 95.0}
    report = read(saved(file), model)
    assert report.source == source
    assert report.ok
    assert set(report.loaded) == set(state)
    assert all(a == b for a, b in report.loaded.items())
    for name, value in model.state_dict().items():
        assert_same(value, state[name])
    with pytest.warns(UserWarning, match=r"thresholds: published \["):
        read(state, MSF_NETS[source](lambda: MSF(D=2)))
    with pytest.warns(UserWarning, match="the model holds no MSF"):
        read(state, MSF_NETS[source](nn.Identity))


def test_a_model_without_the_containers_of_the_msf_code():
    state = {k: v + 1 for k, v in mhsanet(nn.Identity).state_dict().items()}
    bare = {
        k.replace(".1.bn.", ".1.").replace(".2.bn.", ".2.").replace(".0.0.weight", ".0.weight"): k
        for k in state
    }
    bare = {k.replace(".1.0.weight", ".1.weight") if "conv" in k else k: v for k, v in bare.items()}
    model = nn.Module()
    for name, published in bare.items():
        *path, own = name.split(".")
        place = model
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        value = torch.zeros_like(state[published])
        place.register_buffer(own, value)
    model.act = MSF()
    report = read(state, model)
    assert report.loaded["conv1.0.0.weight"] == "conv1.0.weight"
    assert report.loaded["conv1.1.bn.running_mean"] == "conv1.1.running_mean"
    assert report.loaded["layer1.0.snn_conv1.1.0.weight"] == "layer1.0.snn_conv1.1.weight"
    assert (
        report.loaded["layer1.0.snn_conv3.3.ca.sharedMLP.0.weight"]
        == "layer1.0.snn_conv3.3.ca.sharedMLP.0.weight"
    )
    check_loaded(model, state, report)
    assert "conv1.0.0.weight -> conv1.0.weight" in str(report)


def test_a_container_is_not_taken_off_where_the_short_name_is_in_the_file_too():
    state = {"a.weight": torch.zeros(2), "a.0.weight": torch.ones(2)}
    model = branch(a=branch(weight=nn.Parameter(torch.ones(2))), act=MSF())
    with pytest.raises(Incomplete) as caught:
        read(state, model, "msf")
    assert caught.value.report.loaded == {"a.weight": "a.weight"}
    assert caught.value.report.unexpected == ("a.0.weight",)


def test_a_learned_decay_is_missing_from_a_published_file():
    state = sine(nn.Identity).state_dict()
    with pytest.raises(Incomplete) as caught:
        read(state, sine(lambda: MSF(charge="plif", w=0.0)))
    assert list(caught.value.report.missing) == ["act.w"]
    assert any("charge" in line for line in caught.value.report.different)


# The frameworks


def test_spikingjelly_nodes():
    pytest.importorskip("spikingjelly.activation_based")
    from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

    state = published_state(shd)
    for channels in (5, None):
        model = shd(lambda c, channels=channels: PMSNNode(channels))
        check_loaded(model, state, read(state, model))
    model = shd(PMSNNode)
    model.hidden1[1].v_threshold = 0.5
    with pytest.warns(UserWarning, match=r"v_threshold: published 1.0, here 0.5 in hidden1\.1\.neuron"):
        read(state, model)
    state = sine(nn.Identity).state_dict()
    assert read(state, sine(lambda: MSFNode.published(v_threshold=0.5))).ok
    model = sine(lambda: MSFNode.published(v_threshold=0.5))
    model.act.tau = 2.0
    with pytest.warns(UserWarning, match="decay: published 0.25, here 0.5 in act.neuron"):
        read(state, model)


def test_snntorch_neurons():
    pytest.importorskip("snntorch")
    from msf_pmsn_plugins import snntorch as framework

    state = published_state(shd)
    model = shd(framework.PMSN)
    report = read(state, model)
    assert report.ok
    assert_same(model.hidden1[1].neuron.A_imag, state["hidden1.1.kernel.A_imag"])
    state = sine(nn.Identity).state_dict()
    assert read(state, sine(lambda: framework.MSF.published(threshold=0.5))).ok


def test_the_page_prints_what_stands_in_it():
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    shown = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    namespace, printed = {}, []
    for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "checkpoints.md", "exec"), namespace)
        printed += [out.getvalue()] if out.getvalue() else []
    assert printed
    assert all(text in shown for text in printed)
