"""A spiking policy in torchrl: its state follows the episodes, its gradients are those of an unrolled one."""
# ruff: noqa: E402

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

for needed in ("torchrl", "gymnasium", "spikingjelly"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import control
import gymnasium
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Text, Tuple
from recipes import RecipeError, neurons
from recipes.policy import SpikingCore, SpikingPolicy, Streaming, spaces
from tensordict import TensorDict
from torchrl.envs import Compose, GymEnv, InitTracker, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import get_primers_from_module, set_recurrent_mode

ROOT = Path(__file__).parents[2]
NEURONS = {
    **control.NEURONS,
    "PMSN, tied": neurons.PMSN(tied=True),
    "LIF, no reset": neurons.LIF(reset=False),
}
every_neuron = pytest.mark.parametrize("name", NEURONS)


def core_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    return SpikingCore(4, [12, 10], 2, NEURONS[name], gain=8.0).to(dtype)


def rows(dtype, n=3, steps=12):
    """Observations [n, steps, 4] in which episodes begin anew here and there."""
    draw = torch.Generator().manual_seed(0)
    first = torch.zeros(n, steps, 1, dtype=torch.bool)
    first[0, [0, 5]] = True  # two episodes in the first row
    first[1, [0, 1, 11]] = True  # of one step, of ten, of one
    # the last row goes on with an episode that began before
    return TensorDict(
        {"observation": torch.randn(n, steps, 4, generator=draw, dtype=dtype), "is_init": first}, [n, steps]
    )


def carried(policy, n, dtype):
    """States [n, ..] as some rollout may have left them: after a few steps of other observations."""
    states = None
    for x in torch.randn(4, n, 4, generator=torch.Generator().manual_seed(7), dtype=dtype):
        _, _, states = policy.core.step(x, states)
    real = [[torch.view_as_real(p) if p.is_complex() else p for p in state] for state in states]
    pairs = zip(policy.state_keys, [part for state in real for part in state], strict=True)
    return {key: part.detach() for key, part in pairs}


def unrolled(policy, td, start):
    """Logits and values of ``td`` [n, steps], one step after another, the state handed on with its graph."""
    states, logits, values = start, [], []
    for t in range(td.shape[1]):
        step = TensorDict({**td[:, t].to_dict(), **states}, [td.shape[0]])
        out = policy(step)
        states = {key: out["next", key] for key in start}
        logits.append(out["logits"])
        values.append(out["state_value"])
    return torch.stack(logits, 1), torch.stack(values, 1)


def at_once(policy, td, start):
    full = td.clone()
    for key, part in start.items():
        everywhere = part.unsqueeze(1).expand(-1, td.shape[1], *part.shape[1:]).clone()
        everywhere[:, 1:] = float("nan")  # only the first entry of a row is looked at
        full[key] = everywhere
    with set_recurrent_mode(True):
        out = policy(full)
    return out["logits"], out["state_value"]


@every_neuron
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_through_time_are_those_of_an_unrolled_episode(name, dtype):
    policy = SpikingPolicy(core_of(name, dtype))
    td, start = rows(dtype), carried(policy, 3, dtype)
    found = []
    for way in (unrolled, at_once):
        for part in start.values():
            part.grad = None
            part.requires_grad_()
        td["observation"].grad = None
        td["observation"].requires_grad_()
        policy.zero_grad()
        logits, values = way(policy, td, start)
        draw = torch.Generator().manual_seed(1)
        up = [torch.randn(out.shape, generator=draw, dtype=dtype) for out in (logits, values)]
        (logits * up[0]).sum().add((values * up[1]).sum()).backward()
        grads = {key: p.grad for key, p in policy.named_parameters()}
        grads |= {"x": td["observation"].grad, **{key: part.grad for key, part in start.items()}}
        found.append((logits.detach(), values.detach(), grads))
    (logits, values, grads), (logits_again, values_again, grads_again) = found
    close = {torch.float64: 1e-9, torch.float32: 2e-4}[
        dtype
    ]  # a matrix product of many rows rounds otherwise
    torch.testing.assert_close(logits_again, logits, rtol=close, atol=close)
    torch.testing.assert_close(values_again, values, rtol=close, atol=close)
    for key, grad in grads.items():
        if grad is None or grads_again[key] is None:
            other = grads_again[key] if grad is None else grad
            assert other is None or not other.any(), key
        else:
            torch.testing.assert_close(grads_again[key], grad, rtol=close, atol=close)
    # the gradient crosses steps: the loss of later ones reaches the first observation
    policy.zero_grad()
    td["observation"].grad = None
    late, _ = at_once(policy, td, start)
    late[2, 6:].sum().backward()
    assert td["observation"].grad[2, :6].any()
    assert not td["observation"].grad[:2].any(), "rows are apart"


@every_neuron
def test_an_episode_starts_from_rest_and_knows_nothing_of_the_one_before(name):
    policy = SpikingPolicy(core_of(name))
    td, start = rows(torch.float32), carried(policy, 3, torch.float32)
    with torch.no_grad():
        logits, _ = at_once(policy, td, start)
        fresh = {key: torch.zeros_like(part) for key, part in start.items()}
        alone = TensorDict(
            {"observation": td["observation"][:1, 5:], "is_init": torch.zeros(1, 7, 1, dtype=torch.bool)},
            [1, 7],
        )
        expected, _ = at_once(policy, alone, {key: part[:1] for key, part in fresh.items()})
        torch.testing.assert_close(logits[0, 5:], expected[0])
        # the third row goes on: another state, another answer
        other, _ = at_once(policy, td, fresh)
    torch.testing.assert_close(other[:2], logits[:2])
    assert (other[2] - logits[2]).abs().max() > 0.01


@every_neuron
def test_a_rollout_in_torchrl_is_what_the_sequences_compute(name):
    """The primer, the tracker and the batched environment carry every state; episodes end in mid-row."""
    policy = SpikingPolicy(core_of(name))
    env = TransformedEnv(
        SerialEnv(2, lambda: control.make("CartPole-v1")),
        Compose(InitTracker(), RewardSum(), get_primers_from_module(policy)),
    )
    env.set_seed(0)

    def act(td):
        td = policy(td)
        return td.set("action", torch.distributions.Categorical(logits=td["logits"]).sample())

    with torch.no_grad():
        td = env.rollout(60, act, break_when_any_done=False)
        assert td["is_init"].sum() >= 4
        assert td[policy.state_keys[0]].any()
        with set_recurrent_mode(True):
            again = policy(td.clone())
        rest = policy(td.clone().update({key: torch.zeros_like(td[key]) for key in policy.state_keys}))
    env.close()
    torch.testing.assert_close(again["logits"], td["logits"])
    torch.testing.assert_close(again["state_value"], td["state_value"])
    assert (rest["logits"] - td["logits"]).abs().max() > 0.01, (
        "the control: without memory the answers differ"
    )


@every_neuron
def test_streaming_decides_as_the_sequence_does(name):
    core = core_of(name)
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits, _, _ = core(x.unsqueeze(1))
    act = Streaming(core)
    expected = logits.squeeze(1).argmax(1).tolist()
    for _ in range(2):
        assert [act(step.numpy()) for step in x] == expected
        act.reset()


def test_other_spaces_are_refused():
    for name, words in (
        (
            "Pendulum-v1",
            r"Pendulum-v1 has the action space Box\(-2.*\); .* counted from 0: .* Discrete action space",
        ),
        ("FrozenLake-v1", r"FrozenLake-v1 observes Discrete\(16\); .* one vector of real numbers"),
    ):
        env = control.make(name)
        with pytest.raises(RecipeError, match=words):
            spaces(env, name)
        env.close()
    env = GymEnv("CartPole-v1")  # one-hot actions
    with pytest.raises(RecipeError, match="categorical_action_encoding=True"):
        spaces(env, "CartPole-v1")
    env.close()
    with pytest.raises(RecipeError, match="neurons whose state can be carried: LIF, MSF or PMSN, got ReLU"):
        SpikingCore(4, [6], 2, neurons.ReLU())
    with (
        set_recurrent_mode(True),
        pytest.raises(RecipeError, match="the last axis of the tensordict is time"),
    ):
        SpikingPolicy(core_of("MSF"))(TensorDict({"observation": torch.zeros(4)}, []))


@pytest.mark.parametrize("name", ["cartpole", "lunarlander"])
def test_every_task_learns_a_little_on_toy_size(name):
    task = control.replace(control.TASKS[name], frames=64, hidden=(8,), envs=2, steps=16, rows=1, epochs=1)
    if name == "lunarlander":
        pytest.importorskip("Box2D", reason="Box2D is not installed")
    torch.manual_seed(0)
    core = control.build(task, NEURONS["PMSN"])
    before = {key: value.clone() for key, value in core.state_dict().items()}
    curve = control.learn(core, task, 0)
    assert all(frames in (32, 64) for frames, _ in curve)
    changed = [key for key, value in core.state_dict().items() if not torch.equal(value, before[key])]
    assert {"linears.0.weight", "logits.weight", "value.weight", "neurons.0.log_dt"} <= set(changed)
    returns, times = control.play(core, task.env, 1, 0)
    assert len(returns) == 1
    assert len(times) >= 8


def test_the_advantage_values_the_end_of_an_episode_as_what_it_is():
    """A fallen pole is worth nothing more, one that was stopped by the clock is worth what its value says."""
    task = control.TASKS["cartpole"]
    policy = SpikingPolicy(core_of("MSF"))
    observed = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    td = TensorDict({"observation": observed, "is_init": torch.zeros(2, 3, 1, dtype=torch.bool)}, [2, 3])
    for key, part in carried(policy, 6, torch.float32).items():
        td[key] = part.reshape(2, 3, *part.shape[1:])
    td["next"] = td.clone().update({"reward": torch.ones(2, 3, 1)})
    done = torch.zeros(2, 3, 1, dtype=torch.bool)
    done[:, -1] = True
    terminated = done.clone()
    terminated[1] = False
    td["next"].update({"done": done, "terminated": terminated})
    with torch.no_grad():
        td["state_value"] = policy(td.clone())["state_value"]
        later = policy(td["next"].clone())["state_value"]
    control.advantages(policy, td, task)
    torch.testing.assert_close(td["value_target"][0, -1], torch.ones(1))
    torch.testing.assert_close(td["value_target"][1, -1], 1 + task.gamma * later[1, -1])
    assert td["advantage"].mean().abs() < 1e-5


def test_the_command_prints_writes_and_draws(tmp_path, monkeypatch, capsys):
    out, picture = tmp_path / "rows.json", tmp_path / "curves.png"
    given = ["control.py", "--fast", "--json", str(out), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", given)
    control.main()
    found = json.loads(out.read_text())
    assert [row["neuron"] for row in found] == ["LIF", "MSF", "PMSN"]
    for row in found:
        assert row["curve"]
        assert all(0 < value <= 500 for value in row["returns"])
        assert row["microseconds"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in ("LIF", "MSF", "PMSN"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--seeds", "0"], "--seeds and --frames must be at least 1, got 0 and None"),
        (["--frames", "0"], "--seeds and --frames must be at least 1"),
        (["--fast", "--env", "Pendulum-v1"], "--env: Pendulum-v1 has the action space"),
        (["--fast", "--env", "Nothing-v1"], "--env: Environment `Nothing` doesn't exist"),
    ],
)
def test_what_is_wrong_is_one_line(given, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["control.py", *given])
    with pytest.raises(SystemExit, match=words):
        control.main()


VECTOR, CHOICE = Box(-1.0, 1.0, (3,), np.float32), Discrete(2)


def toy(monkeypatch, see=VECTOR, act=CHOICE, observation=None, reward=1.0, length=10):
    """The name of an environment of these spaces; whatever is given to it must be one of its actions."""

    class Toy(gymnasium.Env):
        observation_space, action_space = see, act

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return see.sample(), {}

        def step(self, action):
            assert act.contains(np.int64(action)), f"{action} is not in {act}"
            self.steps += 1
            shown = see.sample() if observation is None else np.full(3, observation, np.float32)
            return shown, reward, self.steps >= length, False, {}

    spec = gymnasium.envs.registration.EnvSpec("Toy-v0", entry_point=Toy)
    monkeypatch.setitem(gymnasium.registry, "Toy-v0", spec)
    return "Toy-v0"


def ending(monkeypatch, *given):
    """The line that the command ends in; before training, or after."""
    monkeypatch.setattr(sys, "argv", ["control.py", "--fast", "--neurons", "MSF", "--seeds", "1", *given])
    with pytest.raises(SystemExit) as ended:
        control.main()
    assert "\n" not in str(ended.value)
    return str(ended.value)


@pytest.mark.parametrize(
    "act",
    [
        Discrete(2, start=5),
        MultiBinary(2),
        MultiDiscrete([2]),
        MultiDiscrete([2, 3]),
        Tuple((Discrete(2), Discrete(2))),
        Tuple((Discrete(2),)),
        Dict({"a": Discrete(2)}),
        Dict({"action": Discrete(2)}),
        Box(-1.0, 1.0, (1,), np.float32),
        Text(4),
    ],
    ids=str,
)
def test_another_choice_than_one_of_n_ends_in_a_line_before_training(act, monkeypatch):
    monkeypatch.setattr(control, "learn", lambda *_: pytest.fail("it trains"))
    found = ending(monkeypatch, "--env", toy(monkeypatch, act=act))
    assert found.startswith(
        f"--env: Toy-v0 has the action space {act}; these policies choose one of n actions"
    )


@pytest.mark.parametrize(
    "see",
    [
        Dict({"observation": VECTOR}),
        Dict({"observation": VECTOR, "goal": VECTOR}),
        Dict({"a": VECTOR}),
        Tuple((VECTOR,)),
        Box(0, 255, (8, 8, 3), np.uint8),
        Box(0, 255, (3,), np.uint8),
        Box(-1.0, 1.0, (), np.float32),
        MultiBinary(3),
        Text(4),
    ],
    ids=str,
)
def test_another_observation_than_a_vector_ends_in_a_line_before_training(see, monkeypatch):
    monkeypatch.setattr(control, "learn", lambda *_: pytest.fail("it trains"))
    found = ending(monkeypatch, "--env", toy(monkeypatch, see))
    assert found.startswith(f"--env: Toy-v0 observes {see}; these policies take one vector of real numbers")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_observations_of_another_precision_are_learned_from(dtype, monkeypatch, capsys):
    name = toy(monkeypatch, Box(-1.0, 1.0, (3,), dtype))
    monkeypatch.setattr(sys, "argv", ["control.py", "--fast", "--neurons", "MSF", "PMSN", "--env", name])
    control.main()
    assert "| PMSN |" in capsys.readouterr().out
    core = core_of("MSF", torch.float64)
    act = Streaming(core)
    assert act(np.ones(4, dtype)) in (0, 1), "a core of double takes them too"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_finite_number_is_named_when_it_appears(value, monkeypatch):
    name = toy(monkeypatch, observation=value)
    assert ending(monkeypatch, "--env", name).startswith(
        f"--env: Toy-v0 gave the observation [{value} {value}"
    )
    name = toy(monkeypatch, reward=value)
    assert ending(monkeypatch, "--env", name).startswith(f"--env: Toy-v0 gave the reward {value}: ")
    with pytest.raises(RecipeError, match="Toy-v0 gave the reward"):
        control.play(SpikingCore(3, [4], 2, neurons.MSF()), name, 1, 0)


def test_an_environment_that_cannot_be_made_is_named(monkeypatch):
    found = ending(monkeypatch, "--env", "nomodule:Foo-v0")
    assert found.startswith("--env: nomodule:Foo-v0 cannot be made: ModuleNotFoundError: ")
    found = ending(monkeypatch, "--env", toy(monkeypatch, Graph(VECTOR, None)))
    assert found.startswith("--env: Toy-v0 cannot be made: KeyError: ")
    spec = gymnasium.envs.registration.EnvSpec("Toy-v0", entry_point=lambda size: None)
    monkeypatch.setitem(gymnasium.registry, "Toy-v0", spec)
    assert "Toy-v0 cannot be made: TypeError: " in ending(monkeypatch, "--env", "Toy-v0")


def test_a_neuron_named_twice_is_trained_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["control.py", "--fast", "--neurons", "MSF", "MSF"])
    control.main()
    printed = capsys.readouterr()
    assert printed.err.count("MSF, seed 0") == 1
    assert printed.out.count("| MSF |") == 1


def test_the_page_prints_what_stands_in_it(capsys, monkeypatch):
    page = (ROOT / "docs" / "control.md").read_text()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, flags=re.DOTALL).groups()
    exec(compile(code, "control.md", "exec"), {})
    assert capsys.readouterr().out == shown
