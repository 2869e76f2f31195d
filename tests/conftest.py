"""For all tests."""

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tensors are small here: threads would only wait for one another


@pytest.fixture(autouse=True)
def _seeds():
    """Every test draws the same numbers whichever tests ran before it in its worker."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
