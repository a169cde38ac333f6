"""The section ``classify``: whole images by SVMs on the layers of a network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from jobs.config.settings import Settings
from pipeline.images.view import View

CALTECH_TEST = 50
"""Test images of a class, at most, in the Caltech-101 protocol (paper 3.3)."""


class ClassifyConfig(Settings):
    """The ``classify:`` section of the config."""

    protocol: Literal["voc07", "caltech101", "folder"] = "folder"
    """voc07: average precision per class on the test splits; caltech101 and folder: accuracy on random splits."""
    views: tuple[str, ...] = ("crop", "full-224")
    """crop: 224 x 224 from the centre of the image at short side 256; warp: the whole image squeezed into 224 x 224
    (or what the body was trained at, and the short side in proportion);
    full-S: the whole image at short side S."""
    layers: tuple[str, ...] | None = None
    """Some of the body's layers (conv4, conv5, pool, spp, fc6, fc7; c4, c5 of the efficientnets); null: all."""
    C: float = Field(1.0, gt=0)
    """Weight of the losses against the regulariser; vectors are divided by their norm."""
    bias: float = Field(1.0, gt=0)
    """Value of the feature whose weight is the bias; the larger, the less the bias is regularised."""
    solver: Literal["auto", "gram", "sklearn"] = "auto"
    """gram: over the products of the images; sklearn: LinearSVC on the vectors; auto: gram while the images are fewer
    than twice the dimensions and their products fit ``memory_mb``."""
    tolerance: float = Field(1e-3, gt=0)
    """The solver's; of gram: how far, relatively, the objective may be from its minimum."""
    train_per_class: int = Field(30, ge=1)
    """Of random splits: images of each class to train on."""
    test_per_class: int | None = Field(None, ge=1)
    """Of random splits: images of each class to test on, at most; null: 50 in caltech101, all others in folder."""
    splits: int = Field(10, ge=1)
    """Number of random splits."""
    seed: int = Field(0, ge=0)
    """Draws the random splits. The paper's protocol fixes none: results of another seed differ by chance alone."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the training images on which the best short side of full views is chosen."""
    memory_mb: int = Field(6000, ge=1)
    """Memory of one task: the vectors of a layer and view, and the products of all images."""
    no_spp_weights: str | None = None
    """Of `spp table --classification`: weights of the body trained without SPP, for the first column."""

    @field_validator("views")
    @classmethod
    def _views_are_views(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if not views or len(set(views)) != len(views):
            raise ValueError("give one or more distinct views, such as [crop, full-224]")
        for text in views:
            View.parse(text)
        return views

    @property
    def most_tested(self) -> int | None:
        """Test images of a class, at most."""
        return CALTECH_TEST if self.protocol == "caltech101" and self.test_per_class is None else self.test_per_class

    def measuring(self) -> dict[str, Any]:
        """The values that decide what is measured of stored layers."""
        values = self.identity()
        for key in ("memory_mb", "no_spp_weights", "views", "layers"):
            del values[key]
        return values
