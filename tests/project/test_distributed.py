"""Two processes on the CPU (gloo): data parallelism and sharded parameters give what one process gives."""

import functools
import importlib.util
import multiprocessing
import socket
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from msf_pmsn_plugins import state as states
from msf_pmsn_plugins.neurons import MSF, PMSN
from tolerances import F64, assert_close, assert_same

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)

WORLD = 2
STEPS, BATCH, CHANNELS = 12, 4, 5  # five channels on two processes: shards of unequal size
DECAY = torch.full((6,), 0.5)  # one a channel: fully_shard refuses scalar parameters
FRAMEWORKS = ("spikingjelly", "snntorch")  # their imports take most of the time
every_framework = pytest.mark.parametrize(
    "framework", ["bare", *(pytest.param(framework, marks=pytest.mark.slow) for framework in FRAMEWORKS)]
)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.msf = nn.Linear(3, 6), MSF(decay=DECAY, learn_decay=True, backend="torch")
        self.second, self.pmsn = nn.Linear(6, CHANNELS), PMSN(CHANNELS, backend="torch")

    def forward(self, x_seq):
        return self.pmsn(self.second(self.msf(self.first(x_seq))[0]))[0]


def network(framework, seed=0):
    """Linear, MSF with a learned decay, Linear, PMSN; the same numbers in every framework, in float64."""
    torch.manual_seed(seed)
    if framework == "bare":
        return Bare().double()
    first, second = nn.Linear(3, 6), nn.Linear(6, CHANNELS)
    if framework == "spikingjelly":
        from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

        nodes = (
            MSFNode.from_neuron(MSF(decay=DECAY, learn_decay=True), step_mode="m"),
            PMSNNode(CHANNELS, step_mode="m"),
        )
    else:
        from msf_pmsn_plugins import snntorch

        options = {"init_hidden": True, "sequence": True}
        nodes = snntorch.MSF.published(DECAY, learn_beta=True, **options), snntorch.PMSN(CHANNELS, **options)
    return nn.Sequential(first, nodes[0], second, nodes[1]).double()


def rest(net):
    if not isinstance(net, Bare):
        states.write(net, {})


def neuron_of(net):
    return net.pmsn if isinstance(net, Bare) else net[3].neuron


def data():
    generator = torch.Generator().manual_seed(1)
    x_seq = 3 * torch.randn(STEPS, BATCH, 3, generator=generator, dtype=F64)
    return x_seq, torch.randn(STEPS, BATCH, CHANNELS, generator=generator, dtype=F64)


def train(model, net, part=slice(None), share=1.0):
    """Three steps of SGD on a part of the batch, then one evaluation: spikes of all four, gradients of the last."""
    x_seq, up = (each[:, part] for each in data())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    spikes = []
    for _ in range(3):
        rest(net)
        optimizer.zero_grad()
        s_seq = model(x_seq)
        (share * (s_seq * up).sum()).backward()
        optimizer.step()
        spikes.append(s_seq.detach())
    rest(net)
    with torch.no_grad():
        spikes.append(model(x_seq))
    rest(net)
    return spikes


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def report(net, spikes):
    return {
        "spikes": spikes,
        "gradients": {name: whole(p.grad) for name, p in net.named_parameters()},
        "parameters": {name: whole(p) for name, p in net.named_parameters()},
    }


def data_parallel(framework, rank):
    net = network(framework, seed=rank)  # the first process hands its numbers to the others
    return report(net, train(DistributedDataParallel(net), net, slice(rank, None, WORLD)))


def sharded(framework, rank):
    net = network(framework)
    mesh = init_device_mesh("cpu", (WORLD,))
    for module in (net.msf, net.pmsn) if framework == "bare" else (net[1], net[3]):
        fully_shard(module, mesh=mesh)
    fully_shard(net, mesh=mesh)
    local = tuple(neuron_of(net).A_imag.to_local().shape)
    spikes = train(net, net, slice(rank, None, WORLD))
    net.reshard()  # without a backward the root stays gathered
    result = report(net, spikes)
    full = StateDictOptions(full_state_dict=True)
    result["local"], result["state_dict"] = local, get_model_state_dict(net, options=full)
    # and back: other numbers out, these in again
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    set_model_state_dict(net, report_of_full(result["parameters"], net), options=full)
    result["loaded"] = {name: whole(p) for name, p in net.named_parameters()}
    with torch.no_grad():
        result["again"] = net(data()[0][:, rank::WORLD])
    return result


def report_of_full(parameters, net):
    """A full state dict: the parameters given, the buffers as they are."""
    return {**net.state_dict(), **parameters}


def sharded_inside(framework, rank):
    """What happens if a neuron is sharded that is not called itself: nobody gathers its parameters."""
    net = network(framework)
    neuron = neuron_of(net)
    fully_shard(neuron, mesh=init_device_mesh("cpu", (WORLD,)))
    try:
        neuron.sequence(data()[1])
    except RuntimeError as error:
        return str(error)
    return ""


def work(rank, port, folder, frameworks):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, WORLD, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    try:
        results = {
            (job.__name__, framework): job(framework, rank)
            for framework in frameworks
            for job in (data_parallel, sharded, sharded_inside)
        }
    except Exception:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
    torch.save(results, Path(folder) / f"{rank}.pt")


@functools.cache
def run_pair(frameworks):
    """Everything that the tests below look at, from one pair of processes: results[rank][job, framework]."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        # torch and this file are imported once, by the server that forks them
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        mp.start_processes(work, (port, folder, frameworks), nprocs=WORLD, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def results_of(job, framework):
    """What each process returned."""
    if framework != "bare":
        pytest.importorskip(f"msf_pmsn_plugins.{framework}")
    frameworks = ("bare",) if framework == "bare" else tuple(filter(importlib.util.find_spec, FRAMEWORKS))
    return [results[job, framework] for results in run_pair(frameworks)]


@functools.cache
def alone(framework):
    """The same training in one process: the mean over two processes is half the sum over the batch."""
    net = network(framework)
    return report(net, train(net, net, share=1 / WORLD))


def together(parts):
    """The batch again from what each process had of it."""
    out = parts[0].new_empty((STEPS, BATCH, CHANNELS))
    for rank, part in enumerate(parts):
        out[:, rank::WORLD] = part
    return out


def check(job, framework):
    ranks, expected = results_of(job, framework), alone(framework)
    for t, spikes in enumerate(expected["spikes"]):
        assert_same(together([rank["spikes"][t] for rank in ranks]), spikes)
    assert any(spikes.any() for spikes in expected["spikes"])
    for rank in ranks:
        for kind in ("gradients", "parameters"):
            assert rank[kind].keys() == expected[kind].keys()
            for name, value in expected[kind].items():
                assert_close(rank[kind][name], value, "adjoint")
    assert all(g.any() for g in expected["gradients"].values())
    return ranks


@every_framework
def test_two_processes_train_like_one(framework):
    check("data_parallel", framework)


@every_framework
def test_sharded_parameters_train_like_whole_ones(framework):
    ranks = check("sharded", framework)
    assert [rank["local"] for rank in ranks] == [(3, 4), (2, 4)]  # five channels
    net = network(framework, seed=9)
    net.load_state_dict(ranks[0]["state_dict"])
    for rank in ranks:
        for name, value in rank["parameters"].items():
            assert_same(rank["loaded"][name], value)
        assert_same(rank["again"], rank["spikes"][-1])
    with torch.no_grad():
        assert_same(net(data()[0]), alone(framework)["spikes"][-1])


@every_framework
def test_sharding_a_neuron_that_is_not_called_itself_raises(framework):
    """So nodes are sharded, not the neurons that they hold."""
    for message in results_of("sharded_inside", framework):
        assert "DTensor" in message


def test_the_comparison_sees_a_process_that_was_left_out():
    """Half of the batch alone trains another network: the tests above can fail."""
    net = network("bare")
    half = report(net, train(net, net, slice(0, None, WORLD)))
    with pytest.raises(AssertionError):
        for name, value in alone("bare")["parameters"].items():
            assert_close(half["parameters"][name], value, "adjoint")
