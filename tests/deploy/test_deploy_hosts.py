"""Binary deployment of the frameworks' own networks."""

from __future__ import annotations

import pytest
import torch
from deploy_nets import Sequence, Spikes, check, randomise, watched
from torch import nn

from msf_pmsn_plugins import deploy
from msf_pmsn_plugins.neurons import PMSN


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("v_reset", [0.0, None])
def test_spikingjelly_multi_step(form, v_reset):
    from spikingjelly.activation_based import functional, layer

    from msf_pmsn_plugins.spikingjelly import MSFNode

    pool = layer.MaxPool2d(2) if form != "bits" else layer.AvgPool2d(2)

    def node(D):
        return MSFNode.published(D=D, v_reset=v_reset)

    net = nn.Sequential(
        *(layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), node(3), layer.Dropout(0.5)),
        *(layer.Conv2d(6, 6, 3, padding=1, groups=3), layer.BatchNorm2d(6), node(4), pool),
        *(layer.Conv2d(6, 4, 1), node(2), layer.Flatten(), layer.Linear(64, 5)),
    )
    functional.set_step_mode(net, "m")
    x = torch.randn(3, 2, 2, 8, 8) * 2
    out = check(randomise(net), x, form, reset=functional.reset_net)
    with torch.no_grad():  # the state runs on from call to call
        for _ in range(3):
            x = torch.randn(2, 4, 2, 8, 8) * 2
            functional.reset_net(net), functional.reset_net(out)
            assert torch.equal(net(x), out(x))
            assert torch.equal(net(x), out(x))


@pytest.mark.parametrize("form", deploy.FORMS)
def test_spikingjelly_sew_resnet(form):
    from spikingjelly.activation_based import functional, layer
    from spikingjelly.activation_based.model.sew_resnet import BasicBlock, SEWResNet

    from msf_pmsn_plugins.spikingjelly import MSFNode

    torch.manual_seed(0)
    net = SEWResNet(BasicBlock, [1, 1, 1, 1], num_classes=4, cnf="ADD", spiking_neuron=MSFNode.published, D=2)
    net.maxpool = layer.MaxPool2d(2) if form != "bits" else nn.Identity()
    functional.set_step_mode(net, "m")
    net, moved = deploy.round_weights(net, bits=6)
    assert all(row.relative < 0.1 for row in moved)
    for module in net.modules():  # so that spikes reach the end
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(0.02)
    net.eval()
    x = torch.randn(2, 1, 3, 32, 32)
    out = deploy.to_binary(net, x, form)
    functional.reset_net(net), functional.reset_net(out)
    with torch.no_grad():
        y = net(x)
        assert torch.equal(out(x), y)
    rows = {r.layer: r for r in out.report}
    assert rows["layer2.0.conv1"].levels == 4  # stem or branch, plus the block's own
    assert rows["fc"].input == "real"
    assert y.std() > 0


@pytest.mark.parametrize("form", deploy.FORMS)
@pytest.mark.parametrize("hidden", [False, True])
def test_snntorch_loop(form, hidden):
    import snntorch as snn

    from msf_pmsn_plugins import snntorch as framework

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(5, 12), framework.MSF.published(D=3, init_hidden=hidden)
            self.fc2, self.lif2 = (
                nn.Linear(12, 7),
                framework.MSF.published(D=4, reset_mechanism="subtract", init_hidden=hidden),
            )
            self.fc3, self.lif3 = nn.Linear(7, 3), snn.Leaky(beta=0.5, init_hidden=hidden)
            self.fc4 = nn.Linear(3, 2)

        def forward(self, x):
            spikes, mems = [], [None, None, None]
            if not hidden:
                mems = [self.lif1.reset_mem(), self.lif2.reset_mem(), self.lif3.reset_mem()]
            layers = ((self.fc1, self.lif1), (self.fc2, self.lif2), (self.fc3, self.lif3))
            for t in range(4):
                s = x[t]
                for i, (fc, lif) in enumerate(layers):
                    if hidden:
                        s = lif(fc(s))
                    else:
                        s, mems[i] = lif(fc(s), mems[i])
                spikes.append(self.fc4(s))
            return torch.stack(spikes)

    net, x = randomise(Net()), torch.randn(4, 6, 5) * 3
    out = deploy.to_binary(net, x, form, binary=snn.Leaky)
    seen = {}
    watched(out, seen)
    for batch in (x, torch.randn(4, 3, 5) * 3):
        framework.reset(net), framework.reset(out)
        with torch.no_grad():
            assert torch.equal(net(batch), out(batch))
    assert set(seen) == {"fc2", "fc3", "fc4"}
    assert [(r.layer, r.planes) for r in out.report] == [
        ("fc1", None),
        ("fc2", 3 if form != "bits" else 2),
        ("fc3", 4 if form != "bits" else 3),
        ("fc4", 1),
    ]


def test_pmsn_and_other_binary_neurons_are_left_alone():
    net = nn.Sequential(
        nn.Linear(4, 6), Sequence(PMSN(6, channel_dim=-1)), nn.Linear(6, 3), Spikes(2, True), nn.Linear(3, 2)
    )
    net[2].bias.data[:] = 0.8
    net, _ = deploy.round_weights(net, only=["4"])
    out = check(net, torch.randn(5, 2, 4), "channels", spread=6.0)
    assert [(r.layer, r.input, r.planes) for r in out.report] == [
        ("0", "real", None),
        ("2", "binary", 1),
        ("4", "binary", 2),
    ]
    assert torch.equal(out.get_submodule("2").weight, net[2].weight)
