"""Control by a spiking policy: LIF, MSF or PMSN neurons balance a pole, their state carried through the episode.

The policy sees one observation a step and remembers by its neurons alone. It is trained with proximal policy
optimisation: episodes are played step by step in torchrl, and learned from as whole sequences, with gradients through
time. Then it plays one step after another, and each decision is timed.

    python examples/control.py                                   CartPole, three neurons, three seeds
    python examples/control.py --task lunarlander --neurons MSF --seeds 1
    python examples/control.py --json runs.json --plot curves.png
    python examples/control.py --fast                            toy size: does it run?
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import gymnasium
    import numpy as np
    import torch
    from recipes import RecipeError, neurons
    from recipes.arguments import at_least_one, output, picture
    from recipes.policy import SpikingCore, SpikingPolicy, Streaming, spaces
    from tensordict import TensorDictBase
    from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
    from torch import Tensor, nn
    from torch.distributions import Categorical
    from torchrl.collectors import Collector
    from torchrl.envs import Compose, GymWrapper, InitTracker, RewardSum, SerialEnv, TransformedEnv
    from torchrl.modules import set_recurrent_mode
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    from msf_pmsn_plugins.optim import param_groups
except ImportError as error:
    raise SystemExit(f'{error}\nTry: pip install ".[control]"') from error

NEURONS = {
    "LIF": neurons.LIF(),
    "MSF": neurons.MSF(tau=2.0),
    "PMSN": neurons.PMSN(),
}


@dataclass(frozen=True)
class Task:
    """An environment, and how it is learned.

    Args:
        gain: factor on what is observed.
        frames: steps of all environments together; ``envs`` of them play ``steps`` each before every update.
        rows: environments of a minibatch.
    """

    env: str
    gain: float
    frames: int
    hidden: tuple[int, ...] = (32, 32)
    envs: int = 8
    steps: int = 128
    rows: int = 4
    epochs: int = 4
    lr: float = 3e-3
    neuron_lr: float = 1e-3
    gamma: float = 0.99
    lmbda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    solved: float = float("inf")


TASKS = {
    "cartpole": Task("CartPole-v1", gain=4.0, frames=50_000, epochs=8, solved=475.0),
    "lunarlander": Task(
        "LunarLander-v3", gain=2.0, frames=500_000, hidden=(64, 64), gamma=0.995, solved=200.0
    ),
}


class Finite(gymnasium.Wrapper):
    """An environment that is left as soon as it shows or rewards what is no finite number: none can be learned from."""

    def reset(self, **how):
        observation, info = self.env.reset(**how)
        self._check("observation", observation)
        return observation, info

    def step(self, action):
        observation, reward, *ended = self.env.step(action)
        self._check("observation", observation)
        self._check("reward", reward)
        return observation, reward, *ended

    def _check(self, what: str, value) -> None:
        if not np.isfinite(value).all():
            raise RecipeError(
                f"{self.spec.id} gave the {what} {value}: these policies learn from finite numbers alone"
            )


def make(name: str) -> GymWrapper:
    """One environment whose actions are numbers; raises RecipeError for what torchrl cannot take."""
    try:
        return GymWrapper(Finite(gymnasium.make(name)), categorical_action_encoding=True)
    except gymnasium.error.Error as error:  # of a name that it does not know, and says so
        raise RecipeError(str(error)) from error
    except Exception as error:  # whatever an environment's own constructor raises
        raise RecipeError(
            f"{name} cannot be made: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def build(task: Task, neuron: neurons.Factory) -> SpikingCore:
    """The network for a task; raises RecipeError where its spaces do not fit."""
    env = make(task.env)
    try:
        features, actions = spaces(env, task.env)
    finally:
        env.close()
    return SpikingCore(features, list(task.hidden), actions, neuron, task.gain)


def advantages(policy: SpikingPolicy, td: TensorDictBase, task: Task) -> None:
    """Write "advantage" and "value_target" into a batch [envs, steps]: every next step is valued from its own state."""
    with torch.no_grad():
        following = policy(td["next"].clone())["state_value"]
        flags = (td["next", "done"], td["next", "terminated"])
        advantage, target = generalized_advantage_estimate(
            task.gamma, task.lmbda, td["state_value"], following, td["next", "reward"], *flags
        )
    td["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    td["value_target"] = target


def loss_of(policy: SpikingPolicy, part: TensorDictBase, task: Task) -> Tensor:
    """The clipped loss of rows [rows, steps], their episodes run as sequences."""
    with set_recurrent_mode(True):
        now = policy(part.clone(recurse=False))
    choice = Categorical(logits=now["logits"])
    gain = part["advantage"].squeeze(-1)
    ratio = (choice.log_prob(part["action"]) - part["action_log_prob"]).exp()
    surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - task.clip, 1 + task.clip) * gain)
    value = (now["state_value"] - part["value_target"]).square()
    return -surrogate.mean() + 0.5 * value.mean() - task.entropy * choice.entropy().mean()


def learn(core: SpikingCore, task: Task, seed: int) -> list[tuple[int, float]]:
    """Train ``core``; returns the learning curve: frames so far, mean return of the episodes that ended since."""
    policy = SpikingPolicy(core)
    env = TransformedEnv(
        SerialEnv(task.envs, partial(make, task.env)),
        Compose(InitTracker(), RewardSum(), policy.make_tensordict_primer()),
    )
    env.set_seed(seed)
    choose = ProbabilisticTensorDictModule(
        in_keys=["logits"],
        out_keys=["action"],
        distribution_class=Categorical,
        return_log_prob=True,
        default_interaction_type="random",
    )
    actor = ProbabilisticTensorDictSequential(policy, choose)
    batch = task.envs * task.steps
    updates = -(-task.frames // batch)
    collector = Collector(env, actor, frames_per_batch=batch, total_frames=updates * batch)
    optimizer = torch.optim.Adam(param_groups(core, task.lr, task.neuron_lr, 0.0, "smnist"))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    curve: list[tuple[int, float]] = []
    for number, td in enumerate(collector, 1):
        advantages(policy, td, task)
        for _ in range(task.epochs):
            for some in torch.randperm(task.envs).split(task.rows):
                loss = loss_of(policy, td[some], task)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(core.parameters(), 0.5)
                optimizer.step()
        schedule.step()
        ended = td["next", "episode_reward"][td["next", "done"]]
        if len(ended):
            curve.append((number * batch, ended.mean().item()))
    collector.shutdown()
    return curve


def play(core: SpikingCore, name: str, episodes: int, seed: int) -> tuple[list[float], list[float]]:
    """The returns of ``episodes`` with the best action at each step, and the µs that each decision took."""
    act, env = Streaming(core), Finite(gymnasium.make(name))
    returns, times = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=1000 * seed + episode)
        act.reset()
        total, ended = 0.0, False
        while not ended:
            start = time.perf_counter()
            action = act(observation)
            times.append(1e6 * (time.perf_counter() - start))
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    return returns, times


def run(task: Task, neuron: str, seed: int, episodes: int) -> dict:
    """Train and play once: a row of the table, with its learning curve."""
    torch.manual_seed(seed)
    core = build(task, NEURONS[neuron])
    start = time.process_time()
    curve = learn(core, task, seed)
    seconds = time.process_time() - start
    returns, times = play(core, task.env, episodes, seed)
    return {
        "env": task.env,
        "neuron": neuron,
        "seed": seed,
        "parameters": sum(p.numel() for p in core.parameters()),
        "seconds": seconds,
        "curve": curve,
        "solved": next((frames for frames, found in curve if found >= task.solved), None),
        "returns": returns,
        "microseconds": median(times),
    }


def table(rows: list[dict]) -> str:
    """Means over the seeds of each neuron, and their range."""
    lines = [
        "| neuron | parameters | return of the last updates | return when played | µs a decision | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for neuron in dict.fromkeys(row["neuron"] for row in rows):
        mine = [row for row in rows if row["neuron"] == neuron]
        last = [mean(found for _, found in row["curve"][-5:]) for row in mine if row["curve"]]
        played = [mean(row["returns"]) for row in mine]
        ranges = [
            f"{mean(v):.0f} ({min(v):.0f} to {max(v):.0f})" if v else "none ended" for v in (last, played)
        ]
        lines.append(
            f"| {neuron} | {mine[0]['parameters']:,} | {ranges[0]} | {ranges[1]} | "
            f"{median(row['microseconds'] for row in mine):.0f} | {mean(row['seconds'] for row in mine):.0f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """The learning curves: one line a seed, one colour a neuron."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        colour = f"C{list(NEURONS).index(row['neuron'])}"
        label = row["neuron"] if row["seed"] == 0 else None
        frames, found = [frames for frames, _ in row["curve"]], [found for _, found in row["curve"]]
        axes.plot(frames, found, color=colour, alpha=0.8, label=label)
    axes.set(xlabel="steps of the environment", ylabel="return of an episode", title=rows[0]["env"])
    axes.legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=tuple(TASKS), default="cartpole")
    parser.add_argument(
        "--env",
        help="another environment of gymnasium, learned with the task's settings, its factor on observations included; "
        "no return counts as solved there",
    )
    parser.add_argument("--neurons", nargs="+", choices=tuple(NEURONS), default=tuple(NEURONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--frames",
        type=int,
        help="steps of the environment, instead of the task's; rounded up to whole updates, each of 1,024 steps",
    )
    parser.add_argument("--fast", action="store_true", help="toy size: the figures mean nothing")
    parser.add_argument("--json", type=output, help="write the raw numbers here")
    parser.add_argument("--plot", type=picture, help="draw the learning curves here")
    parser.add_argument("--threads", type=at_least_one, default=1)
    args = parser.parse_args()
    args.neurons = tuple(dict.fromkeys(args.neurons))  # a name given twice is one row
    if args.seeds < 1 or (args.frames is not None and args.frames < 1):
        raise SystemExit(f"--seeds and --frames must be at least 1, got {args.seeds} and {args.frames}")
    torch.set_num_threads(args.threads)
    task = TASKS[args.task]
    if args.env and args.env != task.env:
        task = replace(task, env=args.env, solved=float("inf"))
    task = replace(task, frames=args.frames or task.frames)
    if args.fast:
        task = replace(task, frames=128, hidden=(8,), envs=2, steps=32, rows=2, epochs=1)
    rows = []
    try:
        for neuron in args.neurons:
            for seed in range(1 if args.fast else args.seeds):
                rows.append(run(task, neuron, seed, 2 if args.fast else 20))
                print(f"{neuron}, seed {seed}: {mean(rows[-1]['returns']):.0f}", file=sys.stderr, flush=True)
                if args.json:  # what is done is kept if the rest is not awaited
                    args.json.write_text(json.dumps(rows, indent=1))
    except RecipeError as error:
        raise SystemExit(f"--env: {error}" if args.env else str(error)) from error
    print(table(rows))
    if args.plot:
        draw(rows, args.plot)


if __name__ == "__main__":
    main()
