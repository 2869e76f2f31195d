"""Inputs and a net for the tests of the swap."""

from __future__ import annotations

import pytest
import torch

from swap_models import Small


@pytest.fixture
def image():
    return torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def x_seq():
    return torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(2)) * 2
