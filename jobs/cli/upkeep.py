"""The verbs that check and delete."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.app import ConfigOption, JsonOption, RootOption, RunOption, SetOption, app, place_of, recorded_run_of
from jobs.console.tables import print_json


@app.command()
def verify(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Re-read committed files: footers, rows, hashes, every image exactly once."""
    from storage.check import check_dataset

    place, record = recorded_run_of(config, root, run_name, set_)
    problems: dict[str, list[str]] = {}
    for dataset in record.datasets:
        problems[dataset] = [problem.text for problem in check_dataset(place, record, dataset)]
        print(f"{dataset}: " + ("good" if not problems[dataset] else f"{len(problems[dataset])} problems"))
        for line in problems[dataset]:
            print(f"  {line}")
    if any(problems.values()):
        print("`spp repair` shows what would be dropped of it, so that the next run makes it anew")
    print_json(as_json, {"run": record.name, "root": place.url, "problems": problems})
    return 1 if any(problems.values()) else 0


@app.command()
def repair(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Drop it; without it, only show.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Drop what is damaged, of one run or of all, so that the next run makes it anew: shows first, acts with --yes."""
    from jobs.run.cleanup import repair as mend

    return mend(place_of(config, root, set_), run_name, yes, as_json)


@app.command()
def gc(
    config: ConfigOption = None,
    root: RootOption = None,
    set_: SetOption = None,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="Files that are younger are kept: they may be in hand.")
    ] = 24,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete what no run refers to: shows first, acts with --yes."""
    from jobs.run.cleanup import gc as collect

    return collect(place_of(config, root, set_), grace_hours, yes, as_json)


@app.command()
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The run.")],
    config: ConfigOption = None,
    root: RootOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Drop a run; what only it needs is deleted by the next gc."""
    from jobs.run.cleanup import forget as drop

    return drop(place_of(config, root, set_), name, as_json)
