"""Models in the worker processes of a data loader."""

import copy
import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from helpers import randn
from networks import every_host, network, rest
from tolerances import F32, assert_same

# ---------------------------------------------------------------- workers


class Encoded(Dataset):
    """Samples that a model turns into spikes where they are read: in the workers."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 6

    def __getitem__(self, index):
        with torch.no_grad():
            rest(self.model)
            return self.model(3 * randn(12, 1, 3, seed=index, dtype=F32))[:, 0]


class Collate:
    """The same, for a batch."""

    def __init__(self, model):
        self.model = model

    def __call__(self, samples):
        x_seq = torch.stack(samples, 1)
        with torch.no_grad():
            rest(self.model)
            return x_seq, self.model(x_seq)


class Inputs(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return 3 * randn(12, 3, seed=index, dtype=F32)


def check_workers(model, method):
    context = multiprocessing.get_context(method)
    loader = DataLoader(Encoded(model), batch_size=3, num_workers=1, multiprocessing_context=context)
    expected = torch.stack([Encoded(model)[i] for i in range(6)])
    assert_same(torch.cat(list(loader)), expected)
    assert expected.any()
    with torch.no_grad():
        model.get_parameter(next(n for n, _ in model.named_parameters() if "A_imag" in n)).mul_(3)
    # a worker that starts now has the new weights, not those remembered before; a copy remembers nothing
    twin = copy.deepcopy(model)
    loader = DataLoader(
        Inputs(), batch_size=3, num_workers=1, collate_fn=Collate(model), multiprocessing_context=context
    )
    for x_seq, spikes in loader:
        assert_same(spikes, Collate(twin)(list(x_seq.unbind(1)))[1])


@every_host
def test_models_work_in_forked_workers(host):
    check_workers(network(host), "fork")


@pytest.mark.slow
@every_host
def test_models_work_in_spawned_workers(host):
    check_workers(network(host), "spawn")
