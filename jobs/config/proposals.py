"""The section ``proposals``: how boxes are made, or the file that they come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from jobs.config.settings import NOT_IDENTITY, Settings

if TYPE_CHECKING:
    from pipeline.proposals.box_files import BoxConvention
    from pipeline.proposals.methods import ProposalMethod


_PARAMETERS = {
    "fast": ("colours", "ks", "similarities", "sigma", "prune"),
    "opencv": ("base_k", "inc_k", "sigma"),
    "selectivesearch": ("scale", "sigma", "min_size"),
}
_OF_FILE = ("order", "base", "inclusive")
_OF_SEARCH = ("min_side", "max_side", "seed")


class ProposalsConfig(Settings):
    """The ``proposals:`` section of the config."""

    method: Literal["fast", "opencv", "selectivesearch", "file"] = "fast"
    """fast: selective search, fast mode (docs/proposals.md). opencv: that of ximgproc. selectivesearch: the PyPI
    package, few boxes. file: boxes computed elsewhere."""
    file: str | None = Field(None, json_schema_extra=NOT_IDENTITY)
    """file: path or URL of a .parquet (image_id, x1 y1 x2 y2 or box, perhaps score) or of a .mat of the R-CNN family
    (images, boxes). Its content counts, not its place. Read with dataset.storage_options."""
    order: Literal["xyxy", "yxyx"] | None = None
    """file: how a box is written, [x1 y1 x2 y2] or [y1 x1 y2 x2]. Must be given."""
    base: Literal[0, 1] | None = None
    """file: number of the first pixel. Must be given."""
    inclusive: bool | None = None
    """file: true if x2 and y2 are a box's last pixels, false if they are the first after it. Must be given."""
    colours: tuple[Literal["hsv", "lab", "rgb"], ...] | None = Field(None, min_length=1)
    """fast: the colour spaces that are segmented (hsv, lab)."""
    ks: tuple[Annotated[int, Field(strict=True, ge=10, le=1 << 25)], ...] | None = Field(None, min_length=1)
    """fast: k of the segmentations in each colour space, and the smallest segment in pixels (50, 100). From 10 on; the
    smaller, the more boxes, and the time grows with their square."""
    similarities: tuple[Literal["ctsf", "tsf"], ...] | None = Field(None, min_length=1)
    """fast: how each segmentation is grouped, with colour (ctsf) or without (tsf) (ctsf, tsf)."""
    prune: bool | None = None
    """fast: leave out pixel edges that no minimum spanning tree needs, for speed (false)."""
    base_k: int | None = Field(None, ge=1)
    """opencv: smallest k of the segmentations (50)."""
    inc_k: int | None = Field(None, ge=1)
    """opencv: step to the second and third k (50)."""
    sigma: float | None = Field(None, ge=0, le=16)
    """fast, opencv, selectivesearch: blur before segmenting (0.8)."""
    scale: float | None = Field(None, gt=0)
    """selectivesearch: k of its one segmentation (500)."""
    min_size: int | None = Field(None, ge=1)
    """selectivesearch: smallest segment in pixels (50)."""
    min_side: int = Field(20, ge=1)
    """All but file: boxes with a side below so many pixels of the searched image are dropped."""
    max_per_image: int = Field(2000, ge=1)
    """The first so many boxes are kept, in the method's own ranking."""
    max_side: int | None = Field(500, ge=32)
    """All but file: longer images are searched at this size."""
    seed: int = 0
    """All but file: of the ranking; hashed with the image id."""

    @field_validator("base", mode="before")
    @classmethod
    def _true_is_not_one(cls, base: Any) -> Any:
        if base is not None and type(base) is not int:
            raise ValueError("give 0 or 1")
        return base

    @model_validator(mode="after")
    def _parameters_belong_to_the_method(self) -> ProposalsConfig:
        for name in dict.fromkeys(name for names in _PARAMETERS.values() for name in names):
            if getattr(self, name) is not None and name not in _PARAMETERS.get(self.method, ()):
                owners = [method for method, names in _PARAMETERS.items() if name in names]
                raise ValueError(f"{name} belongs to method {' or '.join(owners)}, but method is {self.method}")
        for name in ("colours", "ks", "similarities"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must not repeat a value: {list(values)}")
        of_file = {name: getattr(self, name) for name in ("file", *_OF_FILE)}
        if self.method != "file":
            for name, value in of_file.items():
                if value is not None:
                    raise ValueError(f"{name} belongs to method file, but method is {self.method}")
            return self
        missing = [name for name, value in of_file.items() if value is None]
        if missing:
            raise ValueError(f"method file needs {', '.join(missing)}: say how its boxes are meant, none is guessed")
        if not str(self.file).lower().endswith((".parquet", ".mat")):
            raise ValueError(f"file must end in .parquet or .mat, not {self.file!r}")
        for name in _OF_SEARCH:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to methods that search, but method is file")
        return self

    def convention(self) -> BoxConvention:
        """How the boxes of the file are meant."""
        from pipeline.proposals.box_files import BoxConvention

        assert self.order is not None
        assert self.base is not None
        assert self.inclusive is not None
        return BoxConvention(self.order, self.base, self.inclusive)

    def proposal_method(self) -> ProposalMethod:
        """The method with its parameters, of those that search."""
        from pipeline.proposals.methods import AlpacaSelectiveSearch, OpenCVSelectiveSearch
        from pipeline.proposals.selective_search import SelectiveSearch

        given = {name: getattr(self, name) for name in _PARAMETERS[self.method]}
        given = {name: value for name, value in given.items() if value is not None}
        if self.method == "fast":
            return SelectiveSearch(**given)
        if self.method == "opencv":
            return OpenCVSelectiveSearch(**given)
        return AlpacaSelectiveSearch(**given)

    def identity(self) -> dict[str, Any]:
        """The method's own parameters, defaults filled in, and what all methods share."""
        values = super().identity()
        for name in {*_OF_FILE, *(name for names in _PARAMETERS.values() for name in names)}:
            del values[name]
        if self.method == "file":
            for name in _OF_SEARCH:
                del values[name]
            return {**values, "parameters": asdict(self.convention())}
        return {**values, "parameters": asdict(self.proposal_method())}  # type: ignore[call-overload]
