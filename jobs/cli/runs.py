"""The verbs that make something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.app import Asked, JsonOption, UntilOption, app, check_places, verb
from jobs.console.runs import print_failed, print_metrics, print_notes, print_run
from jobs.console.tables import print_json
from jobs.errors import UsageError
from jobs.run.stages import STAGES, stages_until

if TYPE_CHECKING:
    from jobs.record.invocation import Invocation
    from storage.runs import RunRecord


@verb()
def run(asked: Asked, until: UntilOption = None, as_json: JsonOption = False) -> int:
    """Every stage that is not done yet, up to --until STAGE."""
    return _run(asked, None, as_json, until=until)


@verb()
def retry(asked: Asked, until: UntilOption = None, as_json: JsonOption = False) -> int:
    """Try failed images again; what follows from them is redone, nothing else."""
    return _run(asked, None, as_json, until=until, again=True)


def _stage_verb(stage: str, summary: str) -> None:
    """The verb that runs one stage, called as the stage is."""

    def of_stage(asked: Asked, as_json: JsonOption = False) -> int:
        return _run(asked, (stage,), as_json)

    verb(stage, summary)(of_stage)


def detect(
    asked: Asked,
    voc: Annotated[str | None, typer.Option("--voc", metavar="FOLDER", help="Also write VOC comp4 files.")] = None,
    coco: Annotated[str | None, typer.Option("--coco", metavar="FILE", help="Also write COCO results JSON.")] = None,
    as_json: JsonOption = False,
) -> int:
    """The SVMs and box regressors on the proposals of the test splits."""
    check_places(voc=voc, coco=coco)
    code = _run(asked, ("detect",), as_json and not (voc or coco))
    if voc or coco:
        from jobs.evaluate.export import export

        invocation = asked.invocation()
        written = export(invocation, voc, coco)
        for path in written:
            print(path)
        print_json(as_json, {"run": invocation.name, "exit_code": code, "files": written})
    return code


def evaluate(
    asked: Asked,
    detections: Annotated[
        str | None, typer.Option("--detections", metavar="PATTERN", help="VOC result files of any detector instead.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """VOC average precision per class: of the run's detections, or of result files."""
    if detections is None:
        return _run(asked, ("evaluate",), as_json)
    from jobs.config.run_config import load_config
    from jobs.evaluate.driver import evaluate_result_files

    if asked.config is None:
        raise UsageError("--config FILE is needed: its dataset section says where the annotations are")
    check_places(detections=detections)
    measured = evaluate_result_files(load_config(asked.config, asked.overrides), detections)
    print_metrics(measured)
    print_json(as_json, measured.model_dump())
    return 0


_WITH_OPTIONS: dict[str, Callable[..., int]] = {"detect": detect, "evaluate": evaluate}
"""Stages whose verbs have options of their own."""

for _stage in STAGES:
    if _stage.name in _WITH_OPTIONS:
        verb(_stage.name, _stage.summary)(_WITH_OPTIONS[_stage.name])
    else:
        _stage_verb(_stage.name, _stage.summary)


@verb()
def classify(
    asked: Asked,
    retry: Annotated[bool, typer.Option("--retry", help="Try the images that failed again.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Whole images by linear SVMs: VOC 2007's and Caltech-101's protocols, layers by views."""
    from jobs.classify import driver as classifying
    from jobs.classify import summary as classification_summary

    invocation = asked.invocation()
    record = classifying.classify(invocation, retry)
    classification_summary.print_classification(record)
    failed = print_failed(invocation.root, record)
    notes = print_notes(invocation.root, record)
    classification = record.datasets["classification"].quality
    return _end(invocation, record, as_json, classification=classification, failed=failed, notes=notes)


@verb()
def pretrain(
    asked: Asked,
    export: Annotated[
        str | None, typer.Option("--export", metavar="FILE", help="Also write the network, as .safetensors.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Train a body and a classifier on labelled images, as on ImageNet, and test them view by view."""
    check_places(export=export)
    from jobs.pretrain import driver as pretraining

    invocation = asked.invocation()
    if export is not None:
        pretraining.check_export(export)
    record = pretraining.pretrain(invocation)
    tested = pretraining.print_pretraining(record)
    failed = print_failed(invocation.root, record)
    notes = print_notes(invocation.root, record)
    if export is not None:
        pretraining.export(invocation.root, record, export)
        print(f"features.weights: {export}")
    return _end(invocation, record, as_json, network=tested, failed=failed, notes=notes, exported=export)


@app.command()
def demo(
    folder: Annotated[str, typer.Option("--root", metavar="FOLDER", help="Where everything goes.")] = "demo",
    as_json: JsonOption = False,
) -> int:
    """Draw a small data set, run the pipeline on it, and show what came of it."""
    if "://" in folder:
        raise UsageError(f"--root {folder!r}: the demo draws its pictures into a folder of this machine")
    from jobs.demo.driver import demo as show

    return show(Path(folder), as_json)


def _end(invocation: Invocation, record: RunRecord, as_json: bool, **found: Any) -> int:
    """Print the JSON object that is asked for; returns the exit code."""
    code = record.exit_code or 0
    print_json(as_json, {"run": record.name, "root": invocation.root.url, "exit_code": code, **found})
    return code


def _run(
    asked: Asked, stages: Sequence[str] | None, as_json: bool, until: str | None = None, again: bool = False
) -> int:
    """Do ``stages``, or (None) those of a run up to ``until``."""
    from jobs.run import driver as running

    invocation = asked.invocation()
    chosen = stages_until(invocation.config, until) if stages is None else stages
    made = print_run(invocation.root, *running.run(invocation, chosen, again))
    print_json(as_json, made)
    return int(made["exit_code"])
