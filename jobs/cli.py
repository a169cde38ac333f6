"""The command line: ``spp VERB``, the same as ``python -m jobs VERB``.

Results go to standard output, logs and progress to standard error; ``--json`` makes the last line of standard output
one JSON object. Exit codes: 0 done; 1 failed; 2 usage or config; 3 done, but with failed images.

A verb imports what it needs when it is called, so that ``--help`` loads neither a store nor a stage.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import RunFailed, UsageError
from jobs.printing import (
    cell,
    in_bytes,
    in_seconds,
    metrics_of,
    print_failed,
    print_forecast,
    print_json,
    print_metrics,
    print_quality,
    print_run,
    print_table,
    quality_of,
    write_texts,
)

if TYPE_CHECKING:
    from storage.root import Root
    from storage.runs import RunRecord

# typer brings its own copy of click or uses the installed one, depending on its version
_click = sys.modules[typer.BadParameter.__module__]

app = typer.Typer(
    name="spp",
    help="SPP-net feature extraction on Ray: images in, committed SPP features out.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

_INTERRUPT = 130
"""What typer makes of Ctrl-C."""
_INTERRUPTED = "interrupted; the same command goes on where it stopped"

ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML config of the run.")]
RootOption = Annotated[
    str | None, typer.Option("--root", metavar="URL", help="Folder or fsspec URL of all datasets (or set SPP_ROOT).")
]
RunOption = Annotated[str | None, typer.Option("--run", metavar="NAME", help="Name of the run [the config's name].")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change a key of the config; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
UntilOption = Annotated[str, typer.Option("--until", metavar="STAGE", help="Last stage: index, propose, extract, ...")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. A user's mistake is one line on standard error."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as Ctrl-C ends it
    try:
        outcome = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        if outcome == _INTERRUPT:
            return _complain(_INTERRUPTED, 1)
        return outcome if isinstance(outcome, int) else 0
    except _click.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except _click.ClickException as error:
        return _complain(_usage_message(error), 2)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _complain(_INTERRUPTED, 1)
    except RunFailed as error:
        return _complain(str(error), 1)
    except _mistakes() as error:
        return _complain(str(error), 2)
    except _outages() as error:
        return _complain(f"{type(error).__name__}: {error}; mend that and run the same command again", 1)


def _mistakes() -> tuple[type[Exception], ...]:
    """What a user can mend."""
    from storage.root import StorageError

    return UsageError, StorageError


def _outages() -> tuple[type[Exception], ...]:
    """What a store raises that cannot be reached or refuses."""
    from storage.root import store_errors

    return store_errors()


@app.command()
def run(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    until: UntilOption = "evaluate",
    as_json: JsonOption = False,
) -> int:
    """Every stage that is not done yet, up to --until STAGE."""
    return _run(config, root, run_name, set_, None, as_json, until=until)


@app.command()
def retry(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    until: UntilOption = "evaluate",
    as_json: JsonOption = False,
) -> int:
    """Try failed images again; what follows from them is redone, nothing else."""
    return _run(config, root, run_name, set_, None, as_json, until=until, again=True)


def _stage_verb(stage: str, summary: str) -> None:
    """The verb that runs one stage, called as the stage is."""

    def verb(
        config: ConfigOption = None,
        root: RootOption = None,
        run_name: RunOption = None,
        set_: SetOption = None,
        as_json: JsonOption = False,
    ) -> int:
        return _run(config, root, run_name, set_, (stage,), as_json)

    app.command(stage, help=summary)(verb)


_stage_verb("index", "Read the data set: tables images and objects.")
_stage_verb("propose", "Boxes that may hold an object; recall and MABO per split.")
_stage_verb("extract", "One vector per proposal, and per ground-truth box of the training splits.")
_stage_verb("finetune", "Train the head fc6, fc7, fc8 on windows of the training images.")
_stage_verb("embed", "Store the outputs of a layer of the head (svm.layer).")
_stage_verb("train-svm", "One linear SVM per class, with hard negatives.")
_stage_verb("train-bbox", "One box regressor per class.")


@app.command()
def detect(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    voc: Annotated[str | None, typer.Option("--voc", metavar="FOLDER", help="Also write VOC comp4 files.")] = None,
    coco: Annotated[str | None, typer.Option("--coco", metavar="FILE", help="Also write COCO results JSON.")] = None,
    as_json: JsonOption = False,
) -> int:
    """The SVMs and box regressors on the proposals of the test splits."""
    code = _run(config, root, run_name, set_, ("detect",), as_json and not (voc or coco))
    if voc or coco:
        from jobs.export import export

        invocation = _invocation(config, root, run_name, set_)
        written = export(invocation, voc, coco)
        for path in written:
            print(path)
        print_json(as_json, {"run": invocation.name, "exit_code": code, "files": written})
    return code


@app.command()
def evaluate(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    detections: Annotated[
        str | None, typer.Option("--detections", metavar="PATTERN", help="VOC result files of any detector instead.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """VOC average precision per class: of the run's detections, or of result files."""
    if detections is None:
        return _run(config, root, run_name, set_, ("evaluate",), as_json)
    from jobs.config import load_config
    from jobs.evaluation import evaluate_result_files

    if config is None:
        raise UsageError("--config FILE is needed: its dataset section says where the annotations are")
    measured = evaluate_result_files(load_config(config, set_ or ()), detections)
    print_metrics(measured)
    print_json(as_json, measured)
    return 0


@app.command()
def plan(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    until: UntilOption = "evaluate",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the cluster that the time is told for.")] = 0,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Its cores [8 per GPU; without GPUs, those of this machine].")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """What `spp run` would do: shards done and to do, bytes and time expected, what limits. Writes nothing."""
    from jobs import plan as planning

    invocation = _invocation(config, root, run_name, set_)
    stages = _stages_until(until, invocation)
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
    from jobs import status as states

    place, record = _recorded(config, root, run_name, set_)
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
def verify(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Re-read committed files: footers, rows, hashes, every image exactly once."""
    from storage.check import check_dataset

    place, record = _recorded(config, root, run_name, set_)
    problems: dict[str, list[str]] = {}
    for dataset in record.datasets:
        problems[dataset] = list(check_dataset(place, record, dataset))
        print(f"{dataset}: " + ("good" if not problems[dataset] else f"{len(problems[dataset])} problems"))
        for line in problems[dataset]:
            print(f"  {line}")
    print_json(as_json, {"run": record.name, "root": place.url, "problems": problems})
    return 1 if any(problems.values()) else 0


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

    place, record = _recorded(config, root, run_name, set_)
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

    place, record = _recorded(config, root, run_name, set_)
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
    from jobs.combine import combine_command

    return combine_command(_place(config, root, set_), runs, run_name, nms_overlap, sys.argv, as_json)


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
    invocation = _invocation(config, root, run_name, set_)
    if classification:
        if only_print:
            raise UsageError("--only-print: the table of --classification runs what is missing; leave one of them out")
        from jobs import classification_table

        shown = classification_table.make_table(invocation, random)
        classification_table.print_text(shown)
        write_texts(
            {
                csv: lambda: classification_table.as_csv(shown),
                markdown: lambda: classification_table.markdown(shown),
            }
        )
        values = classification_table.as_json(shown)
        print_json(as_json, {"run": invocation.name, "root": invocation.root.url, **values})
        return shown.exit_code
    from jobs import table as tables

    made = tables.make_table(invocation, _listed(columns), _listed(rows), only_print)
    tables.print_text(made)
    write_texts({csv: lambda: tables.as_csv(made), markdown: lambda: tables.markdown(made)})
    print_json(as_json, {"run": invocation.name, "root": invocation.root.url, **tables.as_json(made)})
    return made.exit_code


@app.command()
def classify(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try the images that failed again.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Whole images by linear SVMs: VOC 2007's and Caltech-101's protocols, layers by views."""
    from jobs import classification_summary, classifying

    invocation = _invocation(config, root, run_name, set_)
    record = classifying.classify(invocation, retry)
    classification_summary.print_classification(record)
    print_failed(invocation.root, record)
    print_json(
        as_json,
        {
            "run": record.name,
            "root": invocation.root.url,
            "exit_code": record.exit_code or 0,
            "classification": record.datasets["classification"].quality,
        },
    )
    return record.exit_code or 0


@app.command()
def pretrain(
    config: ConfigOption = None,
    root: RootOption = None,
    run_name: RunOption = None,
    set_: SetOption = None,
    export: Annotated[
        str | None, typer.Option("--export", metavar="FILE", help="Also write the network, as .safetensors.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Train a body and a classifier on labelled images, as on ImageNet, and test them view by view."""
    from jobs import pretraining

    invocation = _invocation(config, root, run_name, set_)
    if export is not None:
        pretraining.check_export(export)
    record = pretraining.pretrain(invocation)
    tested = pretraining.print_pretraining(record)
    print_failed(invocation.root, record)
    if export is not None:
        pretraining.export(invocation.root, record, export)
        print(f"features.weights: {export}")
    print_json(
        as_json,
        {
            "run": record.name,
            "root": invocation.root.url,
            "exit_code": record.exit_code or 0,
            "network": tested,
            "exported": export,
        },
    )
    return record.exit_code or 0


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
    from jobs.cleanup import gc as collect

    return collect(_place(config, root, set_), grace_hours, yes, as_json)


@app.command()
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The run.")],
    config: ConfigOption = None,
    root: RootOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Drop a run; what only it needs is deleted by the next gc."""
    from jobs.cleanup import forget as drop

    return drop(_place(config, root, set_), name, as_json)


@app.command()
def demo(
    folder: Annotated[str, typer.Option("--root", metavar="FOLDER", help="Where everything goes.")] = "demo",
    as_json: JsonOption = False,
) -> int:
    """Draw a small data set, run the pipeline on it, and show what came of it."""
    if "://" in folder:
        raise UsageError(f"--root {folder!r}: the demo draws its pictures into a folder of this machine")
    from jobs.demo import demo as show

    return show(Path(folder), as_json)


def _stages_until(last: str, invocation: Any) -> Sequence[str]:
    from jobs.stages import STAGES, run_stages

    if last not in STAGES:
        raise UsageError(f"--until {last!r}: the stages are {', '.join(STAGES)}")
    return run_stages(invocation.config, last)


def _run(
    config: str | None,
    root: str | None,
    name: str | None,
    overrides: list[str] | None,
    stages: Sequence[str] | None,
    as_json: bool,
    until: str = "evaluate",
    again: bool = False,
) -> int:
    """Do ``stages``, or (None) those of a run up to ``until``."""
    from jobs import run as running

    invocation = _invocation(config, root, name, overrides)
    chosen = _stages_until(until, invocation) if stages is None else stages
    record = running.run(invocation, chosen, again)
    made = print_run(invocation.root, record)
    print_json(as_json, made)
    return int(made["exit_code"])


def _invocation(config: str | None, root: str | None, name: str | None, overrides: list[str] | None) -> Any:
    from jobs.config import load_config
    from jobs.stages import Invocation
    from storage.root import open_root

    if config is None:
        raise UsageError("--config FILE is needed; configs/ holds examples")
    loaded = load_config(config, overrides or ())
    place = open_root(_root_url(root), loaded.storage_options)
    return Invocation(loaded, place, name or Path(config).stem, tuple(sys.argv))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _place(config: str | None, root: str | None, overrides: list[str] | None) -> Root:
    """The root; a config is only needed for its storage options."""
    from storage.root import open_root

    options = {}
    if config is not None:
        from jobs.config import load_config

        options = load_config(config, overrides or ()).storage_options
    return open_root(_root_url(root), options)


def _recorded(
    config: str | None, root: str | None, name: str | None, overrides: list[str] | None
) -> tuple[Root, RunRecord]:
    """Root and record of a run. A config is only needed for its name, or for the root's storage options."""
    from storage.runs import read_run

    place = _place(config, root, overrides)
    return place, read_run(place, name or (Path(config).stem if config is not None else None))


def _root_url(root: str | None) -> str:
    url = root or os.environ.get("SPP_ROOT")
    if not url:
        raise UsageError("--root URL is needed (or set SPP_ROOT): a folder, s3://bucket/path, ...")
    return url


def _usage_message(error: Any) -> str:
    message = " ".join(error.format_message().split())
    if isinstance(error, _click.UsageError) and message.startswith("No such command"):
        typed = message.split("'")[1] if "'" in message else ""
        verbs = sorted(name for name in typer.main.get_command(app).commands)  # type: ignore[attr-defined]
        close = difflib.get_close_matches(typed, verbs, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        return f"unknown verb {typed!r};{hint} verbs: {', '.join(verbs)}"
    return message


def _complain(message: str, code: int) -> int:
    print(f"spp: error: {' '.join(message.split())}", file=sys.stderr)
    return code
