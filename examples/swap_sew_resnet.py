"""Swap the neurons of a SEW ResNet that is trained already, and go on from its weights.

SpikingJelly's SEW-ResNet-18 is trained on handwritten digits with IF neurons and saved as scripts save it. Its weights
go into a network whose neurons were swapped for MSF with four thresholds; then its norms are calibrated, and it is
fine-tuned for one epoch.

    python examples/swap_sew_resnet.py           a few minutes on two cores
    python examples/swap_sew_resnet.py --fast    a few batches: does it run?
"""

import argparse
import tempfile
from pathlib import Path

try:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model.sew_resnet import sew_resnet18
    from spikingjelly.activation_based.surrogate import ATan

    from msf_pmsn_plugins import adapters, swap
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples]"') from error


def digits(train, test, steps=4):
    """Images [T, N, 3, 16, 16], constant in time, and labels."""
    data = load_digits()
    images = torch.tensor(data.images).float().unsqueeze(1) / 16
    images = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear").numpy()
    split = {"train_size": train, "test_size": test, "stratify": data.target, "random_state": 0}
    x, x_test, y, y_test = (torch.tensor(part) for part in train_test_split(images, data.target, **split))
    x, x_test = (part.expand(steps, -1, 3, -1, -1).contiguous() for part in (x, x_test))
    return x, y, x_test, y_test


def sew_resnet():
    """SpikingJelly's own, with the neuron of its paper."""
    settings = {"surrogate_function": ATan(), "detach_reset": True}
    network = sew_resnet18(cnf="ADD", num_classes=10, spiking_neuron=neuron.IFNode, **settings)
    functional.set_step_mode(network, "m")
    return network


def train(network, x, y, epochs, lr):
    optimizer = torch.optim.AdamW(network.parameters(), lr)
    order = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=order).split(25):
            loss = torch.nn.functional.cross_entropy(network(x[:, rows]).mean(0), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            functional.reset_net(network)


@torch.no_grad()
def accuracy(network, x, y):
    network.eval()
    answers = torch.cat([_answers(network, part) for part in x.split(100, dim=1)])
    return f"{100 * (answers == y).float().mean().item():5.1f} %"


def _answers(network, x):
    answers = network(x).mean(0).argmax(1)
    functional.reset_net(network)
    return answers


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="20 images, two steps: it runs, and learns nothing yet"
    )
    args = parser.parse_args()
    if args.fast:
        print("toy size: it runs, and learns nothing yet")
    x, y, x_test, y_test = digits(20, 20, steps=2) if args.fast else digits(500, 300)
    torch.manual_seed(0)

    original = sew_resnet()
    train(original, x, y, epochs=1 if args.fast else 4, lr=1e-3)
    print(f"IF, trained                          {accuracy(original, x_test, y_test)}", flush=True)
    file = Path(tempfile.mkdtemp()) / "checkpoint.pth"
    torch.save({"model": {f"module.{k}": v for k, v in original.state_dict().items()}, "epoch": 4}, file)

    recipe = adapters.get("sew_resnet")
    network = sew_resnet()
    plan = recipe.plan(network, x[:, :2], swap.MSF(D=4))
    network = plan.apply()
    report = swap.load_published(network, file, recipe)
    swap.verify(network, x[:, :2], plan=plan, raise_on_failure=True)
    print(
        f"MSF with {len(report.loaded)} entries of its weights     {accuracy(network, x_test, y_test)}",
        flush=True,
    )

    # The neurons now send counts 0..4: the norms' stored statistics are those of single spikes.
    batches = x[:, :100].split(25, dim=1)
    norms = swap.calibrate.match_norms(network, batches)
    print(
        f"norms calibrated on {len(batches)} batches        {accuracy(network, x_test, y_test)}", flush=True
    )
    train(network, x, y, epochs=1, lr=1e-4)
    print(f"fine-tuned for one epoch             {accuracy(network, x_test, y_test)}", flush=True)
    print("\nThe norms that had to move most:")
    print(swap.calibrate.Calibration(sorted(norms, key=lambda row: -row.shift)[:5]))


if __name__ == "__main__":
    main()
