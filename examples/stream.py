"""A trained network on a live stream: one time step in, one answer out.

1. Trains a small MSF or PMSN network (or takes one that train.py trained), folds its batch norms into its linear
   layers and switches its neurons to single steps.
2. Runs the test set both ways, all steps at once and step by step: are the decisions the same? How long is a step?
3. Early exit: a sample whose answer is confident leaves the batch, its state with it.
4. Energy of a sample by the counters of msf_pmsn_plugins.energy, and the network as a NIR file.

    python examples/stream.py                              digits, pixel by pixel (64 steps), PMSN
    python examples/stream.py --task events --neuron MSF   direction of a moving digit from events (10 steps)
    python examples/stream.py --fast                       toy size: does it run?
    python examples/stream.py --config runs/smnist/logs/version_0/config.yaml \\
        --checkpoint runs/smnist/checkpoints/best.ckpt
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import quantiles

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "experiments")]

try:
    import common
    import torch
    from recipes import RecipeError, neurons
    from recipes.arguments import at_least_one, output
    from recipes.models import SequenceNet
    from recipes.trained import draw, instantiate
    from spikingjelly.activation_based import functional
    from torch import Tensor, nn
    from torch.nn.utils.fusion import fuse_linear_bn_eval

    from msf_pmsn_plugins import energy, state
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[examples]"') from error

NEURONS = {"PMSN": neurons.PMSN(), "MSF": neurons.MSF(tau=4.0)}


class Deployed(nn.Module):
    """A trained SequenceNet for inference: linear layers and neurons alone, logits of every step.

    ``x`` [N, features] with the neurons in single-step mode, [T, N, features] in multi-step mode; logits likewise. The
    mean of the logits over time is what the trained network answers.

    Raises:
        ValueError: a network that averages over channels, which is no linear layer.
    """

    def __init__(self, net: SequenceNet):
        super().__init__()
        if net.pool > 1:
            raise ValueError(
                "a network with pool > 1 averages over channels: it has no form of linear layers alone"
            )
        net = net.eval()
        linears = [net.encoder, *net.linears]
        self.linears = nn.ModuleList(map(fuse_linear_bn_eval, linears, net.norms))
        self.neurons = net.neurons
        self.decoder = net.decoder
        widths = [linear.out_features for linear in linears]
        self.adds = [net.residual and a == b for a, b in zip([None, *widths], widths, strict=False)]

    def forward(self, x: Tensor) -> Tensor:
        before = None
        for linear, node, adds in zip(self.linears, self.neurons, self.adds, strict=True):
            spikes = node(linear(x))
            x = before = spikes + before if adds else spikes
        return self.decoder(x)


def stream(net: Deployed, x: Tensor) -> Tensor:
    """Logits [T, N, classes] of ``x`` [T, N, features], one step after another, as they would arrive."""
    functional.set_step_mode(net, "s")
    neurons.reset(net)
    return torch.stack([net(step) for step in x])


def parallel(net: Deployed, x: Tensor) -> Tensor:
    """The same logits, all steps at once."""
    functional.set_step_mode(net, "m")
    neurons.reset(net)
    return net(x)


def early_exit(net: Deployed, x: Tensor, confidence: float, least: int = 1) -> tuple[Tensor, Tensor]:
    """Decisions [N] and the steps [N] each sample took: it leaves as soon as its answer is that sure.

    Sure is the largest probability of the mean logits so far. Samples that leave take their state with them, so the
    work shrinks with the batch. A confidence above 1 lets nobody leave before the end.
    """
    functional.set_step_mode(net, "s")
    neurons.reset(net)
    n = x.shape[1]
    answer, taken = torch.empty(n, dtype=torch.long), torch.full((n,), len(x))
    waiting, total = torch.arange(n), 0.0
    for t, step in enumerate(x, 1):
        total = total + net(step[waiting])
        sure, best = (total / t).softmax(1).max(1)
        leaves = (
            (sure >= confidence) & (t >= least) if t < len(x) else torch.ones_like(best, dtype=torch.bool)
        )
        answer[waiting[leaves]], taken[waiting[leaves]] = best[leaves], t
        stays = ~leaves
        waiting, total = waiting[stays], total[stays]
        if not len(waiting):
            break
        state.write(net, state.select(state.read(net), stays))
    neurons.reset(net)
    return answer, taken


def microseconds(net: Deployed, x: Tensor) -> list[float]:
    """Wall-clock time of every step of one sample ``x`` [T, 1, features], after a warm-up."""
    stream(net, x)
    neurons.reset(net)
    times = []
    for step in x:
        start = time.perf_counter()
        net(step)
        times.append(1e6 * (time.perf_counter() - start))
    return times


def spikes_of(net: Deployed, run, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The logits of ``run`` and the output of every neuron layer, [T, N, C]."""
    seen: list[list[Tensor]] = [[] for _ in net.neurons]
    hooks = [
        node.register_forward_hook(lambda _m, _args, out, i=i: seen[i].append(out))
        for i, node in enumerate(net.neurons)
    ]
    logits = run(net, x)
    for hook in hooks:
        hook.remove()
    return logits, [torch.cat(parts) if parts[0].dim() == 3 else torch.stack(parts) for parts in seen]


def trained(task: str, neuron: str, fast: bool) -> tuple[SequenceNet, Tensor, Tensor]:
    """A network trained here, and the test set."""
    if task == "digits":
        from digits import build, sequences

        data = sequences()
    else:
        from events import FIELD
        from events import data as make

        data = make()

        def build(neuron):
            return SequenceNet(FIELD * FIELD, [64, 64], 4, neuron)

    data = data.few(64) if fast else data
    torch.manual_seed(0)
    model = build(NEURONS[neuron])
    seconds = common.train(model, data, common.Recipe(1 if fast else 20, 64), 0)
    size = sum(p.numel() for p in model.parameters())
    print(f"{task}, {neuron}: {size:,} parameters, trained in {seconds:.0f} s")
    return model, data.x_test, data.y_test


def from_run(config: Path, checkpoint: Path, enough: int = 256) -> tuple[SequenceNet, Tensor, Tensor]:
    """What train.py trained, and ``enough`` samples of its test data, drawn, or all."""
    model, data = instantiate(config, checkpoint)
    if not isinstance(model, SequenceNet):
        raise SystemExit(f"stream.py runs a SequenceNet step by step, {config} has a {type(model).__name__}")
    if model.pool > 1:
        raise SystemExit(
            f"stream.py has no form for a network that averages over channels, {config} has {model.pool=}"
        )
    data.setup("test")
    draw(data, enough)
    xs, ys = [], []
    for batch in data.test_dataloader():
        x, y, *lengths = data.arrange(batch)
        if lengths:
            raise SystemExit("stream.py takes samples of one length")
        xs.append(x)
        ys.append(y)
    return model, torch.cat(xs, 1), torch.cat(ys)


def write_nir(net: Deployed, x: Tensor, path: Path) -> str:
    """The network as a NIR file; says what is in it, or why it could not be written."""
    try:
        import nir

        from msf_pmsn_plugins.nir import export_to_nir, registered

        functional.set_step_mode(net, "s")
        neurons.reset(net)
        graph = export_to_nir(net, x[0, :1])
        with registered():
            nir.write(path, graph)
    except ImportError as error:
        return f"not written: {error}"
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    return f"{path}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def percent(answer: Tensor, y: Tensor) -> float:
    return 100 * (answer == y).double().mean().item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=("digits", "events"), default="digits")
    parser.add_argument("--neuron", choices=tuple(NEURONS), default="PMSN")
    parser.add_argument("--fast", action="store_true", help="toy size: the figures mean nothing")
    parser.add_argument("--config", type=Path, help="a network of train.py: its configuration ...")
    parser.add_argument("--checkpoint", type=Path, help="... and its checkpoint")
    parser.add_argument("--nir", type=output, help="write the network here")
    parser.add_argument("--threads", type=at_least_one, default=1)
    args = parser.parse_args()
    if (args.config is None) != (args.checkpoint is None):
        raise SystemExit("--config and --checkpoint belong together")
    torch.set_num_threads(args.threads)
    if args.config:
        try:
            model, x, y = from_run(args.config, args.checkpoint)
        except RecipeError as error:
            raise SystemExit(f"error: {error}") from error
    else:
        with torch.enable_grad():
            model, x, y = trained(args.task, args.neuron, args.fast)
    model.eval()
    answer = common.call(model, x).argmax(1)
    neurons.reset(model)
    net = Deployed(model)

    at_once, together = spikes_of(net, parallel, x)
    one_by_one, singly = spikes_of(net, stream, x)
    differ = sum(int((a != b).sum()) for a, b in zip(together, singly, strict=True))
    number = sum(part.numel() for part in together)
    final, streamed = at_once.mean(0).argmax(1), one_by_one.mean(0).argmax(1)
    print(f"trained network, all steps at once: {percent(answer, y):.1f} % of {len(y)} right")
    print(f"folded, all steps at once: {int((final == answer).sum())} of {len(y)} decisions are the same")
    print(f"folded, step by step:      {int((streamed == answer).sum())} of {len(y)} decisions are the same")
    gap = (at_once.mean(0) - one_by_one.mean(0)).abs().max().item()
    print(f"step by step against at once: {differ} of {number:,} outputs differ, logits by {gap:.1g} at most")

    times = microseconds(net, x[:, :1])
    cuts = quantiles(times, n=20)
    print(f"one sample alone: {cuts[9]:.0f} µs a step (median; 5 to 95 %: {cuts[0]:.0f} to {cuts[18]:.0f})")

    print(f"\n| leaves when it is | right, % | mean steps of {len(x)} |\n| --- | ---: | ---: |")
    for confidence in (0.6, 0.8, 0.9, 0.95, 0.99, 2.0):
        exits, taken = early_exit(net, x, confidence)
        title = f"{100 * confidence:.0f} % sure" if confidence < 1 else "never, all steps"
        print(f"| {title} | {percent(exits, y):.1f} | {taken.double().mean():.1f} |")

    neurons.reset(net)
    with energy.counting(net, samples=x.shape[1]) as counts:
        parallel(net, x)
    neurons.reset(net)
    print(f"\n{counts.energy()}")
    if args.nir:
        print(f"\n{write_nir(net, x, args.nir)}")


if __name__ == "__main__":
    main()
