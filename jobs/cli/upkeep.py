"""The verbs that check and delete."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.app import Asked, JsonOption, verb
from jobs.console.tables import print_json


@verb()
def verify(asked: Asked, as_json: JsonOption = False) -> int:
    """Re-read committed files: manifests, commits, footers, rows, hashes, every image exactly once."""
    from storage.check import check_dataset

    place, record = asked.recorded()
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


@verb()
def repair(
    asked: Asked,
    yes: Annotated[bool, typer.Option("--yes", help="Drop it; without it, only show.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Drop what is damaged, of one run or of all, so that the next run makes it anew: shows first, acts with --yes."""
    from jobs.run.cleanup import repair as mend

    return mend(asked.place(), asked.run, yes, as_json)


@verb(of_a_run=False)
def gc(
    asked: Asked,
    grace_hours: Annotated[
        float, typer.Option("--grace-hours", min=0, help="Files that are younger are kept: they may be in hand.")
    ] = 24,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only show.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete what no run refers to: shows first, acts with --yes."""
    from jobs.run.cleanup import gc as collect

    return collect(asked.place(), grace_hours, yes, as_json)


@verb(of_a_run=False)
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The run.")], asked: Asked, as_json: JsonOption = False
) -> int:
    """Drop a run; what only it needs is deleted by the next gc."""
    from jobs.run.cleanup import forget as drop

    return drop(asked.place(), name, as_json)
