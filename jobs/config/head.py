"""The sections ``head`` and ``finetune``: the fully connected layers, and how they are trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.settings import NOT_IDENTITY, Settings

FINETUNED = ("ftfc6", "ftfc7")

SvmLayer = Literal["pool5", "fc6", "fc7", "ftfc6", "ftfc7"]


class HeadConfig(Settings):
    """The ``head:`` section of the config."""

    sizes: tuple[int, int] = (4096, 4096)
    """Outputs of fc6 and fc7, where they are not pretrained."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the outputs of fc6 and fc7 that is left out in training."""
    initial: Literal["auto", "pretrained", "he"] = "auto"
    """Weights of fc6 and fc7 before fine-tuning. pretrained: those in the body's weights (alexnet, or what
    `spp pretrain` made); he: He initialisation; auto: pretrained where there are some."""
    seed: int = Field(0, ge=0)
    """Draws the random weights of layers that are not pretrained. Another seed is another head: change it to see how
    much a result hangs on chance."""
    svd_rank: tuple[int, int] | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """Detect with fc6 and fc7 truncated to these ranks, such as [1024, 256] (Fast R-CNN 3.1); null: as they are."""

    @field_validator("sizes", "svd_rank")
    @classmethod
    def _numbers_of_outputs(cls, sizes: tuple[int, int] | None) -> tuple[int, int] | None:
        if sizes is not None and min(sizes) < 1:
            raise ValueError("give two numbers from 1 on, of fc6 and of fc7")
        return sizes


class FinetuneConfig(Settings):
    """The ``finetune:`` section of the config."""

    windows_per_image: int = Field(64, ge=4)
    """Training windows drawn from an image."""
    foreground: float = Field(0.25, gt=0, lt=1)
    """Share of foreground among an image's windows and in every mini-batch."""
    foreground_overlap: float = Field(0.5, gt=0, le=1)
    """IoU with its best object from which a window is foreground."""
    background_overlap: tuple[float, float] = (0.1, 0.5)
    """IoU with its best object from which, and below which, a window is background."""
    flips: bool = True
    """Half of the windows are of the mirrored image."""
    batch: int = Field(128, ge=2)
    """Windows of a mini-batch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last step that goes on into the next one (the paper's 0.9). Lower it if the loss swings."""
    weight_decay: float = Field(5e-4, ge=0)
    """How strongly weights are pulled to zero in every step (the paper's 0.0005). Raise it if the held-out loss rises
    while that of training falls."""
    schedule: Literal["auto", "paper", "plateau"] | tuple[tuple[float, int], ...] = "auto"
    """paper: 1e-4 for 250,000 iterations, 1e-5 for 50,000; plateau: chosen on held-out images; auto: paper where fc6
    and fc7 are pretrained, plateau elsewhere; or pairs of a learning rate and its iterations, [[1e-3, 2000], ...]."""
    learning_rates: tuple[float, ...] = (3e-2, 1e-2, 3e-3, 1e-3)
    """With schedule plateau: the rates that are tried, for ``trial_iterations`` each; the best is trained with."""
    trial_iterations: int = Field(200, ge=1)
    """With schedule plateau: iterations of such a trial. Raise it if the trials' losses are too close to tell apart."""
    max_iterations: int = Field(20_000, ge=1)
    """With schedule plateau: iterations after which the training ends in any case."""
    patience: int = Field(4, ge=1)
    """With schedule plateau: points of the curve without a lower held-out loss before the rate falls to a tenth."""
    drops: int = Field(2, ge=0)
    """With schedule plateau: how often the rate falls; where it would once more, the training ends."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """With schedule plateau: share of the training images that rates and length are chosen on; the final training then
    uses all."""
    measure_every: int = Field(100, ge=1)
    """Iterations between two points of the curve."""
    seed: int = Field(0, ge=0)
    """Draws windows, their scales and sides, mini-batches, dropout and held-out images. Another seed is another head:
    change it to see how much a result hangs on chance."""

    @field_validator("background_overlap")
    @classmethod
    def _an_interval(cls, overlap: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= overlap[0] < overlap[1] <= 1:
            raise ValueError("give two IoUs, the lower one first, such as [0.1, 0.5]")
        return overlap

    @field_validator("schedule")
    @classmethod
    def _steps_are_steps(cls, schedule: Any) -> Any:
        steps = () if isinstance(schedule, str) else schedule
        if schedule == () or any(rate <= 0 or iterations < 1 for rate, iterations in steps):
            raise ValueError("give one or more [learning rate, iterations], both above 0")
        return schedule

    @field_validator("learning_rates")
    @classmethod
    def _rates_are_rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or min(rates) <= 0 or len(set(rates)) != len(rates):
            raise ValueError("give one or more distinct learning rates above 0")
        return rates

    @model_validator(mode="after")
    def _batch_has_both(self) -> FinetuneConfig:
        if self.background_overlap[1] > self.foreground_overlap:
            raise ValueError("background_overlap must end where foreground_overlap begins, or before")
        for key, count in (("batch", self.batch), ("windows_per_image", self.windows_per_image)):
            if round(count * self.foreground) in (0, count):
                raise ValueError(f"{key}: {count} windows with {self.foreground:g} of foreground lack one of the two")
        return self

    def sampling(self) -> dict[str, Any]:
        """The values that decide which windows are drawn."""
        kept = ("windows_per_image", "foreground", "foreground_overlap", "background_overlap", "flips", "seed")
        values = self.identity()
        return {key: values[key] for key in kept}

    def training(self) -> dict[str, Any]:
        """The values that decide what is made of the windows; those that the schedule does not ask for left out."""
        values = self.identity()
        plateau = ("learning_rates", "trial_iterations", "max_iterations", "patience", "drops", "held_out")
        dropped = () if self.schedule in ("auto", "plateau") else plateau
        return {key: value for key, value in values.items() if key not in dropped}
