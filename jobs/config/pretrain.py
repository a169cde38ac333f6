"""The section ``pretrain``: a whole network, trained on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.settings import NOT_IDENTITY, Settings

if TYPE_CHECKING:
    from pipeline.training.pretraining import Recipe


ScoredView = Literal["1-crop", "1-crop-180", "10-crop", "1-full", "2-full", "multi"]
_FIXED_VIEWS = ("1-crop", "10-crop")


class PretrainConfig(Settings):
    """The ``pretrain:`` section of the config."""

    pooling: Literal["spp", "fixed"] = "spp"
    """spp: the pyramid of ``features.pyramid``; fixed: 6 x 6 bins and images of 224 x 224 only, the paper's no-SPP."""
    sizes: Literal["single", "multi", "random"] = "single"
    """single: 224; multi: whole epochs of 224 and of 180 in turn; random: each mini-batch a size from 180 to 224."""
    epochs: int = Field(70, ge=1)
    """The longest training."""
    batch: int = Field(128, ge=1)
    """Images of a mini-batch, of all workers together."""
    learning_rate: float = Field(0.01, gt=0)
    """The first; biases learn at twice the rate."""
    patience: int = Field(5, ge=1)
    """Epochs without a lower held-out error before the rate falls to a tenth."""
    drops: int = Field(2, ge=0)
    """How often the rate falls; where it would once more, the training ends."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last step that goes on into the next one. Lower it if the loss swings."""
    weight_decay: float = Field(5e-4, ge=0)
    """How strongly weights, not biases, are pulled to zero in every step. Raise it if the network learns its training
    images by heart."""
    initial: Literal["gaussian", "he"] = "gaussian"
    """gaussian: N(0, 0.01), as released; he: He et al. 2015, on an input brought to the size of about one."""
    fc_sizes: tuple[int, int] = (4096, 4096)
    """Outputs of fc6 and fc7."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Share of the outputs of fc6 and fc7 that is left out in training."""
    flips: bool = True
    """Half of the crops are mirrored."""
    colour: bool = True
    """Colours are shifted along the principal components of ImageNet's (Krizhevsky et al. 2012)."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the training images that is never trained on: the rate falls by their error, and where no test split has
    images the network is tested on them. 0: the rate falls by the training loss."""
    seed: int = Field(0, ge=0)
    """Draws the first weights, mini-batches, crops, colours, dropout and held-out images. Another seed is another
    network: change it to see how much a result hangs on chance."""
    views: tuple[ScoredView, ...] | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """What the trained network is tested on, see docs/pretraining.md; null: 1-crop, 10-crop, and with a pyramid also
    1-full and 2-full."""
    cache_mb: int = Field(2000, ge=0, json_schema_extra=NOT_IDENTITY)
    """Memory of a worker for decoded images; those that find no room are decoded in every epoch."""

    @field_validator("fc_sizes")
    @classmethod
    def _numbers_of_outputs(cls, sizes: tuple[int, int]) -> tuple[int, int]:
        if min(sizes) < 1:
            raise ValueError("give two numbers from 1 on, of fc6 and of fc7")
        return sizes

    @model_validator(mode="after")
    def _without_a_pyramid_there_is_one_size(self) -> PretrainConfig:
        if self.pooling == "fixed" and self.sizes != "single":
            raise ValueError(f"pooling: fixed takes images of 224 x 224 only, so sizes cannot be {self.sizes}")
        impossible = [view for view in self.tested_views if self.pooling == "fixed" and view not in _FIXED_VIEWS]
        if impossible:
            raise ValueError(f"pooling: fixed can be tested on {', '.join(_FIXED_VIEWS)}, not on {impossible[0]}")
        return self

    @property
    def tested_views(self) -> tuple[ScoredView, ...]:
        """The views that the network is tested on."""
        if self.views is not None:
            return tuple(dict.fromkeys(self.views))
        return ("1-crop", "10-crop") if self.pooling == "fixed" else ("1-crop", "10-crop", "1-full", "2-full")

    def recipe(self) -> Recipe:
        """How the training goes."""
        from pipeline.training.pretraining import Recipe

        return Recipe(
            epochs=self.epochs,
            batch=self.batch,
            rate=self.learning_rate,
            drops=self.drops,
            patience=self.patience,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            sizes=self.sizes,
            flips=self.flips,
            colour=self.colour,
            seed=self.seed,
        )
