"""Networks, and the comparison of each with its binary form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.deploy.weights import WEIGHTED
from msf_pmsn_plugins.neurons import MSF
from msf_pmsn_plugins.neurons.nodes import held_by

UNARY = ("channels", "substeps")


class Spikes(nn.Module):
    """MSF on [N, *] as one step, or with ``time=True`` on [T, N, *]; without children of its own but the neuron."""

    def __init__(self, D=3, time=False, **kwargs):
        super().__init__()
        self.msf, self.time = MSF(D=D, **kwargs), time

    def forward(self, x):
        s, _ = self.msf(x if self.time else x.unsqueeze(0))
        return s if self.time else s.squeeze(0)


def randomise(net, seed=0, top=7, q=4):
    """Weights k/2^q with |k| <= top, biases of up to 1, norms with odd statistics."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, WEIGHTED):
            for p in module.parameters():
                p.data = torch.randint(-top, top + 1, p.shape, generator=g) / 2**q
            if module.bias is not None:
                module.bias.data = torch.randint(0, 2**q + 1, module.bias.shape, generator=g) / 2**q
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for p in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                p.copy_(torch.rand(p.shape, generator=g) + 0.3)
    return net.eval()


def watched(net, seen):
    """Check with hooks that each layer that is said to be on binary input is, at each call."""

    def check(module, args, kwargs, name):
        (x,) = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        assert ((x == 0) | (x == 1)).all(), name
        seen[name] = seen.get(name, 0.0) + float(x.mean())

    def hook(name):
        return lambda module, args, kwargs: check(module, args, kwargs, name)

    modules = dict(net.named_modules())
    binary = [row.layer for row in net.report if row.input == "binary" and row.layer in modules]
    binary = [name for name in binary if held_by(modules[name]) is None]
    return binary, [modules[n].register_forward_pre_hook(hook(n), with_kwargs=True) for n in binary]


def check(net, x, form, batches=3, reset=lambda net: None, kinds=(), spread=2.0):
    """Deploy; compare outputs with the model's over several batches of other sizes; return the deployed network."""
    out = deploy.to_binary(net, x, form, kinds)
    seen = {}
    binary, _ = watched(out, seen)
    total = 0.0
    g = torch.Generator().manual_seed(9)
    for extra in range(batches):
        shape = list(x.shape)
        shape[0] += extra
        batch = torch.randn(shape, generator=g, dtype=x.dtype) * spread
        reset(net), reset(out)
        with torch.no_grad():
            expected, actual = net.eval()(batch), out(batch)
        assert torch.equal(actual, expected)
        assert actual.dtype == expected.dtype
        total += float(expected.abs().sum())
    assert total > 0
    assert set(seen) == set(binary)
    assert all(share > 0 for share in seen.values()), "a layer was silent: the comparison shows nothing"
    return out


def refusal(net, x, form="channels", **kwargs):
    with pytest.raises(deploy.DeployError) as error:
        deploy.to_binary(net, x, form, **kwargs)
    return str(error.value)


def plain(D=3, pool=True, time=False, **kwargs):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        Spikes(D, **kwargs),
        nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Spikes(D, **kwargs),
        nn.MaxPool2d(2) if pool else nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * (4 if pool else 64), 10),
        Spikes(D, **kwargs),
        nn.Linear(10, 4),
    )


class Sequence(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.held = neuron

    def forward(self, x):
        return self.held(x)[0]
