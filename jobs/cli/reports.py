"""The verbs that look at what is there."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.cli.app import (
    Asked,
    ConfigOption,
    JsonOption,
    RootOption,
    RunOption,
    SetOption,
    UntilOption,
    app,
    listed,
    recorded_run_of,
    verb,
)
from jobs.console.runs import metrics_of, print_metrics, print_quality, quality_of
from jobs.console.tables import cell, in_bytes, in_seconds, print_json, print_table
from jobs.errors import UsageError


@verb()
def plan(
    asked: Asked,
    until: UntilOption = None,
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the cluster that the time is told for.")] = 0,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Its cores [8 per GPU; without GPUs, those of this machine].")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """What `spp run` would do: shards done and to do, bytes and time expected, what limits. Writes nothing."""
    from jobs.run.plan import report

    return report(asked.invocation(), until, gpus, cpus).show(as_json)


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


@verb()
def files(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="images, objects, proposals, features, ...")],
    asked: Asked,
    as_json: JsonOption = False,
) -> int:
    """Print the committed Parquet paths of a dataset, one a line, for any other tool."""
    from storage.scan import files as paths_of

    place, record = asked.recorded()
    paths = paths_of(place, dataset, record.name)
    for path in paths:
        print(path)
    print_json(as_json, {"run": record.name, "dataset": dataset, "files": paths})
    return 0


@verb()
def combine(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs to combine, two or more.")],
    asked: Asked,
    nms_overlap: Annotated[
        float, typer.Option("--nms-overlap", help="Of detections that overlap by more the best stays.")
    ] = 0.3,
    as_json: JsonOption = False,
) -> int:
    """The detections of several runs together, as run --run NAME; AP of each and of the combination."""
    from jobs.compare.combine import combine_command

    return combine_command(asked.place(), runs, asked.run, nms_overlap, sys.argv, as_json)


@verb()
def table(
    asked: Asked,
    *,
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
    invocation = asked.invocation()
    if classification:
        if only_print:
            raise UsageError("--only-print: the table of --classification runs what is missing; leave one of them out")
        from jobs.classify import table as classification_table

        made = classification_table.make_table(invocation, random)
    else:
        from jobs.compare import table as detection_table

        made = detection_table.make_table(invocation, listed(columns), listed(rows), only_print)
    return made.show(as_json, csv, markdown)
