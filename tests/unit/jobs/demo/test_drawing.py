"""The demo's data set: the same bytes every time, true annotations, a layout that indexes."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jobs.config.dataset import DatasetConfig
from jobs.dataset.index import Index, index_of, read_index
from jobs.demo.drawing import CLASSES, Scene, draw_dataset, draw_scene


@pytest.fixture(scope="module")
def devkit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "VOC2007"
    draw_dataset(folder, 12, 6)
    return folder


@pytest.fixture(scope="module")
def index(devkit) -> Index:
    return index_of(list(read_index(DatasetConfig(path=str(devkit)), 2)))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(number) for number in range(90)]


@pytest.fixture(params=[0, 3, 7, 20, 41, 74])
def scene(request, scenes) -> Scene:
    return scenes[request.param]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_draws_are_byte_identical(devkit, tmp_path):
    draw_dataset(tmp_path, 12, 6)
    assert contents(tmp_path) == contents(devkit)


def test_drawing_again_touches_no_file(devkit):
    before = {path: path.stat().st_mtime_ns for path in devkit.rglob("*")}
    draw_dataset(devkit, 12, 6)
    assert {path: path.stat().st_mtime_ns for path in devkit.rglob("*")} == before


def test_a_changed_file_is_mended(devkit, tmp_path):
    shutil.copytree(devkit, tmp_path, dirs_exist_ok=True)
    (tmp_path / "Annotations" / "000003.xml").write_text("<annotation/>")
    draw_dataset(tmp_path, 12, 6)
    assert contents(tmp_path) == contents(devkit)


def test_each_box_bounds_the_pixels_that_show_its_object(scene):
    for number, thing in enumerate(scene.objects, start=1):
        xmin, ymin, xmax, ymax = thing.box
        shown = scene.owner == number
        assert shown[ymin - 1 : ymax, xmin - 1 : xmax].sum() == shown.sum() > 0
        for edge in (shown[ymin - 1], shown[ymax - 1], shown[:, xmin - 1], shown[:, xmax - 1]):
            assert edge.any()


def test_outside_all_boxes_there_is_only_background(scene):
    changed = (scene.image != scene.background).any(axis=2)
    for thing in scene.objects:
        xmin, ymin, xmax, ymax = thing.box
        changed[max(0, ymin - 3) : ymax + 2, max(0, xmin - 3) : xmax + 2] = False  # two pixels of soft edge
    assert not changed.any()


def test_what_is_annotated_differs_from_the_background(scene):
    away = np.abs(scene.image.astype(int) - scene.background).sum(axis=2)
    for number, _ in enumerate(scene.objects, start=1):
        assert np.median(away[scene.owner == number]) > 40


def test_truncated_objects_touch_the_border_and_difficult_ones_are_tiny(scenes):
    for scene in scenes:
        height, width = scene.owner.shape
        for thing in scene.objects:
            xmin, ymin, xmax, ymax = thing.box
            assert (xmin == 1 or ymin == 1 or xmax == width or ymax == height) == thing.truncated
            tiny = ymax - ymin + 1 < 0.24 * min(height, width)
            assert thing.difficult == (tiny and not thing.truncated)


def test_the_index_reads_what_was_drawn(index, scenes):
    assert not index.ledger
    assert [row["splits"] for row in index.images.to_pylist()] == [["trainval"]] * 12 + [["test"]] * 6
    expected = []
    for number in range(18):
        for thing in scenes[number].objects:
            xmin, ymin, xmax, ymax = thing.box
            box = {"x1": xmin - 1, "y1": ymin - 1, "x2": xmax, "y2": ymax}
            expected.append((f"{number + 1:06d}", thing.class_name, box, thing.difficult, thing.truncated))
    rows = index.objects.to_pylist()
    assert [(r["image_id"], r["class_name"], r["box"], r["difficult"], r["truncated"]) for r in rows] == expected


def test_the_image_files_have_the_drawn_sizes(index, scenes):
    sizes = [(row["height"], row["width"]) for row in index.images.to_pylist()]
    assert sizes == [scene.owner.shape for scene in scenes[:18]]


def test_the_demo_has_every_class_in_both_splits_and_hard_cases(scenes):
    for part in (scenes[:60], scenes[60:]):
        count = Counter(thing.class_name for scene in part for thing in scene.objects if not thing.difficult)
        assert set(count) == set(CLASSES)
        assert min(count.values()) >= 5
    flags = [(thing.truncated, thing.difficult) for scene in scenes for thing in scene.objects]
    assert {(True, False), (False, True), (False, False)} == set(flags)
    assert all(scene.objects for scene in scenes)
