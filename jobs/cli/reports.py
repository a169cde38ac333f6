"""The verbs that look at what is there."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.cli.app import Asked, JsonOption, UntilOption, check_places, listed, verb
from jobs.console.answers import print_answer
from jobs.console.runs import metrics_of, print_metrics, print_quality, quality_of, tell_notes
from jobs.console.tables import in_bytes, in_seconds, print_json, print_table
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


@verb()
def status(
    asked: Asked,
    as_json: JsonOption = False,
) -> int:
    """Every stage: state, images, failed images, notes, rows, bytes, seconds."""
    from jobs.run import status as states
    from storage.secrets import redacted

    place, record = asked.recorded()
    entries = states.status(place, record)
    print(f"run {record.name}: {record.status}" + (f" ({redacted(record.error)})" if record.error else ""))
    rows = [
        (
            e.stage,
            e.dataset,
            e.method,
            e.state,
            f"{e.images}",
            f"{e.failed}",
            f"{e.note_count}",
            f"{e.rows:,}",
            in_bytes(e.bytes),
            f"{e.passes:,}" if e.passes else "",
            in_seconds(e.seconds),
        )
        for e in entries
    ]
    columns = (
        *("stage", "dataset", "method", "state", "images", "failed", "notes", "rows", "bytes"),
        *("passes", "worker seconds"),
    )
    print_table(columns, rows, 4)
    print_quality(record)
    print_metrics(metrics_of(record))
    notes = tell_notes([note for entry in entries for note in entry.notes], place, record)
    print_json(
        as_json,
        {
            "run": record.name,
            "root": place.url,
            "status": record.status,
            "exit_code": record.exit_code,
            "error": record.error,
            "datasets": [{**asdict(entry), "notes": entry.note_count} for entry in entries],
            "quality": quality_of(record),
            "metrics": metrics_of(record),
            "notes": notes,
        },
    )
    return 0


@verb()
def notes(
    asked: Asked,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="DATASET", help="Of this dataset alone: images, proposals, ...")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Failed images alone.")] = False,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Rows to print; 0: all.")] = 100,
) -> int:
    """Every failed image and every note of a run, one by one, with its reason."""
    from jobs.run.ledger import ledger_rows

    place, record = asked.recorded()
    columns = "stage", "dataset", "image_id", "level", "type", "message"
    shown, count = [], 0
    for row in ledger_rows(place, record, dataset):
        if failed and row["level"] != "failed":
            continue
        count += 1
        if not limit or count <= limit:
            shown.append({column: row[column] for column in columns})
    if shown:
        print_table(columns, [[row[column] for column in columns] for row in shown], len(columns))
    if len(shown) < count:
        print(f"(the first {limit:,} of {count:,} rows; --limit 0 shows all)")
    elif not count:
        print("no failed image" + ("" if failed else ", and no note"))
    print_json(as_json, {"run": record.name, "root": place.url, "rows": count, "notes": shown})
    return 0


@verb()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB SQL over the run's datasets.")],
    asked: Asked,
    *,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Rows to print; 0: all.")] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=0.001, help="Time after which it is stopped.")] = 600,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.001, metavar="GB", help="At most [40% of the machine's].")
    ] = None,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Any SQL: it may write files, and read all that you can. No limits.")
    ] = False,
) -> int:
    """DuckDB SQL over the run's datasets: images, objects, proposals, features, truth_features. It reads no more."""
    from storage.sql import Limits, ask

    place, record = asked.recorded()
    limits = Limits(seconds, None if memory is None else int(memory * 1e9))
    print_answer(ask(place, record, sql, limit, limits, unsafe), as_json)
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
    check_places(csv=csv, markdown=markdown)
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
