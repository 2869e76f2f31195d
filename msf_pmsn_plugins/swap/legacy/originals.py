"""What old releases of SpikingJelly have, of all that is not offered here: so that no message sends anybody in vain."""

from __future__ import annotations

__all__ = ["where"]

# By part of clock_driven: what 0.0.0.0.14 has. cext.neuron, with CUDA kernels: what 0.0.0.0.12 has, and no later one.
ORIGINALS = {
    "clock_driven": "cu_kernel_opt examples lava_exchange monitor neuron_kernel spike_op tensor_cache",
    "clock_driven.neuron": "AdaptiveBaseNode EIFNode GeneralNode LIAFNode MultiStepEIFNode MultiStepGeneralNode "
    "QIFNode check_backend",
    "clock_driven.surrogate": "PiecewiseLeakyReLU atan check_cuda_grad check_manual_grad erf nonzero_sign_log_abs "
    "piecewise_exp piecewise_leaky_relu piecewise_quadratic q_pseudo_spike s2nn sigmoid soft_sign "
    "squarewave_fourier_series",
    "clock_driven.functional": "fuse_convbn2d fused_conv2d_bias_of_convbn2d fused_conv2d_weight_of_convbn2d "
    "scale_fused_conv2d_bias_of_convbn2d scale_fused_conv2d_weight_of_convbn2d spike_cluster",
    "clock_driven.layer": "AXAT ChannelsPool ConvBatchNorm2d DCT DropConnectLinear ElementWiseRecurrentContainer "
    "LinearRecurrentContainer NeuNorm PrintShapeModule STDPLearner SynapseFilter",
    "clock_driven.encoding": "StatefulEncoder StatelessEncoder",
    "clock_driven.ann2snn": "converter examples modules utils",
    "clock_driven.model": "parametric_lif_net train_classify train_imagenet",
    **dict.fromkeys(
        (f"clock_driven.model.{name}" for name in ("sew_resnet", "spiking_resnet")),
        "BasicBlock Bottleneck MultiStepBasicBlock MultiStepBottleneck conv1x1 conv3x3",
    ),
    "cext.neuron": "BaseNode IFMultiStep IFStep LIFMultiStep LIFStep",
}
VERSIONS = {"cext.neuron": "0.0.0.0.12"}


def where(module: str, name: str) -> str:
    """Who has ``name`` of an old module, as a sentence."""
    part = module.removeprefix("spikingjelly.")
    version = VERSIONS.get(part, "0.0.0.0.14")
    if name in ORIGINALS.get(part, "").split():
        return f"For it use SpikingJelly {version}, which has the original"
    return f"SpikingJelly {version} has none either"
