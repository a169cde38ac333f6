"""Detections for other tools: VOC comp4 files, and COCO results JSON. Written to a folder, a file, or fsspec URLs."""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterable, Mapping

import fsspec
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from jobs.dataset.stored import recorded_index
from jobs.errors import UsageError
from jobs.evaluate.driver import stored_detections
from jobs.record.invocation import Invocation
from pipeline.measures.result_files import coco_categories, coco_category_ids, coco_lines, voc_file_names, voc_lines
from storage.columns import boxes_of
from storage.root import check_chain
from storage.runs import read_run

_log = logging.getLogger("spp")


def export(invocation: Invocation, voc: str | None, coco: str | None) -> list[str]:
    """Write a run's detections to the folder ``voc`` and the file ``coco``; returns what was written.

    COCO wants numbers: classes are counted from 1 in alphabetical order, and ``categories`` stand beside the results,
    in a file of the same name that ends in ``.categories.json``; image ids stay strings, as they are here.

    Nothing is written outside ``voc``, whatever classes are called: see ``voc_file_name``. UsageError, before anything
    is written, for a class or an image that no such file can hold.
    """
    record = read_run(invocation.root, invocation.name)
    table = stored_detections(invocation.root, record)
    classes = recorded_index(invocation.root, record).class_names()
    written: list[str] = []
    try:
        if voc is not None:
            files = voc_file_names("-".join(invocation.config.dataset.test_splits), classes)
            texts = {}
            for name in classes:
                own = table.filter(pc.equal(table["class_name"], name))
                lines = voc_lines(own["image_id"].to_pylist(), own["score"].to_numpy(), boxes_of(own["box"]))
                texts[files[name]] = lines
                if not files[name].endswith(f"_{name}.txt"):
                    _log.warning("note: class %r cannot be the name of a file; it is written to %s", name, files[name])
            written += _write_into(voc, texts)
        if coco is not None:
            numbers = coco_category_ids(classes)
            names = table["class_name"].to_pylist()
            scores, boxes = table["score"].to_numpy(), boxes_of(table["box"])
            written.append(_write(coco, coco_lines(table["image_id"].to_pylist(), names, scores, boxes, numbers)))
            categories = json.dumps(coco_categories(numbers), indent=1)
            written.append(_write(f"{posixpath.splitext(coco)[0]}.categories.json", [f"{categories}\n"]))
    except (ValueError, ImportError) as error:
        raise UsageError(f"detect: {error}") from error
    return written


def _write_into(folder: str, texts: Mapping[str, Iterable[str]]) -> list[str]:
    """Write files into a folder, name to lines. Names are joined to its path, not to its URL, which could mean more."""
    fs, path = fsspec.url_to_fs(folder)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(path, exist_ok=True)
    for name, lines in texts.items():
        with fs.open(f"{path.rstrip('/')}/{name}", "w", encoding="utf-8") as file:
            file.writelines(lines)
    return [posixpath.join(folder, name) for name in texts]


def _write(url: str, lines: Iterable[str]) -> str:
    check_chain(url, "--voc, --coco")
    fs, path = fsspec.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
    with fs.open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
    return url
