"""The verbs that look at what is there."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.cli.app import (
    ConfigOption,
    JsonOption,
    RootOption,
    RunOption,
    SetOption,
    UntilOption,
    app,
    invocation_of,
    listed,
    place_of,
    recorded_run_of,
)
from jobs.cli.runs import stages_until
from jobs.console.runs import metrics_of, print_metrics, print_quality, quality_of
from jobs.console.tables import cell, in_bytes, in_seconds, in_time, print_json, print_table
from jobs.errors import UsageError
from jobs.run.forecast import Forecast


@app.command()
def plan(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    until: UntilOption = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the cluster that the time is told for.")] = 0,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Its cores [8 per GPU; without GPUs, those of this machine].")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """What `spp run` would do: shards done and to do, bytes and time expected, what limits. Writes nothing."""
    from jobs.run import plan as planning

    invocation = invocation_of(config, root, run_name, set_)
    stages = stages_until(until, invocation)
    planned = planning.plan(invocation, stages)
    rows = [
        (
            entry.stage,
            entry.dataset,
            entry.method,
            f"{entry.shards_done} of {entry.shards}",
            f"{entry.images_to_do}",
            "?" if entry.bytes is None and entry.images_to_do else in_bytes(entry.bytes or 0),
            "?" if entry.seconds is None and entry.images_to_do else in_seconds(entry.seconds or 0),
        )
        for entry in planned
    ]
    print_table(("stage", "dataset", "method", "shards done", "images to do", "bytes", "worker seconds"), rows, 3)
    expected = planning.forecast_of(planned, gpus, cpus or (8 * gpus or os.cpu_count() or 1))
    print_forecast(expected)
    print_json(
        as_json,
        {
            "run": invocation.name,
            "root": invocation.root.url,
            "datasets": planning.as_json(planned),
            "forecast": asdict(expected),
        },
    )
    return 0


@app.command()
def status(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Every stage: state, images, failed images, rows, bytes, seconds."""
    from jobs.run import status as states

    place, record = recorded_run_of(config, root, run_name, set_)
    entries = states.status(place, record)
    print(f"run {record.name}: {record.status}" + (f" ({record.error})" if record.error else ""))
    rows = [
        (
            e.stage,
            e.dataset,
            e.method,
            e.state,
            f"{e.images}",
            f"{e.failed}",
            f"{e.rows:,}",
            in_bytes(e.bytes),
            in_seconds(e.seconds),
        )
        for e in entries
    ]
    print_table(("stage", "dataset", "method", "state", "images", "failed", "rows", "bytes", "worker seconds"), rows, 4)
    print_quality(record)
    print_metrics(metrics_of(record))
    print_json(
        as_json,
        {
            "run": record.name,
            "root": place.url,
            "status": record.status,
            "exit_code": record.exit_code,
            "error": record.error,
            "datasets": [asdict(entry) for entry in entries],
            "quality": quality_of(record),
            "metrics": metrics_of(record),
        },
    )
    return 0


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB SQL over the run's datasets.")],
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Rows to print; 0: all.")] = 100,
) -> int:
    """DuckDB SQL over the run's datasets: images, objects, proposals, features, truth_features."""
    import duckdb

    from storage.sql import connect

    place, record = recorded_run_of(config, root, run_name, set_)
    try:
        connection = connect(place, record.name)
        cursor = connection.execute(sql)
        columns = [column[0] for column in cursor.description or ()]
        rows = cursor.fetchmany(limit + 1) if limit else cursor.fetchall()
    except duckdb.Error as error:
        hint = ""
        if "windows" in record.datasets and "features" not in record.datasets and re.search(r"\bfeature\b", sql):
            hint = (
                "; this run stores features as conv maps, without the column feature: "
                "spp extract --set features.store=vectors makes vectors of them"
            )
        raise UsageError(f"query: {str(error).splitlines()[0]}{hint}") from error
    shown = rows[:limit] if limit else rows
    print_table(columns, [[cell(value) for value in row] for row in shown], len(columns))
    if len(rows) > len(shown):
        print(f"(the first {limit} rows; --limit 0 shows all)")
    print_json(as_json, {"columns": columns, "rows": [list(row) for row in shown]})
    return 0


@app.command()
def files(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="images, objects, proposals, features, ...")],
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print the committed Parquet paths of a dataset, one a line, for any other tool."""
    from storage.scan import files as paths_of

    place, record = recorded_run_of(config, root, run_name, set_)
    paths = paths_of(place, dataset, record.name)
    for path in paths:
        print(path)
    print_json(as_json, {"run": record.name, "dataset": dataset, "files": paths})
    return 0


@app.command()
def combine(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs to combine, two or more.")],
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    nms_overlap: Annotated[
        float, typer.Option("--nms-overlap", help="Of detections that overlap by more the best stays.")
    ] = 0.3,
    as_json: JsonOption = False,
) -> int:
    """The detections of several runs together, as run --run NAME; AP of each and of the combination."""
    from jobs.compare.combine import combine_command

    return combine_command(place_of(config, root, set_), runs, run_name, nms_overlap, sys.argv, as_json)


@app.command()
def table(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    columns: Annotated[str, typer.Option("--columns", help="Some of 1-scale,5-scale,R-CNN.")] = "1-scale,5-scale",
    rows: Annotated[
        str, typer.Option("--rows", help="Some of the rows, separated by commas.")
    ] = "pool5,fc6,ftfc6,ftfc7,ftfc7 bb",
    classification: Annotated[
        bool, typer.Option("--classification", help="Layers by views, of whole images, by the protocol of classify.")
    ] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Of --classification: also the body with random weights.")
    ] = False,
    only_print: Annotated[
        bool, typer.Option("--only-print", help="Run nothing; show the runs that are there.")
    ] = False,
    csv: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Also write the table as CSV.")] = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Also write it as Markdown.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """The paper's tables: detection, layers by scales, or classification, layers by views; runs what is missing."""
    invocation = invocation_of(config, root, run_name, set_)
    if classification:
        if only_print:
            raise UsageError("--only-print: the table of --classification runs what is missing; leave one of them out")
        from jobs.classify import table as classification_table

        made = classification_table.make_table(invocation, random)
    else:
        from jobs.compare import table as detection_table

        made = detection_table.make_table(invocation, listed(columns), listed(rows), only_print)
    return made.show(csv, markdown, as_json)


def print_forecast(expected: Forecast) -> None:
    """What is left of the map stages, in a line or two."""
    where = f"{expected.gpus} GPUs and {expected.cores} cores" if expected.gpus else f"{expected.cores} cores"
    if expected.seconds is not None:
        shares = ", ".join(f"{phase} {100 * share:.0f}%" for phase, share in expected.shares.items())
        print(
            f"with {where}: {in_bytes(expected.bytes)}, {in_time(expected.seconds)} at the pace of the shards so far; "
            f"the {expected.limit} are the bottleneck ({shares})"
        )
    if expected.unmeasured:
        print(
            f"no time is known yet for {', '.join(expected.unmeasured)}: it is learnt from the first committed shards "
            f"(give the command, interrupt it after a minute, plan again)"
        )
