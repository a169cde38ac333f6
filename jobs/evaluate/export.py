"""Detections for other tools: VOC comp4 files, and COCO results JSON. Written to a folder, a file, or fsspec URLs."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable

import fsspec
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.evaluate.driver import stored_detections
from jobs.record.invocation import Invocation
from pipeline.measures.result_files import coco_categories, coco_category_ids, coco_lines, voc_file_name, voc_lines
from storage.columns import boxes_of
from storage.root import check_chain
from storage.runs import read_run


def export(invocation: Invocation, voc: str | None, coco: str | None) -> list[str]:
    """Write a run's detections to the folder ``voc`` and the file ``coco``; returns what was written.

    COCO wants numbers: classes are counted from 1 in alphabetical order, and ``categories`` stand beside the results,
    in a file of the same name that ends in ``.categories.json``; image ids stay strings, as they are here.
    """
    record = read_run(invocation.root, invocation.name)
    table = stored_detections(invocation.root, record)
    classes = recorded_index(invocation.root, record).class_names()
    written = []
    try:
        if voc is not None:
            split = "-".join(invocation.config.dataset.test_splits)
            for name in classes:
                own = table.filter(pc.equal(table["class_name"], name))
                lines = voc_lines(own["image_id"].to_pylist(), own["score"].to_numpy(), boxes_of(own["box"]))
                written.append(_write(posixpath.join(voc, voc_file_name(split, name)), lines))
        if coco is not None:
            numbers = coco_category_ids(classes)
            names = table["class_name"].to_pylist()
            scores, boxes = table["score"].to_numpy(), boxes_of(table["box"])
            written.append(_write(coco, coco_lines(table["image_id"].to_pylist(), names, scores, boxes, numbers)))
            categories = json.dumps(coco_categories(numbers), indent=1)
            written.append(_write(f"{posixpath.splitext(coco)[0]}.categories.json", [f"{categories}\n"]))
    except ValueError as error:
        raise UsageError(f"detect: {error}") from error
    return written


def _write(url: str, lines: Iterable[str]) -> str:
    check_chain(url, "--voc, --coco")
    fs, path = fsspec.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
    with fs.open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
    return url
