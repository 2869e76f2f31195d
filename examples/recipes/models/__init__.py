"""The networks of both papers, the neuron by argument. Parameter counts are asserted in the tests."""

from torch import nn

from .columns import ColumnNet
from .decoder import Decoder
from .detector import Detector
from .eegnet import EEGNet
from .forecast import Forecaster
from .mhsanet import MHSANet
from .sequence import SequenceNet, SHDNet
from .sew import SEWResNet
from .sine import SineNet

__all__ = [
    "ColumnNet",
    "Decoder",
    "Detector",
    "EEGNet",
    "Forecaster",
    "MHSANet",
    "SEWResNet",
    "SHDNet",
    "SequenceNet",
    "SineNet",
    "count_parameters",
]


def count_parameters(model: nn.Module) -> int:
    """All parameters, learned or not."""
    return sum(parameter.numel() for parameter in model.parameters())
