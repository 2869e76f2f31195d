"""What is shown of a state cannot be changed in place: it would change nothing, where the host's own would reset."""

import copy
import io

import pytest
import torch

CHANGES = {
    "item": lambda v: v.__setitem__(0, 0.0),
    "zero_": lambda v: v.zero_(),
    "mul_": lambda v: v.mul_(0),
    "copy_": lambda v: v.copy_(torch.zeros_like(v)),
    "masked_fill_": lambda v: v.masked_fill_(v > 0, 0.0),
    "*=": lambda v: v.__imul__(0),
    "+=": lambda v: v.__iadd__(1),
    "out": lambda v: torch.add(v, 1, out=v),
    "foreach": lambda v: torch._foreach_mul_([v], 0),
}
DONE = torch.tensor([True, False, True])


def x_seq(steps=6):
    return torch.rand(steps, 3, 4, generator=torch.Generator().manual_seed(0)) * 2


def anew(part):
    part = part.clone()
    part[DONE] = 0
    return part


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["PMSN", "ParallelIF"])
def test_a_membrane_of_snntorch_that_brings_a_state_along(kind, name):
    framework = pytest.importorskip("msf_pmsn_plugins.snntorch")
    neuron = framework.PMSN(4) if kind == "PMSN" else framework.ParallelIF()
    _, mem = neuron(x_seq()[0], neuron.reset_mem())
    with pytest.raises(RuntimeError, match=r"in-place change of this mem.*mem = mem.each\(change\)"):
        CHANGES[name](mem)
    mem.requires_grad_(mem.requires_grad)
    with torch.no_grad():
        spk, _ = neuron(x_seq()[1], mem.each(anew))
        fresh, _ = neuron(x_seq()[1], neuron.reset_mem())
        same, _ = neuron(x_seq()[1], mem)
    assert torch.equal(spk[DONE], fresh[DONE])
    assert torch.equal(spk[~DONE], same[~DONE])


@pytest.mark.parametrize("threshold", [1.0, 0.5])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["PMSNNode", "ParallelIFNode"])
def test_the_residual_of_a_spikingjelly_node(kind, name, threshold):
    framework = pytest.importorskip("msf_pmsn_plugins.spikingjelly")
    node = getattr(framework, kind)(v_threshold=threshold)
    with torch.no_grad():
        node(x_seq()[0])
        before = [part.clone() for part in node.carried]
        with pytest.raises(RuntimeError, match=rf"v of {kind} shows its residual.*node\.carried = "):
            CHANGES[name](node.v)
        assert all(map(torch.equal, before, node.carried))
        node.carried = tuple(map(anew, node.carried))
        assert not node.v[DONE].any()
        assert torch.equal(node.v[~DONE], before[0][~DONE] * threshold)
        node.v = 0.25
        assert node.v == 0.25


def test_what_is_computed_from_it_and_what_is_stored_is_plain():
    framework = pytest.importorskip("msf_pmsn_plugins.spikingjelly")
    node = framework.PMSNNode(4)
    node(x_seq()[0])
    v = node.v
    for made in (v + 1, v.clone(), torch.stack([v, v]), v.detach(), v[0]):
        assert type(made) is torch.Tensor
    assert v.detach_() is v
    copied = copy.deepcopy({"v": v})["v"]
    assert type(copied) is torch.Tensor
    assert torch.equal(copied, v)
    file = io.BytesIO()
    torch.save(v, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is torch.Tensor
    assert torch.equal(loaded, v)


@pytest.mark.parametrize("kind", ["PMSN", "ParallelIF"])
def test_detaching_a_membrane_in_place_cuts_the_graph_of_all_that_it_brings(kind):
    framework = pytest.importorskip("msf_pmsn_plugins.snntorch")
    neuron = framework.PMSN(4) if kind == "PMSN" else framework.ParallelIF()
    x = x_seq().requires_grad_()
    _, mem = neuron(x[0], neuron.reset_mem())
    assert mem.requires_grad
    assert mem.detach_() is mem
    assert not mem.requires_grad
    spk, after = neuron(x[1], mem)
    (spk.sum() + after.sum()).backward()
    assert not x.grad[0].any()
    assert x.grad[1].any()
