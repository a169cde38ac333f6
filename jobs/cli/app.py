"""What the verbs share: the application, its options, and what they stand for."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console.log import configure
from jobs.errors import UsageError

if TYPE_CHECKING:
    from jobs.record.invocation import Invocation
    from storage.root import Root
    from storage.runs import RunRecord


app = typer.Typer(
    name="spp",
    help="SPP-net feature extraction on Ray: images in, committed SPP features out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback()
def _every_verb(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what must be looked into.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more: what is there, what is made.")] = False,
) -> None:
    if quiet and verbose:
        raise UsageError("--quiet and --verbose: give one of them")
    configure(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML config of the run.")]
RootOption = Annotated[
    str | None, typer.Option("--root", metavar="URL", help="Folder or fsspec URL of all datasets (or set SPP_ROOT).")
]
RunOption = Annotated[str | None, typer.Option("--run", metavar="NAME", help="Name of the run [the config's name].")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a key of the config; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="STAGE", help="Last stage: index, propose, extract, ...")
]


@dataclass(frozen=True)
class Asked:
    """What the options that nearly every verb has say: --config, --root, --run, --set."""

    config: str | None = None
    root: str | None = None
    run: str | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_places(config=self.config)

    def invocation(self) -> Invocation:
        """What a command that makes something needs. UsageError without a config."""
        from jobs.config.run_config import load_config
        from jobs.record.invocation import Invocation
        from storage.root import open_root

        if self.config is None:
            raise UsageError("--config FILE is needed; configs/ holds examples")
        loaded = load_config(self.config, self.overrides)
        place = open_root(self._url(), loaded.storage_options)
        return Invocation(loaded, place, self.run or Path(self.config).stem, tuple(sys.argv))

    def place(self) -> Root:
        """The root; a config is only needed for its storage options, and for ``overrides`` to change."""
        from storage.root import open_root

        options = {}
        if self.config is not None:
            from jobs.config.run_config import load_config

            options = load_config(self.config, self.overrides).storage_options
        elif self.overrides:
            raise UsageError("--set changes a config: give --config FILE too")
        return open_root(self._url(), options)

    def recorded(self) -> tuple[Root, RunRecord]:
        """Root and record of a run. A config is only needed for its name, or for the root's storage options."""
        from storage.runs import read_run

        place = self.place()
        return place, read_run(place, self.run or (Path(self.config).stem if self.config is not None else None))

    def _url(self) -> str:
        url = self.root or os.environ.get("SPP_ROOT")
        if not url:
            raise UsageError("--root URL is needed (or set SPP_ROOT): a folder, s3://bucket/path, ...")
        return url


def verb(name: str | None = None, summary: str | None = None, *, of_a_run: bool = True) -> Callable[..., Any]:
    """Make a function a verb, with the options that its parameter ``asked`` stands for.

    ``of_a_run``: --run is one of them.
    """
    options = {"config": ConfigOption, "root": RootOption, "run": RunOption, "overrides": SetOption}
    if not of_a_run:
        del options["run"]

    def register(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def called(**given: Any) -> int:
            values = {key: given.pop(key) for key in options}
            asked = Asked(**{**values, "overrides": tuple(values["overrides"] or ())})
            return function(asked=asked, **given)

        parameters: list[inspect.Parameter] = []
        for one in inspect.signature(function, eval_str=True).parameters.values():
            shared = options.items() if one.name == "asked" else ()
            parameters += [inspect.Parameter(key, one.KEYWORD_ONLY, default=None, annotation=o) for key, o in shared]
            parameters += [] if one.name == "asked" else [one.replace(kind=one.KEYWORD_ONLY)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        app.command(name, help=summary)(called)
        return function

    return register


def check_places(**places: str | None) -> None:
    """StorageError, which does not repeat it, for a secret in a path or URL; by option. Commands are recorded."""
    from storage.root import check_url

    for option, place in places.items():
        if place is not None:
            check_url(f"--{option}", place)


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
