"""Whether a swapped net computes what the net before it does."""

from __future__ import annotations

import torch

from tolerances import assert_same


def reset(net):
    for module in net.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def gradients(net, x):
    net.zero_grad()
    x = x.clone().requires_grad_()
    y = net(x)
    (y * torch.arange(1.0, y.shape[-1] + 1)).sum().backward()
    return y.detach(), x.grad, {n: p.grad for n, p in net.named_parameters()}


def assert_nothing_changed(net, swapped, x):
    """Outputs and gradients to the bit, in training, going on from the state, after a reset, and in evaluation."""
    reset(net), reset(swapped)
    for call in range(2):  # the second goes on where the first ended, or, without state, starts anew
        y, gx, grads = gradients(net, x + call)
        y_new, gx_new, grads_new = gradients(swapped, x + call)
        assert y.abs().sum() > 0
        assert gx.abs().sum() > 0
        assert_same(y_new, y)
        assert_same(gx_new, gx)
        for key, grad in grads.items():
            renamed = key.removesuffix("w") + "neuron.w"
            if key.endswith(".w") and renamed in grads_new:  # a learned tau: summed in another order
                torch.testing.assert_close(grads_new[renamed], grad, rtol=1e-4, atol=1e-5)
            elif grad is not None:
                assert_same(grads_new[key], grad)
        detach_states(net), detach_states(swapped)
    reset(net), reset(swapped)
    with torch.no_grad():
        assert_same(swapped.eval()(x), net.eval()(x))
    net.train(), swapped.train()


def detach_states(net):
    """Cut the graph at every state, for neurons with and without a ``detach()``."""
    for module in net.modules():
        memories = getattr(module, "_memories", {})
        memories.update({k: v.detach() for k, v in memories.items() if isinstance(v, torch.Tensor)})
        if isinstance(vars(module).get("v"), torch.Tensor):
            module.v = module.v.detach()
