"""Every configuration stands in the tables of the pages on tasks, with the parameters of the network that it names."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("spikingjelly")
pytest.importorskip("timm")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from recipes import models, neurons

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "configs"
TASKS = sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def rows(page):
    """The names of configurations that begin a table row, and its cells; not the rows of variants, ``x`` with ``y``."""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([\w/]+)`", cells[0])
        if line.startswith("|") and {*names} & {*TASKS} and " with " not in cells[0]:
            yield names, cells


def network(task):
    """The network of a configuration, on no device."""
    given = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text())["model"]["network"]
    arguments = given["init_args"]
    neuron = arguments.pop("neuron")
    factory = getattr(neurons, neuron["class_path"].removeprefix("recipes.neurons."))
    with torch.device("meta"):
        build = getattr(models, given["class_path"].removeprefix("recipes.models."))
        return build(**arguments, neuron=factory(**neuron.get("init_args", {})))


@pytest.mark.parametrize("page", ["tasks.md", "train.md"])
def test_every_configuration_has_its_row(page):
    assert sorted(name for names, _ in rows(page) for name in names) == TASKS


def test_rows_give_the_parameters_of_their_configurations():
    for names, cells in rows("tasks.md"):
        counts = [models.count_parameters(network(name)) for name in names]
        said = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", cells[2])]
        assert said == counts, names
