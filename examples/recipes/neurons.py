"""The neurons of the recipes, so that one line of a configuration changes them.

A factory holds the settings; a model calls it once per layer with the number of channels and gets a SpikingJelly
node in multi-step mode, [T, N, C, *] -> [T, N, C, *]::

    neuron: {class_path: recipes.neurons.PMSN, init_args: {compartments: 5}}
"""

from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from msf_pmsn_plugins import neurons
from msf_pmsn_plugins.spikingjelly import MSFNode, PMSNNode

__all__ = ["LIF", "MSF", "PMSN", "PSN", "Factory", "MaskedPSN", "ReLU", "SlidingPSN", "reset"]


class Factory:
    """Settings of a neuron; call it with the number of channels of a layer."""

    def __call__(self, channels: int) -> nn.Module:
        raise NotImplementedError

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class LIF(Factory):
    """Leaky integrate and fire, one threshold: SpikingJelly's LIFNode, computed by our kernels.

    ``reset=False`` never resets (the ablation of both papers' baselines). The LIF of the MSF code is ``tau=4/3``,
    ``decay_input=False``, ``surrogate="rectangular"``.
    """

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        reset: bool = True,
        surrogate: str = "atan",
    ):
        self.tau = tau
        self.decay_input = decay_input
        self.v_threshold = v_threshold
        self.reset = reset
        self.surrogate = surrogate

    def __call__(self, channels):
        if self.reset:
            return MSFNode.published(
                D=1,
                tau=self.tau,
                decay_input=self.decay_input,
                v_threshold=self.v_threshold,
                surrogate_function=self.surrogate,
                step_mode="m",
            )
        held = neurons.MSF(
            D=1,
            decay=1 - 1 / self.tau,
            input_scale=1 / self.tau if self.decay_input else 1.0,
            v_threshold=self.v_threshold,
            reset_mode="none",
            surrogate=self.surrogate,
        )
        return MSFNode.from_neuron(held, step_mode="m")


class MSF(Factory):
    """The multi-synaptic firing neuron; the defaults are the published ones."""

    def __init__(self, D: int = 4, tau: float = 4 / 3, v_threshold: float = 1.0):
        self.D = D
        self.tau = tau
        self.v_threshold = v_threshold

    def __call__(self, channels):
        return MSFNode.published(D=self.D, tau=self.tau, v_threshold=self.v_threshold, step_mode="m")


class PMSN(Factory):
    """The parallel multi-compartment neuron; see :class:`msf_pmsn_plugins.spikingjelly.PMSNNode`.

    ``reset=False`` is the paper's ablation: it fires where the drive reaches the threshold.
    """

    def __init__(
        self,
        compartments: int = 5,
        reset: bool = True,
        init: str = "sequence",
        coeff: float = 1.0,
        context: str = "local",
        tied: bool = False,
    ):
        self.compartments = compartments
        self.reset = reset
        self.init = init
        self.coeff = coeff
        self.context = context
        self.tied = tied

    def __call__(self, channels):
        held = neurons.PMSN(
            channels,
            self.compartments,
            init=self.init,
            reset_mode="floor" if self.reset else "none",
            coeff=self.coeff,
            tied=self.tied,
            context=self.context,
        )
        return PMSNNode.from_neuron(held, step_mode="m")


def _stock(name: str) -> type[nn.Module]:
    """A neuron of SpikingJelly that 0.0.0.0.14 does not have yet."""
    try:
        return getattr(neuron, name)
    except AttributeError as error:
        raise ImportError(
            f"{name} comes with SpikingJelly 2.0.0, this one is older: pip install -U spikingjelly"
        ) from error


class PSN(Factory):
    """SpikingJelly's PSN: a learned [steps, steps] matrix, so it needs the number of steps and sees the future."""

    def __init__(self, steps: int):
        self.steps = steps

    def __call__(self, channels):
        return _stock("PSN")(self.steps, surrogate.ATan())


class MaskedPSN(Factory):
    """SpikingJelly's masked PSN of order k: each step sees itself and the k - 1 before it."""

    def __init__(self, steps: int, k: int = 32):
        self.steps = steps
        self.k = k

    def __call__(self, channels):
        # lambda_init=1: masked from the start. Below 1 the future still leaks in.
        return _stock("MaskedPSN")(min(self.k, self.steps), self.steps, 1.0, surrogate.ATan(), "m")


class SlidingPSN(Factory):
    """SpikingJelly's sliding PSN: one filter of length k for all steps."""

    def __init__(self, k: int = 32):
        self.k = k

    def __call__(self, channels):
        return _stock("SlidingPSN")(self.k, True, surrogate.ATan(), "m")


class ReLU(Factory):
    """No spikes and no state: the network as an ANN, the control."""

    def __call__(self, channels):
        return nn.ReLU()


def reset(model: nn.Module) -> None:
    """Bring every neuron of ``model`` to rest: between batches."""
    functional.reset_net(model)
