"""Whatever happens, a model is as it was or wholly swapped. On both hosts."""

from __future__ import annotations

import copy
import random
import sys
import warnings

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from msf_pmsn_plugins import swap
from tolerances import assert_same

# Exceptions and interrupts at a line ----------------------------------------------------------------------------------


class At:
    """Throws ``error`` once, at the ``stop``-th line of the package that is run; ``seen`` counts them."""

    def __init__(self, stop, error=KeyboardInterrupt):
        self.stop, self.error, self.seen, self.thrown = stop, error, 0, False

    def _trace(self, frame, event, _arg):
        if "msf_pmsn_plugins" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.stop:
                self.thrown = True
                raise self.error
        return self._trace

    def call(self, function, *args):
        """The result, or None where ``error`` came out."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return function(*args)
        except self.error:
            assert self.thrown
            return None
        finally:
            sys.settrace(before)


class Thrown(Exception):
    """Nobody else raises it."""


# Generated nets -------------------------------------------------------------------------------------------------------


class MyLIF(neuron.LIFNode):
    """A subclass."""


class Walk(nn.Module):
    """Keeps its parts in plain containers too, and counts in them."""

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.walk = list(parts)
        self.by_name = {"all": tuple(parts), "some": {parts[0], parts[-1]}}
        self.seen = {"calls": 0, "shapes": [], "sizes": set(), "last": None}
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.seen["calls"] += 1
        self.seen["shapes"].append(tuple(x.shape))
        self.seen["sizes"].add(len(x))
        self.seen["last"] = x.detach()
        for part in self.walk:
            x = part(x)
        return x


class Inside(nn.Sequential):
    """The walk as a part."""

    def __init__(self, parts):
        super().__init__(Walk(parts), nn.Identity())


class Fold(nn.Module):
    """[T, N, *] through a part that takes [T*N, *]."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_seq):
        return self.inner(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


class Loop(nn.Module):
    """Single steps of snnTorch."""

    def __init__(self, width):
        super().__init__()
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x_seq):
        mem, out = self.lif.reset_mem(), []
        for x in x_seq:
            s, mem = self.lif(x, mem)
            out.append(s)
        return torch.stack(out)


def generated(seed):
    """A net, its input, and the rules that settle it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    width, parts = draw.choice((4, 6)), []
    shared = neuron.IFNode(step_mode="m")
    for _ in range(draw.randint(2, 4)):
        parts.append(draw.choice((layer.Linear(width, width), nn.Linear(width, width), nn.Identity())))
        kind = draw.choice(("lif", "plif", "mine", "shared", "loop", "fold", "scripted"))
        parts.append(
            {
                "lif": lambda: neuron.LIFNode(tau=3.0, step_mode="m"),
                "plif": lambda: neuron.ParametricLIFNode(step_mode="m"),
                "mine": lambda: MyLIF(step_mode="m"),
                "shared": lambda: shared,
                "loop": lambda: Loop(width),
                "fold": lambda: Fold(neuron.LIFNode(step_mode="m")),
                "scripted": lambda: torch.jit.script(nn.Linear(width, width)),
            }[kind]()
        )
    parts.append(neuron.LIFNode(step_mode="m"))
    net = draw.choice(
        (Walk, lambda parts: nn.Sequential(*parts), lambda parts: nn.Sequential(Walk(parts), nn.Identity()))
    )(parts)
    net.train(draw.random() < 0.5)
    rules = {}
    if any(isinstance(part, Fold) for part in parts):
        first = isinstance(parts[1], neuron.BaseNode)  # before it a neuron sees T
        folded = draw.choice(("reproduce", "fix")) if first else "reproduce"
        rules[lambda module, path: path.endswith("inner")] = swap.Rule(folded=folded)
    rules[lambda module, path: True] = swap.Rule(repeated="carry", channel_dim=1)
    target = draw.choice((swap.MSF(D=4), swap.MSF(D=1), swap.PMSN(compartments=2)))
    return net, 3 * torch.rand(3, 2, width), target, rules


def facts(net):
    """All that must be as before: which modules stand where, modes, hooks, buffers, containers."""
    modules = dict(net.named_modules(remove_duplicate=False))
    return {
        "modules": {path: id(m) for path, m in modules.items()},
        "modes": [m.training for m in modules.values()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in modules.values()
            if not isinstance(m, torch.jit.ScriptModule)
        ],
        "buffers": {name: b.clone() for name, b in net.named_buffers()},
        "walks": [
            (
                [id(p) for p in m.walk],
                [id(p) for p in m.by_name["all"]],
                {id(p) for p in m.by_name["some"]},
                repr(m.seen),
            )
            for m in modules.values()
            if isinstance(m, Walk)
        ],
        "states": [repr(getattr(m, "_memories", None)) for m in modules.values()],
    }


def assert_as_before(net, before):
    now = facts(net)
    for name in before:
        if name == "buffers":
            assert now[name].keys() == before[name].keys()
            assert all(torch.equal(now[name][key], value) for key, value in before[name].items())
        else:
            assert now[name] == before[name], name


def is_swapped(plan, net):
    """Every site or none holds our neuron; anything else fails."""
    from msf_pmsn_plugins.neurons import Neuron

    modules = dict(net.named_modules(remove_duplicate=False))
    sites = [s for s in plan.sites if s.verdict in ("ok", "single-step")]
    ours = [any(isinstance(m, Neuron) for m in modules[s.path].modules()) for s in sites]
    assert all(ours) or not any(ours), "half swapped"
    for module in modules.values():
        if isinstance(module, Walk):
            assert all(a is b for a, b in zip(module.walk, module.parts, strict=True)), (
                "a list holds the old ones"
            )
            assert module.by_name["all"] == tuple(module.parts)
            assert module.by_name["some"] == {module.parts[0], module.parts[-1]}
    return all(ours)


def one_net(seed):
    """Plan, apply and undo, each interrupted at a random line, then as if nothing had been."""
    draw = random.Random(seed + 10_000)
    error = draw.choice((KeyboardInterrupt, Thrown))
    net, x, target, rules = generated(seed)
    before, rng = facts(net), torch.get_rng_state()

    def plan():
        return swap.plan(net, x, target, rules=rules)

    at = At(draw.choice((draw.randint(1, 2000), draw.randint(1, 20_000))), error)
    at.call(plan)
    assert_as_before(net, before)
    assert torch.equal(torch.get_rng_state(), rng)

    planned = plan()
    assert_as_before(net, before)
    assert not planned.unresolved, str(planned)
    apply = At(10**9, error)
    apply.call(planned.apply)
    assert is_swapped(planned, net)
    lines = apply.seen
    planned.undo()
    assert_as_before(net, before)

    at = At(draw.randint(1, lines), error)
    at.call(planned.apply)
    assert at.thrown
    assert is_swapped(planned, net) == planned.applied
    if not planned.applied:
        assert_as_before(net, before)
        planned.apply()
    net(x)
    functional.reset_net(net)
    state = {id(m): m for m in net.modules()}
    undo = At(draw.randint(1, 400), error)
    undo.call(planned.undo)
    assert is_swapped(planned, net) == planned.applied
    if planned.applied:
        assert {id(m) for m in net.modules()} == state.keys()
        planned.undo()
    assert {path: id(m) for path, m in net.named_modules(remove_duplicate=False)} == before["modules"]
    assert facts(net)["hooks"] == before["hooks"]


@pytest.mark.parametrize("seed", range(40))
def test_no_generated_net_is_left_half_swapped(seed):
    one_net(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(40, 500))
def test_nor_is_one_of_many(seed):
    one_net(seed)


def test_the_way_back_to_stock_neurons_is_all_or_nothing():
    def net():
        return nn.Sequential(*(neuron.LIFNode(step_mode="m") for _ in range(2)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", swap.SwapWarning)
        swapped = swap.msf(net(), torch.rand(3, 2, 4), D=1)
        whole = At(10**9)
        whole.call(swap.lif, model := copy.deepcopy(swapped))
        assert all(isinstance(m, neuron.LIFNode) for m in model)
        for stop in range(1, whole.seen + 1, 3):
            At(stop).call(swap.lif, model := copy.deepcopy(swapped))
            assert len({type(m) for m in model}) == 1, f"half swapped after line {stop}"


# What a plan leaves behind --------------------------------------------------------------------------------------------


def test_hooks_do_not_reach_the_next_plan():
    """A scripted part takes no hooks; nothing of one plan is there when the next begins."""
    net = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode(step_mode="m"), torch.jit.script(nn.Linear(4, 2)))
    x, seen = torch.rand(3, 2, 4), []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    before = [dict(m._forward_hooks) for m in net[:2]]
    for _ in range(2):
        swap.plan(net, x, swap.MSF(D=4)).apply()
        assert dict(net[0]._forward_hooks) == before[0]
        assert not net[1]._forward_hooks
        net[1] = neuron.LIFNode(step_mode="m")


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_what_lies_in_containers_is_put_back(mode):
    parts = [nn.Linear(4, 4), neuron.LIFNode(step_mode="m")]
    net = Walk(parts).train(mode)
    net.seen["nested"] = [{"deep": ([torch.zeros(2)],)}]
    deep = net.seen["nested"][0]["deep"][0][0]

    def scribble(module, args, output):
        deep.add_(1)
        net.seen["nested"].append("more")
        net.seen["nested"][0]["new"] = 1

    net.register_forward_hook(scribble)
    before = facts(net)
    swap.plan(net, torch.rand(3, 2, 4), swap.PMSN())
    assert_as_before(net, before)
    assert_same(deep, torch.zeros(2))
    swapped = swap.plan(net, torch.rand(3, 2, 4), swap.PMSN()).apply()
    before = facts(swapped)
    swap.verify(swapped, torch.rand(3, 2, 4))
    assert_as_before(swapped, before)
    assert_same(deep, torch.zeros(2))
