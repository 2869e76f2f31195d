"""MSWC: the base words as a data set, and words of other languages from a few recordings."""
# ruff: noqa: E402

import json
import re
import sys

import numpy as np
import pytest
import torch

for name in ("neurobench", "lightning", "torchmetrics", "spikingjelly", "torchvision"):
    pytest.importorskip(name, reason=f"{name} is not installed")

import few_shot
import train
from recipes import RecipeError, neurons
from recipes.data.mswc import LANGUAGES, MSWC
from recipes.models import SequenceNet
from torch import nn

from fixtures.damage import DAMAGES, Damaged, prepared, refused
from fixtures.runs import ONE_STEP, arguments
from fixtures.speech import write_mswc

SMALL = {"steps": 20, "bands": 8}
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("command_line")]


@pytest.fixture
def root(tmp_path):
    write_mswc(tmp_path / "set")
    return tmp_path / "set"


def ready(root, **settings):
    return prepared(MSWC(**{"root": str(root), "verify": False, "batch_size": 4, **SMALL, **settings}))


# -- the data


def test_base_words_are_labelled_by_one_list(root):
    data = ready(root)
    assert (data.layout, data.classes) == ("TNC", 100)
    assert data.words == ["appearance", "collection", "l’amendement", "surrounding"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {
        "train": 12,
        "val": 8,
        "test": 8,
    }
    x, y = data.arrange(next(iter(data.train_dataloader())))
    assert (x.shape, x.dtype, len(y)) == ((20, 4, 8), torch.float32, 4)
    for samples in data.samples.values():
        files = samples.source.source.files
        assert [data.words[label] for label in samples.source.targets] == [path.parent.name for path in files]


def test_later_words_are_those_of_a_language(root):
    frames, members = ready(root).later("nl")
    assert [each.tolist() for each in members] == [list(range(12)), list(range(12, 24))]
    assert {path.parents[2].name for path in frames.source.files} == {"nl"}
    with pytest.raises(RecipeError, match="the languages are fa, eo, .*got 'en'"):
        ready(root).later("en")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("base_val.csv", lambda s: s.replace("WORD", "NAME"), "not with names of columns, the second WORD"),
        ("base_val.csv", lambda s: s + "a.opus,collection\n", "line 10 is 'a.opus,collection', not <clip>"),
        (
            "base_val.csv",
            lambda s: s + "a.opus,hello,en\n",
            "has the word 'hello', which base_train.csv has not",
        ),
        ("base_val.csv", lambda s: s.splitlines()[0], "lists no recordings"),
        ("base_test.csv", lambda s: s.replace("_20.", "_0."), "which base_train.csv lists too"),
        (
            "base_train.csv",
            lambda s: s + "".join(f"w/{k}.opus,w{k},en\n" for k in range(97)),
            "has 101 words",
        ),
    ],
)
def test_lists_that_do_not_fit(name, change, says, root):
    path = root / "MSWC" / name
    path.write_text(change(path.read_text()))
    message = refused(MSWC, root, **SMALL)
    assert str(path) in message
    assert re.search(says, message)
    assert "put NeuroBench's mswc_fscil_subset" in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_list_or_recording(damage, root):
    for path in (root / "MSWC/base_train.csv", root / "MSWC/en/clips/collection/common_voice_en_10.wav"):
        with Damaged(path, damage):
            message = refused(MSWC, root, **SMALL)
        # a list that is cut may be whole rows with one clip less
        assert str(root / "MSWC" if path.suffix == ".csv" and "cut" in damage else path) in message
        assert "\n" not in message


def test_a_part_of_the_set_is_told_from_the_whole(root):
    assert "has 4 words, MSWC has 100 base words" in refused(MSWC, root, verify=True)
    data = ready(root)
    data.verify = True
    with pytest.raises(RecipeError, match="has 24 recordings of 2 words, MSWC has 200 of each of 10"):
        data.later("fa")


# -- the sessions


def test_the_last_layer_finds_the_nearest_mean():
    torch.manual_seed(0)
    means, x = [torch.randn(5) for _ in range(7)], torch.randn(100, 5)
    assert torch.equal(few_shot.nearest(means)(x).argmax(1), torch.cdist(x, torch.stack(means)).argmin(1))


def test_a_session_adds_words_and_forgets_none(root):
    """By hand, for the first language that the seed draws."""
    torch.manual_seed(0)
    data = ready(root)
    net = SequenceNet(8, [8, 8], 100, neurons.MSF()).eval()
    shown = few_shot.sessions(net, data, seed=3, shots=2, queries=4)
    assert [row["words"] for row in shown] == [4, *range(6, 25, 2)]
    draw = np.random.default_rng(3)
    order = draw.permutation(LANGUAGES).tolist()
    assert [row["session"] for row in shown] == ["base", *order]
    assert sorted(order) == sorted(LANGUAGES)

    @torch.no_grad()
    def seen(source, indices):
        x = torch.stack([data.transform(False)(source[k][0]) for k in indices], 1)
        out = net.hidden_spikes(x).mean(0)
        neurons.reset(net)
        return out

    train, test = data.samples["train"].source, data.samples["test"].source
    means = [seen(train, np.flatnonzero(train.targets == label)).mean(0) for label in range(4)]
    asked, labels = [seen(test, range(len(test)))], test.targets.tolist()
    right = torch.cdist(asked[0], torch.stack(means)).argmin(1) == torch.tensor(labels)
    assert shown[0]["ClassificationAccuracy"] == pytest.approx(right.float().mean().item())
    frames, words = data.later(order[0])
    for members in words:
        support = draw.choice(members[:6], 2, replace=False)
        asked.append(seen(frames, draw.choice(members[6:], 4, replace=False)))
        labels += [len(means)] * 4
        means.append(seen(frames, support).mean(0))
    right = torch.cdist(torch.cat(asked), torch.stack(means)).argmin(1) == torch.tensor(labels)
    assert shown[1]["ClassificationAccuracy"] == pytest.approx(right.float().mean().item())
    assert shown[1]["queries"] == pytest.approx(right[len(test) :].float().mean().item())


def test_the_command_goes_from_what_the_trainer_left(tmp_path, fixtures, monkeypatch, capsys):
    out = tmp_path / "run"
    train.main(["fit", *arguments("mswc", out, fixtures, *ONE_STEP, "--trainer.max_epochs=1")])
    given = ["few_shot.py", "--config", str(out / "logs/version_0/config.yaml")]
    given += ["--checkpoint", str(out / "checkpoints/best.ckpt"), "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", given)
    few_shot.main()
    rows, printed = json.loads((tmp_path / "rows.json").read_text()), capsys.readouterr().out
    assert len(rows) == 11
    assert rows[0]["SynapticOperations"]["Effective_ACs"] > 0
    mean = np.mean([row["ClassificationAccuracy"] for row in rows])
    assert f"| mean | | {100 * mean:.2f} | |" in printed
    assert f"| base | 4 | {100 * rows[0]['ClassificationAccuracy']:.2f} |  |" in printed
    monkeypatch.setattr(few_shot, "instantiate", lambda *_: (nn.Linear(1, 1), None))
    with pytest.raises(SystemExit, match="takes a SequenceNet trained on MSWC, got Linear on NoneType"):
        few_shot.main()
