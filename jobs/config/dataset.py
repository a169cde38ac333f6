"""The section ``dataset``: where images and annotations are, and which splits are used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.config.settings import ADDED_LATER, NOT_IDENTITY, Settings


class DatasetConfig(Settings):
    """The ``dataset:`` section of the config."""

    path: str = Field(min_length=1, json_schema_extra=NOT_IDENTITY)
    """Folder or URL with JPEGImages/, Annotations/ and ImageSets/Main/, or with several such (VOC2007/, VOC2012/); of
    other layouts see ``layout``."""
    layout: Literal["voc", "folder", "table"] = Field("voc", json_schema_extra=ADDED_LATER)
    """voc: as above; folder: images in folders named after their classes, [split/]class/image; table: Parquet files
    with a column of encoded images and one of labels. Of the last two each image is one object that fills it."""
    image_column: str = Field("image", json_schema_extra=ADDED_LATER)
    """Of layout table: the column of encoded images."""
    label_column: str = Field("label", json_schema_extra=ADDED_LATER)
    """Of layout table: the column of class names, or of their numbers."""
    train_splits: tuple[str, ...] = Field(("trainval",), json_schema_extra=NOT_IDENTITY)
    """Splits whose ground truth models are trained on; files of ImageSets/Main without .txt."""
    test_splits: tuple[str, ...] = Field(("test",), json_schema_extra=NOT_IDENTITY)
    """Splits that are only ever tested on."""
    classes: tuple[str, ...] | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """Classes whose objects are kept, in the layouts folder and table whose images; every class by default."""
    digest: Literal["content", "listing"] = "content"
    """An image's identity: its bytes, or (for very large stores) its listing: size and time or ETag."""
    storage_options: dict[str, Any] = Field(default_factory=dict, json_schema_extra=NOT_IDENTITY)
    """For the file system of ``path``; as ``env:NAME`` all but what is known to hold no secret."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that is indexed."""
        return tuple(dict.fromkeys((*self.train_splits, *self.test_splits)))
