"""What is trained and how: losses, the published optimizer groups, schedules, metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from msf_pmsn_plugins.optim import param_groups

from . import RecipeError
from .checkpoints import require_space
from .neurons import reset
from .processes import of_all_processes
from .settings import require_same

__all__ = ["Task", "cosine", "loss_of"]

STAGES = ("train", "val", "test")


def loss_of(
    kind: str, out: Tensor, y: Tensor, lengths: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar, and what it judges: the logits [N, classes] averaged over time, or the signal.

    Args:
        kind: ``"ce"``: cross-entropy of the mean logits. ``"tet"``: mean over the steps of the cross-entropy of each
            step's logits (temporal efficient training, without its regulariser). ``"mse"``: mean squared error.
        out: logits [T, N, classes] or [N, classes], or a signal shaped like ``y``.
        y: classes [N] or their probabilities [N, classes], or a signal.
        lengths: valid steps of each sample [N]; the others count nowhere.
        smoothing: label smoothing, for ``"ce"`` and ``"tet"``.

    Raises:
        ValueError: shapes that do not fit ``kind``.
    """
    if y.is_floating_point():
        y = y.to(out.dtype)  # probabilities that were mixed in float32
    if kind == "mse":
        if out.shape != y.shape:
            raise ValueError(f"the network gives {tuple(out.shape)}, the target is {tuple(y.shape)}")
        return F.mse_loss(out, y), out
    if kind == "tet" and out.dim() != 3:
        raise ValueError(
            f"the TET loss needs logits per step [T, N, classes], the network gives {tuple(out.shape)}"
        )
    if out.dim() == 2:
        return F.cross_entropy(out, y, label_smoothing=smoothing), out
    if out.dim() != 3:
        raise ValueError(f"logits are [T, N, classes] or [N, classes], the network gives {tuple(out.shape)}")
    steps = torch.full((out.shape[1],), len(out), device=out.device) if lengths is None else lengths
    # [T, N], every column sums to 1
    weight = (torch.arange(len(out), device=out.device).unsqueeze(1) < steps) / steps
    mean = torch.einsum("tn,tnc->nc", weight.to(out.dtype), out)
    if kind == "ce":
        return F.cross_entropy(mean, y, label_smoothing=smoothing), mean
    every = y.expand(len(out), *y.shape).flatten(0, 1)
    each = F.cross_entropy(out.flatten(0, 1), every, label_smoothing=smoothing, reduction="none")
    return (weight * each.view_as(weight)).sum(0).mean(), mean


def cosine(
    epoch: int, rate: float, epochs: int | None, least: float, warmup: int, warmup_rate: float
) -> float:
    """The factor on ``rate`` in an epoch: a line from ``warmup_rate``, then the cosine over ``epochs``, then ``least``.

    As in timm, the warm-up covers the beginning of the cosine. ``epochs`` None: ``rate`` stays. A rate of 0 stays 0.
    """
    if rate == 0:
        return 0.0
    if epoch < warmup:
        return (warmup_rate + epoch * (rate - warmup_rate) / warmup) / rate
    if epochs is None:
        return 1.0
    wave = 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
    return (least + (rate - least) * wave) / rate


class Task(LightningModule):
    """A network, its loss and its optimizer.

    Args:
        network: maps x to logits [T, N, classes] or [N, classes], or to a signal; takes ``lengths`` where the data have
            them. Its attribute ``time_first_input`` names the axes of x.
        loss: see :func:`loss_of`.
        optimizer: its other settings are torch's defaults.
        lr, weight_decay: of all parameters that are no PMSN parameters; a rate of 0 freezes.
        neuron_lr, groups: rates of PMSN's parameters: :func:`msf_pmsn_plugins.optim.param_groups`.
        momentum: of SGD.
        decay_all: False, as in timm: no decay for biases, norms and other parameters of one axis.
        warmup_epochs, warmup_lr, min_lr, cooldown_epochs: see :func:`cosine`; it spans all epochs but the last
            ``cooldown_epochs``.
        schedule_epochs: all epochs, for the schedule, where ``trainer.max_epochs`` is -1. None: those that
            ``trainer.max_steps`` makes; where that is -1 too, the rate stays.
        label_smoothing: in training.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Literal["ce", "tet", "mse"] = "ce",
        optimizer: Literal["adamw", "adam", "sgd"] = "adamw",
        lr: float = 1e-3,
        neuron_lr: float = 1e-3,
        weight_decay: float = 0.0,
        groups: Literal["smnist", "shd", "imagenet"] = "smnist",
        momentum: float = 0.9,
        decay_all: bool = True,
        warmup_epochs: int = 0,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
        cooldown_epochs: int = 0,
        schedule_epochs: int | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.neuron_lr = neuron_lr
        self.weight_decay = weight_decay
        self.groups = groups
        self.momentum = momentum
        self.decay_all = decay_all
        self.warmup_epochs = warmup_epochs
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        self.cooldown_epochs = cooldown_epochs
        self.schedule_epochs = schedule_epochs
        self.label_smoothing = label_smoothing
        self.settings: dict[str, str] = {}
        """Of network and data, as :func:`recipes.settings.named` gives them; empty where no configuration made them."""
        self._check_settings()
        self.metrics = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in STAGES})

    def _check_settings(self) -> None:
        for name in (
            "lr",
            "neuron_lr",
            "weight_decay",
            "warmup_epochs",
            "warmup_lr",
            "min_lr",
            "cooldown_epochs",
        ):
            if getattr(self, name) < 0:
                raise RecipeError(f"model.{name} must not be negative, got {getattr(self, name)}")
        if self.schedule_epochs is not None and self.schedule_epochs < 1:
            raise RecipeError(f"model.schedule_epochs must be at least 1, got {self.schedule_epochs}")
        if not 0 <= self.label_smoothing < 1:
            raise RecipeError(f"model.label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    @property
    def monitor(self) -> tuple[str, Literal["min", "max"]]:
        """What selects the model, and in which direction."""
        return ("val/loss", "min") if self.loss == "mse" else ("val/acc", "max")

    # -- optimisation

    @property
    def rate(self) -> float:
        """Of the parameters that are no PMSN parameters."""
        return self.lr

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = param_groups(self.network, self.rate, self.neuron_lr, self.weight_decay, self.groups)
        if self.decay_all:
            return groups
        split = []
        for group in groups:
            for flat in (False, True):
                params = [p for p in group["params"] if (p.dim() <= 1) is flat]
                split.append({**group, "params": params, **({"weight_decay": 0.0} if flat else {})})
        return [group for group in split if group["params"]]

    def configure_optimizers(self):
        groups = self.parameter_groups()
        if self.optimizer == "sgd":
            optimizer: Any = torch.optim.SGD(groups, self.lr, momentum=self.momentum)
        else:
            optimizer = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[self.optimizer](
                groups, self.lr
            )
        shapes = self.shapes(groups)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, shapes)}

    def shapes(self, groups: list[dict[str, Any]]) -> list[partial[float]]:
        """The schedule of each group."""
        epochs = self.epochs()
        settings = {
            "epochs": None if epochs is None else max(1, epochs - self.cooldown_epochs),
            "least": self.min_lr,
            "warmup": self.warmup_epochs,
            "warmup_rate": self.warmup_lr,
        }
        return [partial(cosine, rate=group["lr"], **settings) for group in groups]

    def epochs(self) -> int | None:
        """How many the schedule is for, None where nothing says it."""
        trainer = self.trainer
        if trainer.max_epochs is not None and trainer.max_epochs >= 0:
            return trainer.max_epochs
        if self.schedule_epochs is not None or trainer.max_steps < 0:
            return self.schedule_epochs
        trainer.fit_loop.setup_data()  # the number of batches
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        return max(1, math.ceil(trainer.max_steps / max(1, steps)))

    def on_train_start(self):
        """The rates are those of the settings now: of a longer schedule, of a rate that was found or given anew."""
        schedule = self.lr_schedulers()
        if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
            return  # a rate is being looked for
        groups = self.parameter_groups()
        schedule.last_epoch = self.scheduled()
        schedule.base_lrs = [group["lr"] for group in groups]
        schedule.lr_lambdas = self.shapes(groups)
        now = schedule.optimizer.param_groups
        if len(now) != len(groups):  # groups of one rate are one
            now[:] = [{**now[0], **group} for group in groups]
        for group, fresh, shape in zip(now, groups, schedule.lr_lambdas, strict=True):
            group["weight_decay"] = fresh["weight_decay"]
            group["initial_lr"] = fresh["lr"]
            group["lr"] = fresh["lr"] * shape(schedule.last_epoch)

    def scheduled(self) -> int:
        """How far the schedule is, in epochs."""
        loop = self.trainer.fit_loop
        return self.current_epoch + (0 < loop.epoch_loop.batch_progress.current.ready >= loop.max_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the epoch has given so far, of every process: a resumed one reports all of its batches."""
        mine = {
            name: {"updates": metric._update_count, **metric.metric_state}
            for name, metric in self.metrics.items()
            if name.startswith("train")
        }
        checkpoint["metrics"] = of_all_processes(mine)
        checkpoint["settings"] = self.identity()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "settings" in checkpoint:
            data = self.trainer.datamodule
            require_same(checkpoint["settings"], self.identity(), self.trainer.state.fn, data.division)
        saved = checkpoint.get("metrics", [])
        if self.trainer.state.fn != "fit" or len(saved) != self.trainer.world_size:
            return
        for name, state in saved[self.trainer.global_rank].items():
            metric = self.metrics[name]
            metric._update_count = state["updates"]
            for key in metric.metric_state:
                setattr(metric, key, state[key].clone().to(self.device))

    def identity(self) -> dict[str, str]:
        """What a run is told from others by: its settings, and how many samples are in each part."""
        samples = self.trainer.datamodule.samples
        counts = ", ".join(f"{len(part)} {name}" for name, part in samples.items())
        return {**self.settings, "data.samples": counts}

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **settings: Any) -> Any:
        try:
            return super().load_state_dict(state, *args, **settings)
        except RuntimeError as error:
            raise RecipeError(
                f"the checkpoint does not fit {type(self.network).__name__}: {error}"
            ) from error

    # -- steps

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One pass from rest to rest."""
        try:
            return self.network(x) if lengths is None else self.network(x, lengths)
        finally:
            reset(self.network)

    def on_train_epoch_start(self):
        if self.trainer.overfit_batches > 0:
            # the same samples, with the same augmentation, in every epoch
            self.trainer.train_dataloader.batch_sampler.sampler.set_epoch(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # mixed here and not in a hook before: the random numbers of a resumed run are back by now
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # some distributions are not drawn in half precision
        try:
            batch = self.trainer.datamodule.mix(batch)
        finally:
            torch.set_default_dtype(dtype)
        return self._step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step("test", batch)

    def _step(self, stage: str, batch: Any) -> Tensor:
        x, y, *rest = self.trainer.datamodule.arrange(batch)
        lengths = rest[0] if rest else None
        smoothing = self.label_smoothing if stage == "train" else 0.0
        loss, judged = loss_of(self.loss, self(x, lengths), y, lengths, smoothing)
        size = y.shape[1] if self.loss == "mse" else len(y)
        self.metrics[f"{stage}_loss"].update(loss.detach(), weight=size)
        if self.loss != "mse":
            self.metrics[f"{stage}_acc"].update(judged.detach(), y if y.dim() == 1 else y.argmax(1))
        if stage == "train":
            self.log("train/loss_step", loss.detach(), prog_bar=True, batch_size=size)
        return loss

    def _summarise(self, stage: str) -> None:
        # here and not in the steps: a process without samples of this part has to join
        for name, metric in self.metrics.items():
            if name.startswith(stage):
                self.log(name.replace("_", "/"), metric.compute(), prog_bar=True)
                metric.reset()

    def on_train_epoch_end(self):
        self._summarise("train")

    def on_validation_epoch_end(self):
        self._summarise("val")

    def on_test_epoch_end(self):
        self._summarise("test")

    # -- before the first step

    def setup(self, stage: str) -> None:
        if self.loss != "mse" and "val_acc" not in self.metrics:
            classes = self.trainer.datamodule.classes
            if classes is None:
                raise RecipeError(f"these data have no classes; give model.loss mse, not {self.loss}")
            for part in STAGES:
                self.metrics[f"{part}_acc"] = MulticlassAccuracy(classes, average="micro")

    def on_fit_start(self):
        trainer = self.trainer
        if trainer.checkpoint_callbacks:
            require_space(Path(trainer.default_root_dir), self)
        self.check()
        try:
            trainer.fit_loop.setup_data()
        except ValueError as error:  # settings of the trainer that do not fit these data
            raise RecipeError(str(error).strip()) from error
        if trainer.is_global_zero:
            print(self.header(), flush=True)
        if self.epochs() is None:
            rank_zero_warn(
                "nothing says how many epochs there will be, so the learning rate stays; give trainer.max_epochs or "
                "model.schedule_epochs"
            )

    def header(self) -> str:
        """What is trained, in one line."""
        trainer, data = self.trainer, self.trainer.datamodule
        neuron = self.settings.get("model.network.neuron")
        ends = f"max_epochs {trainer.max_epochs}" + (
            f", max_steps {trainer.max_steps}" if trainer.max_steps >= 0 else ""
        )
        return (
            f"{type(self.network).__name__}{f' of {neuron}' if neuron else ''}, "
            f"{sum(p.numel() for p in self.parameters()):,} parameters; {data.about}, "
            f"{len(data.samples['train']):,} samples in batches of {data.batch_size}; {ends}; "
            f"{trainer.precision} on {trainer.world_size} {self.device.type}; {trainer.default_root_dir}"
        )

    def on_validation_start(self):
        if not self.trainer.sanity_checking and self.trainer.state.fn != "fit":
            self.check()

    def on_test_start(self):
        self.check()

    def check(self) -> None:
        """Run one sample through the network and the loss; raise RecipeError where network and data do not fit."""
        data, name = self.trainer.datamodule, type(self.network).__name__
        x, y, *lengths = self.sample()
        out = self.tried(x, *lengths)
        if data.classes is not None and out.shape[-1] != data.classes:
            raise RecipeError(
                f"{name} has {out.shape[-1]} outputs, {type(data).__name__} has {data.classes} classes: "
                "make model.network.classes and the data agree"
            )
        try:
            loss_of(self.loss, out, y, *lengths)
        except (ValueError, RuntimeError) as error:
            raise RecipeError(f"loss {self.loss!r} does not fit {name}: {error}") from error

    def sample(self) -> Any:
        """A batch of one validation sample, as the network takes it; raise RecipeError for data of other axes."""
        data = self.trainer.datamodule
        wanted = getattr(self.network, "time_first_input", data.layout)
        if wanted != data.layout:
            name = type(self.network).__name__
            raise RecipeError(f"{name} takes {wanted} input, {type(data).__name__} gives {data.layout}")
        sample = data.collate([data.samples["val"][0]])
        sample = self.trainer.precision_plugin.convert_input(sample)
        return data.arrange(self.transfer_batch_to_device(sample, self.device, 0))

    @torch.no_grad()
    def tried(self, x: Tensor, *lengths: Tensor) -> Any:
        """What the network gives for ``x``; raise RecipeError where it cannot take it."""
        was_training = self.network.training
        self.network.eval()
        try:
            with self.trainer.precision_plugin.forward_context():
                return self(x, *lengths)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RecipeError(
                f"{type(self.network).__name__} does not take x {tuple(x.shape)} of "
                f"{type(self.trainer.datamodule).__name__}: {error}"
            ) from error
        finally:
            self.network.train(was_training)
