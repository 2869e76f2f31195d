"""Take SpikingJelly's Spikformer as it is, change its neurons, keep everything else.

The same network is trained on handwritten digits three times, from the same initial weights: with the LIF neurons that
it comes with, and with MSF and PMSN in their places.

    python examples/swap_spikformer.py           a few minutes on two cores
    python examples/swap_spikformer.py --fast    a few batches: does it run?
"""

import argparse
import time

try:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spikformer import Spikformer

    from msf_pmsn_plugins import adapters, swap
    from msf_pmsn_plugins.optim import param_groups
except ImportError as error:
    raise SystemExit(
        f'{error}\nSpikformer needs SpikingJelly 2.0.0. Try: pip install ".[examples]"'
    ) from error

STEPS = 4


def digits():
    """Images [N, 3, 16, 16] in [0, 1] and labels: 1,297 to train on and 500 to test."""
    data = load_digits()
    images = torch.tensor(data.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(data.target)
    train, test = train_test_split(range(len(labels)), test_size=500, stratify=data.target, random_state=0)
    return images[train], labels[train], images[test], labels[test]


def spikformer():
    """SpikingJelly's own, small."""
    size = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4}
    return Spikformer(T=STEPS, num_classes=10, embed_dims=64, num_heads=4, depths=1, mlp_ratio=2.0, **size)


def train(network, data, epochs, lr=2e-3, batch=50):
    """Train on the mean answer over time; return the test accuracy and the seconds."""
    x, y, x_test, y_test = data
    # PMSN's own parameters learn at their published rates.
    optimizer = torch.optim.AdamW(param_groups(network, lr, weight_decay=0.06, recipe="imagenet"))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, epochs * len(y.split(batch)))
    order, start = torch.Generator().manual_seed(0), time.perf_counter()
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=order).split(batch):
            loss = torch.nn.functional.cross_entropy(network(x[rows]).mean(0), y[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            functional.reset_net(network)  # reaches the new neurons too
    seconds = time.perf_counter() - start
    network.eval()
    with torch.no_grad():
        answers = network(x_test).mean(0).argmax(1)
    functional.reset_net(network)
    return (answers == y_test).float().mean().item(), seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="100 images, one epoch: it runs, and learns nothing yet"
    )
    args = parser.parse_args()
    if args.fast:
        print("toy size: it runs, and learns nothing yet")
    data = digits()
    if args.fast:
        data = tuple(part[:100] for part in data)
    epochs, example = (1, data[0][:2]) if args.fast else (6, data[0][:4])

    recipe = adapters.get("spikformer")
    print(recipe.plan(spikformer(), example, swap.PMSN()), "\n")

    for name, target in {"LIF": None, "MSF": swap.MSF(D=4), "PMSN": swap.PMSN(init="imagenet")}.items():
        torch.manual_seed(0)  # the same initial weights
        network = spikformer()
        if target is not None:
            plan = recipe.plan(network, example, target)
            network = plan.apply()
            # sizes, samples, reset, gradients
            swap.verify(network, example, plan=plan, raise_on_failure=True)
        parameters = sum(p.numel() for p in network.parameters())
        accuracy, seconds = train(network, data, epochs)
        print(
            f"{name:5}{parameters:>8,} parameters   test accuracy {100 * accuracy:5.1f} %   {seconds:4.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
