"""What the verbs share: the application, its options, and what they stand for."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console.log import configure
from jobs.errors import UsageError

if TYPE_CHECKING:
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


def invocation_of(config: str | None, root: str | None, name: str | None, overrides: list[str] | None) -> Any:
    from jobs.config.run_config import load_config
    from jobs.record.invocation import Invocation
    from storage.root import open_root

    if config is None:
        raise UsageError("--config FILE is needed; configs/ holds examples")
    check_places(config=config)
    loaded = load_config(config, overrides or ())
    place = open_root(_root_url(root), loaded.storage_options)
    return Invocation(loaded, place, name or Path(config).stem, tuple(sys.argv))


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def place_of(config: str | None, root: str | None, overrides: list[str] | None) -> Root:
    """The root; a config is only needed for its storage options, and for ``overrides`` to change."""
    from storage.root import open_root

    options = {}
    if config is not None:
        from jobs.config.run_config import load_config

        check_places(config=config)
        options = load_config(config, overrides or ()).storage_options
    elif overrides:
        raise UsageError("--set changes a config: give --config FILE too")
    return open_root(_root_url(root), options)


def recorded_run_of(
    config: str | None, root: str | None, name: str | None, overrides: list[str] | None
) -> tuple[Root, RunRecord]:
    """Root and record of a run. A config is only needed for its name, or for the root's storage options."""
    from storage.runs import read_run

    place = place_of(config, root, overrides)
    return place, read_run(place, name or (Path(config).stem if config is not None else None))


def check_places(**places: str | None) -> None:
    """StorageError, which does not repeat it, for a secret in a path or URL; by option. Commands are recorded."""
    from storage.root import check_url

    for option, place in places.items():
        if place is not None:
            check_url(f"--{option}", place)


def _root_url(root: str | None) -> str:
    url = root or os.environ.get("SPP_ROOT")
    if not url:
        raise UsageError("--root URL is needed (or set SPP_ROOT): a folder, s3://bucket/path, ...")
    return url
