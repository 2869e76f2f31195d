"""PMSN: the channel axis, and channels taken from the first input."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from helpers import (
    Seen,
    all_ways,
    randn,
    sequence,
)
from msf_pmsn_plugins.neurons import MSN, PMSN
from msf_pmsn_plugins.neurons.pmsn.module import PARAMETERS
from subjects import (
    build_pmsn,
)
from tolerances import F32, F64, assert_close, assert_same

# ---------------------------------------------------------------- the channel axis


@all_ways
@pytest.mark.parametrize(
    ("channel_dim", "shape"),
    [(1, (2, 6, 4)), (2, (2, 5, 6)), (-1, (2, 5, 6)), (-2, (2, 5, 6, 3)), (1, (2, 6))],
)
def test_channel_axis_anywhere(channel_dim, shape, way):
    neuron = build_pmsn(6, channel_dim=channel_dim, dtype=F64)
    axis = channel_dim % len(shape)
    x = randn(40, *shape).requires_grad_()
    s, (r, z), m = way(neuron, x)
    plain = build_pmsn(6, dtype=F64)
    moved = x.detach().movedim(axis + 1, -1).reshape(40, -1, 6).requires_grad_()
    s_, (r_, z_), m_ = sequence(plain, moved)
    assert s.shape == m.shape == x.shape
    assert r.shape == shape
    assert z.shape == (*shape, 4)
    back = lambda t, extra=0: t.detach().movedim(axis + extra, -1).reshape(*t.shape[:extra], -1, 6)  # noqa: E731
    assert_same(back(s, 1), s_)
    assert_close(back(m, 1), m_, "drive")
    assert_close(back(r), r_, "drive")
    assert_close(z.detach().movedim(axis, -2).reshape(-1, 6, 4), z_, "drive")
    g, g_ = torch.autograd.grad(s.sum(), x)[0], torch.autograd.grad(s_.sum(), moved)[0]
    assert_close(back(g, 1), g_, "pmsn_adjoint")


@all_ways
@pytest.mark.parametrize(
    ("channel_dim", "shape"), [((1, 2), (3, 2, 3, 5)), ((-2, -1), (3, 5, 2, 3)), ([1, 2], (3, 2, 3))]
)
def test_two_axes_count_as_one(channel_dim, shape, way):
    neuron = build_pmsn(6, channel_dim=channel_dim, dtype=F64)
    axis = channel_dim[0] % len(shape)
    x = randn(40, *shape)
    s, (r, z), _ = way(neuron, x)
    s_, (r_, _), _ = sequence(build_pmsn(6, channel_dim=axis, dtype=F64), x.flatten(axis + 1, axis + 2))
    assert_same(s, s_.reshape(s.shape))
    assert_close(r, r_.reshape(shape), "drive")
    assert z.shape == (*shape, 4)


@pytest.mark.parametrize(
    ("channel_dim", "shape", "message"),
    [
        (1, (4, 2, 5), "this PMSN has 6 channels, but axis 1 .* has 5: pass channels=5, or the channel_dim"),
        (-1, (4, 2, 6, 5), "this PMSN has 6 channels"),
        ((1, 2), (4, 2, 2, 6), "this PMSN has 6 channels"),
        (2, (4, 6), "channel_dim=2 counts in the per-step tensor"),
        (-3, (4, 2, 6), "channel_dim=-3 counts in the per-step tensor"),
        (1, (4, 5), "this PMSN has 6 channels, but axis 1 .* has 5"),  # steps without a batch
        ((2, 1), (4, 2, 2, 3), "adjacent axes in ascending order"),
        ((1, 3), (4, 2, 2, 1, 3), "adjacent axes in ascending order"),
        ((1, 1), (4, 2, 6), "adjacent axes in ascending order"),
        (0, (4, 6, 2), "axis 0 is the batch"),
        (-2, (4, 6), "axis 0 is the batch"),
    ],
)
def test_wrong_channel_axis(channel_dim, shape, message):
    neuron = build_pmsn(6, channel_dim=channel_dim)
    with pytest.raises(ValueError, match=message):
        neuron(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):  # an empty sequence is checked too
        neuron(torch.zeros(0, *shape[1:]))


# ---------------------------------------------------------------- channels taken from the input


@pytest.mark.parametrize("steps", [0, 3])
def test_first_input_gives_the_channels(steps):
    neuron = PMSN(channel_dim=-1)
    assert neuron.channels is None
    neuron(torch.zeros(steps, 2, 4, 7))
    assert neuron.channels == 7
    assert neuron.A_imag.shape == (7, 4)
    with pytest.raises(ValueError, match="7 channels"):
        neuron(torch.zeros(2, 2, 4, 8))


def test_first_step_gives_the_channels():
    neuron, x = PMSN(), torch.zeros(2, 7)
    neuron.check_input(x)
    neuron.step(x, neuron.initial_state(x))
    assert neuron.channels == 7


def test_no_channels_in_the_input():
    with pytest.raises(ValueError, match="cannot take the channel count"):
        PMSN()(torch.zeros(2, 3, 0))


def test_lazy_and_given_channels_draw_the_same_numbers():
    torch.manual_seed(3)
    given = PMSN(5)
    torch.manual_seed(3)
    lazy = PMSN()
    lazy(torch.zeros(1, 1, 5))
    for name in PARAMETERS:
        assert_same(getattr(lazy, name), getattr(given, name))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_may_hold_the_parameters_before_they_have_a_size(kind):
    neuron = PMSN()
    optimizer = kind(neuron.parameters(), lr=0.05)
    x = 3 * randn(20, 4, 5, dtype=F32)
    neuron(x)
    before = {n: p.detach().clone() for n, p in neuron.named_parameters()}
    (neuron(x)[0].mean() - 1).square().backward()
    optimizer.step()
    changed = {n for n, p in neuron.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(PARAMETERS)


@pytest.mark.parametrize("kind", [PMSN, MSN])
@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference_mode"])
def test_giving_the_parameters_a_size_is_no_operation_of_the_model(kind, inference):
    x = torch.rand(2, 2, 3)
    seen = []
    for channels in (3, None):
        neuron = kind(channels)
        with torch.inference_mode(inference), Seen() as outer, Seen() as inner:
            neuron.sequence(x)
            x + 1
        assert inner.names[-1] == outer.names[-1] == "aten.add.Tensor"  # both watch on
        assert all(p.is_leaf and not p.is_inference() for p in neuron.parameters())
        seen.append((inner.names, outer.names))
    assert seen[0] == seen[1]


def test_counters_watch_on_after_parameters_that_could_not_be_made(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(PMSN, "reset_parameters", fail)
    with Seen() as watch, pytest.raises(MemoryError):
        PMSN()(torch.rand(2, 2, 3))
    with watch:
        torch.ones(())
    assert watch.names[-1] == "aten.ones.default"


def test_every_mode_comes_back_where_it_was_whoever_calls_itself_torchs_own():
    class Profiler(Seen):
        @classmethod
        def is_infra_mode(cls):
            return True

    outer, inner, neuron = Seen(), Profiler(), PMSN()
    with outer, inner:
        neuron.materialize(4)
        assert _get_current_dispatch_mode_stack() == [outer, inner]
        assert not outer.names
        assert not inner.names


def torch_sizes_fake_parameters():
    """Torch 2.6 cannot, with none of ours."""
    alone = UninitializedParameter()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            alone.materialize((3,))
    except TypeError:
        return False
    return True


@pytest.mark.skipif(not torch_sizes_fake_parameters(), reason="this torch cannot give fake parameters a size")
@pytest.mark.parametrize("kind", [PMSN, MSN])
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
def test_parameters_that_get_their_size_among_fake_tensors_hold_nothing(kind, watched):
    neuron = kind()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Seen() if watched else mode:
        x = torch.rand(2, 2, 3)
        neuron.check_input(x[0])
    assert neuron.channels == 3
    assert all(p.device.type == "meta" for p in neuron.parameters())  # as torch gives them a size there


def test_deepcopy_before_the_channels_are_known():
    neuron = PMSN(channel_dim=-1, v_threshold=0.5)
    twin = copy.deepcopy(neuron)
    twin(torch.zeros(1, 1, 3))
    neuron(torch.zeros(1, 1, 5))
    assert (neuron.channels, twin.channels, twin.v_threshold) == (5, 3, 0.5)


def test_state_dict_before_the_channels_are_known():
    for module in (PMSN(), torch.nn.Sequential(torch.nn.Linear(2, 2), PMSN())):
        with pytest.raises(RuntimeError, match=r"pass channels=\.\.\., or run one forward pass"):
            module.state_dict()


@pytest.mark.parametrize("strict", [True, False])
def test_load_state_dict_gives_the_channels(strict):
    given, lazy = torch.nn.Sequential(build_pmsn(5)), torch.nn.Sequential(PMSN())
    lazy.load_state_dict(given.state_dict(), strict=strict)
    assert lazy[0].channels == 5
    for name in PARAMETERS:
        assert_same(getattr(lazy[0], name), getattr(given[0], name))
    x = randn(10, 2, 5, dtype=F32)
    assert_same(lazy[0](x)[0], given[0](x)[0])


def test_load_state_dict_of_another_size_raises():
    with pytest.raises(RuntimeError, match="size mismatch"):
        PMSN(4).load_state_dict(build_pmsn(5).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        PMSN(compartments=4).load_state_dict(build_pmsn(5).state_dict())


def test_load_state_dict_without_our_keys_leaves_the_channels_open():
    neuron = PMSN()
    with pytest.raises(RuntimeError, match="Missing key"):
        neuron.load_state_dict({})
    assert neuron.channels is None


def test_weights_before_the_channels_are_known():
    with pytest.raises(RuntimeError, match="channel count is not known yet"):
        PMSN().weights()


def test_distributed_data_parallel_asks_for_a_forward_first():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module = torch.nn.Sequential(PMSN())
        with pytest.raises(RuntimeError, match=r"uninitialized parameters.*dummy forward"):
            DistributedDataParallel(module)
    finally:
        dist.destroy_process_group()


def test_dtype_and_device_moves_before_the_channels_are_known():
    neuron = PMSN().double()
    neuron(torch.zeros(1, 1, 3, dtype=F64))
    assert {p.dtype for p in neuron.parameters()} == {F64}
