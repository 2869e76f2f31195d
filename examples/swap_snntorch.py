"""Swap the neurons of a snnTorch network that is stepped in a Python loop, as in its tutorials.

A convolutional network with leaky neurons is trained on handwritten digits; then the same network, from the same
initial weights, with MSF and with PMSN in their places. Neither the network nor its loop is changed.

    python examples/swap_snntorch.py           a few minutes on two cores
    python examples/swap_snntorch.py --fast    a few batches: does it run?
"""

import argparse
import time

try:
    import snntorch as snn
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from snntorch import surrogate

    from msf_pmsn_plugins import swap
    from msf_pmsn_plugins.optim import param_groups
    from msf_pmsn_plugins.snntorch import reset
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples]"') from error

STEPS = 5


class Net(torch.nn.Module):
    """Two convolutions and a linear layer, a leaky neuron after each; [N, 1, 8, 8] -> spikes [T, N, 10]."""

    def __init__(self):
        super().__init__()
        leaky = {"beta": 0.8, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
        self.conv1, self.lif1 = torch.nn.Conv2d(1, 12, 3, padding=1), snn.Leaky(**leaky)
        self.conv2, self.lif2 = torch.nn.Conv2d(12, 16, 3, padding=1), snn.Leaky(**leaky)
        self.fc1, self.lif3 = torch.nn.Linear(16 * 2 * 2, 10), snn.Leaky(**leaky)
        self.pool = torch.nn.AvgPool2d(2)

    def forward(self, x):
        reset(self)  # stock neurons and ours
        spikes = []
        for _ in range(STEPS):
            y = self.pool(self.lif1(self.conv1(x)))
            y = self.pool(self.lif2(self.conv2(y)))
            spikes.append(self.lif3(self.fc1(y.flatten(1))))
        return torch.stack(spikes)


def digits():
    """Images [N, 1, 8, 8] in [0, 1] and labels: 1,297 to train on and 500 to test."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float().unsqueeze(1) / 16, torch.tensor(data.target)
    train, test = train_test_split(range(len(labels)), test_size=500, stratify=data.target, random_state=0)
    return images[train], labels[train], images[test], labels[test]


def train(network, data, epochs, lr=5e-3, batch=50):
    """Train on the summed spikes; return the test accuracy, spikes per output and step, and the seconds."""
    x, y, x_test, y_test = data
    optimizer = torch.optim.AdamW(param_groups(network, lr, neuron_lr=1e-3, recipe="shd"))
    order, start = torch.Generator().manual_seed(0), time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=order).split(batch):
            loss = torch.nn.functional.cross_entropy(network(x[rows]).sum(0), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        spikes = network(x_test)
    return (spikes.sum(0).argmax(1) == y_test).float().mean().item(), spikes.mean().item(), seconds


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

    print(swap.plan(Net(), data[0][:4], swap.MSF(D=4)), "\n")
    for name, target in {"Leaky": None, "MSF": swap.MSF(D=4), "PMSN": swap.PMSN(compartments=5)}.items():
        torch.manual_seed(0)  # the same initial weights
        network = Net()
        if target is not None:
            network = swap.plan(network, data[0][:4], target).apply()
        parameters = sum(p.numel() for p in network.parameters())
        accuracy, rate, seconds = train(network, data, epochs=1 if args.fast else 6)
        print(
            f"{name:6}{parameters:>7,} parameters   test accuracy {100 * accuracy:5.1f} %   "
            f"{rate:.2f} spikes per output and step   {seconds:4.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
