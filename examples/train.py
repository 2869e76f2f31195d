"""Train, validate and test the recipes: `python examples/train.py fit --config examples/configs/smnist.yaml`.

Any setting of a configuration can be given on the command line: `--data.root ~/data --trainer.max_epochs 1`. See
docs/train.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

try:
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from recipes import RecipeError
    from recipes.data.base import Data
    from recipes.module import Task
    from recipes.resume import RandomNumbers, StepCheckpoint, WholeCheckpoints
except ImportError as error:
    sys.exit(f'{error}\nThe recipes need more packages: pip install "msf-pmsn-plugins[examples]"')


class Trainer(LightningCLI):
    """The command line: network and loss under ``model``, a data set under ``data``, Lightning's own ``trainer``."""

    def add_arguments_to_parser(self, parser):
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

    def instantiate_trainer(self, **settings):
        out = Path(self._get(self.config, "out"))
        config = self._get(self.config_init, "trainer")
        loggers = config.get("logger")
        if loggers is None:
            loggers = [CSVLogger(out, "logs")]
            loggers.append(TensorBoardLogger(out, "logs", version=loggers[0].version))
        monitor, mode = self.model.monitor
        kept = {
            "dirpath": out / "checkpoints",
            "enable_version_counter": False,
            "auto_insert_metric_name": False,
        }
        callbacks = [
            ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **kept),
            StepCheckpoint(filename="last", every_n_train_steps=self._get(self.config, "save_every"), **kept),
            ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **kept),
            RandomNumbers(),
            *([LearningRateMonitor()] if loggers else []),
        ]
        return super().instantiate_trainer(
            callbacks=[*(config.get("callbacks") or []), *callbacks],
            logger=loggers,
            plugins=[*(config.get("plugins") or []), WholeCheckpoints()],
            # recipes.data.base shares the samples among processes itself
            use_distributed_sampler=False,
            **settings,
        )

    def after_fit(self):
        best = self.trainer.checkpoint_callbacks[0]
        if self.trainer.is_global_zero and best.best_model_path:
            print(f"{best.monitor} {best.best_model_score:.4f} in {best.best_model_path}")


def main(arguments=None):
    try:
        Trainer(
            Task,
            Data,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            args=arguments,
        )
    except RecipeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
