"""Train, validate and test the recipes: `python examples/train.py fit --config examples/configs/smnist.yaml`.

Any setting of a configuration can be given on the command line: `--data.root ~/data --trainer.max_epochs 1`. See
docs/train.md.
"""

import argparse
import logging
import pkgutil
import signal
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

try:
    import yaml
    from jsonargparse import ArgumentError
    from lightning.pytorch.callbacks import (
        BatchSizeFinder,
        LearningRateFinder,
        LearningRateMonitor,
        ProgressBar,
        RichProgressBar,
    )
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
    from recipes import RecipeError
    from recipes.arguments import said
    from recipes.checkpoints import Best, WholeCheckpoints, claimed, refuse_to_overwrite
    from recipes.data.base import Data
    from recipes.data.detection import DetectionData
    from recipes.data.files import one_line
    from recipes.module import Task
    from recipes.resume import Last, RandomNumbers, Stopped
    from recipes.settings import of_run
except ImportError as error:
    sys.exit(f'{error}\nThe recipes need more packages: pip install ".[examples]"')

# What Lightning says of things that are so on purpose here, or that need no remedy.
ON_PURPOSE = (
    ".*does not have many workers",
    ".*is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",
    ".*is deprecated, use `isinstance\\(treespec",
    "You defined a `validation_step` but have no `val_dataloader`",
    "You requested to overfit but enabled .* dataloader shuffling",
    "You are trying to `self.log\\(\\)` but `Trainer\\(barebones",
    ".*You are running in `Trainer\\(barebones=True\\)` mode",
    ".*there is no last checkpoint available",
)


USAGE = """python examples/train.py fit --config examples/configs/TASK.yaml [--name value ..]

What most runs set; every other name of the configuration works in the same way:
  --model.network.neuron LIF               or MSF, PMSN, ReLU, where the network takes it
  --data.root FOLDER                       where the data lie, or are loaded to
  --out FOLDER                             logs and checkpoints of this run
  --ckpt_path last                         go on where the run in that folder stopped; test takes best
  --trainer.max_epochs N                   shorter or longer
  --trainer.accelerator gpu                or cpu; --trainer.devices N takes several
  --trainer.precision bf16-mixed           mixed precision
  --seed_everything N                      another seed
  --print_config                           print all settings with their values, and end
"""


class Bar(RichProgressBar):
    """Progress and losses, without the number of a folder of logs (v_num)."""

    def get_metrics(self, *arguments):
        return {name: value for name, value in super().get_metrics(*arguments).items() if name != "v_num"}


def data_of(path):
    """The class of data that a configuration names; None where that cannot be told, which the parser will explain."""
    try:
        kind = pkgutil.resolve_name(yaml.safe_load(Path(path).read_text())["data"]["class_path"])
    except Exception:  # an own module raises all kinds where it is imported
        return None
    return kind if isinstance(kind, type) else None


class Trainer(LightningCLI):
    """The command line: network and loss under ``model``, a data set under ``data``, Lightning's own ``trainer``."""

    def __init__(self, held: ExitStack, *args, **settings):
        self.held = held
        super().__init__(*args, **settings)

    @staticmethod
    def subcommands():
        """All but predict: no data set here has samples without labels."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}

    def parse_arguments(self, parser, args):
        given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        given.add_argument("-c", "--config", action="append", nargs="?", default=[])
        for path in filter(None, given.parse_known_args(args)[0].config):
            kind = data_of(path)
            boxes = kind is not None and issubclass(kind, DetectionData)
            if kind is not None and boxes != issubclass(self.datamodule_class, DetectionData):
                raise RecipeError(
                    f"{path} names {kind.__name__}, data {'with' if boxes else 'without'} boxes: use examples/"
                    f"{'detect' if boxes else 'train'}.py"
                )
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser):
        parser.usage = USAGE
        parser.add_argument(
            "--out", type=str, default="runs/run", help="Folder of this run's logs and checkpoints."
        )
        parser.add_argument(
            "--save_every",
            type=int,
            default=500,
            help="Steps between the checkpoints to go on from (last.ckpt).",
        )
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self):
        pass  # our checkpoints hold no hyperparameters, and a damaged one is for WholeCheckpoints to name

    def before_instantiate_classes(self):
        given = self._get(self.config, "ckpt_path")
        best = Path(self._get(self.config, "out"), "checkpoints", "best.ckpt")
        if given == "best":  # Lightning knows it only in the process that trained
            self.config[self.subcommand]["ckpt_path"] = str(best)
        elif given is None and self.subcommand != "fit":
            warnings.warn(
                f"no --ckpt_path: the network is untrained; --ckpt_path best takes {best}", stacklevel=2
            )

    def _set_seed(self):
        try:
            super()._set_seed()
        except ValueError as error:
            raise RecipeError(f"seed_everything: {error}") from error

    def instantiate_classes(self):
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:  # of a constructor: it says what it expects
            raise RecipeError(one_line(error)) from error
        config = self.config[self.subcommand].as_dict()
        self.model.settings = of_run(config["model"]["network"], config["data"])

    def instantiate_trainer(self, **settings):
        out = Path(self._get(self.config, "out"))
        config = self._get(self.config_init, "trainer")
        bare, loggers = config.get("barebones"), config.get("logger")
        if loggers is None and not bare:
            loggers = [CSVLogger(out, "logs")]
            loggers.append(TensorBoardLogger(out, "logs", version=loggers[0].version))
        callbacks = [*(config.get("callbacks") or []), RandomNumbers()]
        if loggers:
            callbacks.append(LearningRateMonitor())
        bars = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if config.get("enable_progress_bar") is not False and not (bare or bars):
            callbacks.append(Bar())
        if config.get("enable_checkpointing") is not False and not bare:
            callbacks += self.checkpoints(out / "checkpoints", config)
        elif config.get("enable_checkpointing") is None:
            settings["enable_checkpointing"] = False
        return super().instantiate_trainer(
            callbacks=callbacks,
            logger=loggers,
            plugins=[*(config.get("plugins") or []), WholeCheckpoints()],
            # recipes.data.base shares the samples among processes itself
            use_distributed_sampler=False,
            **settings,
        )

    def checkpoints(self, folder, config):
        """What writes into ``folder``, which is this run's by then."""
        going_on = self._get(self.config, "ckpt_path")
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            searches = [
                c
                for c in config.get("callbacks") or []
                if isinstance(c, LearningRateFinder | BatchSizeFinder)
            ]
            if going_on and searches:
                raise RecipeError(
                    f"{type(searches[0]).__name__} starts afresh: leave out --ckpt_path or the finder"
                )
            if rank_zero_only.rank == 0:
                refuse_to_overwrite(folder, going_on)
                self.held.enter_context(claimed(folder))
        monitor, mode = self.model.monitor
        best = Best(
            dirpath=folder,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,  # but after each validation
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        return [best, Last(folder, self._get(self.config, "save_every"))]

    def after_fit(self):
        best = next((c for c in self.trainer.checkpoint_callbacks if isinstance(c, Best)), None)
        if self.trainer.is_global_zero and best is not None and best.best_model_path:
            print(f"{best.monitor} {best.best_model_score:.4f} in {best.best_model_path}")


def show(message, category, filename, lineno, file=None, line=None):
    """A warning in one line."""
    print(f"warning: {' '.join(str(message).split())}", file=file or sys.stderr)


def main(arguments=None, task=Task, data=Data):
    """Run the command line; ``task`` and ``data`` are what it trains on what."""
    logging.getLogger("lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with ExitStack() as held, warnings.catch_warnings():
        warnings.showwarning = show
        for text in ON_PURPOSE:
            warnings.filterwarnings("ignore", text)
        try:
            Trainer(
                held,
                task,
                data,
                subclass_mode_data=True,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={"exit_on_error": False},
                # the header and Task.check() are instead of them
                trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0},
                args=arguments,
            )
        except ArgumentError as error:
            sys.exit(f"error: {said(error)}; fit --help explains the settings, fit --print_config shows them")
        except (RecipeError, MisconfigurationException) as error:
            sys.exit(f"error: {error}")
        except Stopped as stop:
            name = signal.Signals(stop.signum).name
            print(f"stopped by {name}; --ckpt_path last goes on from there", file=sys.stderr)
            sys.exit(128 + stop.signum)
        except SIGTERMException:  # before training, or in a test
            sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
