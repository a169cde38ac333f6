"""What records say of their datasets: typed where it is read, and on disk as it always was."""

import json
import tarfile

import pytest

from storage.quality import (
    ClassificationQuality,
    CombinationQuality,
    MetricsQuality,
    NetworkQuality,
    ProposalsQuality,
    Quality,
)
from storage.runs import DatasetRecord, RunRecord
from tests import REPOSITORY

SPLIT = {"objects": 3, "recall": 0.6666666666666666, "mabo": 0.6096980459988117}
ROW = {"class_name": "red", "ap_11": 0.5, "ap_area": 0.25, "positives": 2, "detections": 11, "true_positives": 1}
LAYER = {"view": "warp", "layer": "spp", "mean": 0.5, "deviation": 0.0, "splits": 1, "held_out": None}
VIEW = {"top1": 0.5, "top5": 1.0, "images": 4}
RUN = {"method": "0123456789ab", "manifest": "ba9876543210"}
SAID = [
    (ProposalsQuality, {"objects": "0b237a40f1f6", "splits": {"test": SPLIT}}),
    (ProposalsQuality, {"objects": None, "splits": {"test": {"objects": 0, "recall": None, "mabo": None}}}),
    (MetricsQuality, {"map_11": 0.5, "map_area": None, "classes": [ROW, {**ROW, "ap_11": None, "ap_area": None}]}),
    (MetricsQuality, {"map_11": None, "map_area": None, "classes": []}),
    (CombinationQuality, {"runs": {"b": RUN, "a": {**RUN, "manifest": None}}, "nms_overlap": 0.3}),
    (NetworkQuality, {"identity": "x", "tested_on": "splits test", "views": {"crop": VIEW}, "failed": {"im-1": "why"}}),
    (ClassificationQuality, {"measure": "ap_11", "layers": [LAYER, {**LAYER, "held_out": 0.25}]}),
    (Quality, {}),
]


def entry(quality: dict) -> DatasetRecord:
    return DatasetRecord.model_validate({"stage": "a", "method": "0123456789ab", "quality": quality})


@pytest.mark.parametrize(("kind", "quality"), SAID)
def test_each_dataset_has_a_model_and_is_written_as_it_was_read(kind, quality):
    found = entry(quality)
    assert type(found.quality) is kind
    assert json.dumps(json.loads(found.model_dump_json())["quality"]) == json.dumps(quality)
    assert json.dumps(found.model_dump()["quality"]) == json.dumps(quality)


@pytest.mark.parametrize(("kind", "quality"), SAID)
def test_keys_of_another_version_stay(kind, quality):
    more = {**quality, "later": [1, {"deep": None}]}
    found = entry(more)
    assert type(found.quality) is kind
    assert found.model_dump()["quality"] == more


def test_keys_of_another_version_stay_within_a_row():
    quality = {"map_11": 0.5, "map_area": 0.5, "classes": [{**ROW, "ap_50": 0.125}]}
    assert entry(quality).model_dump()["quality"] == quality


@pytest.mark.parametrize(
    "quality",
    [
        {"test": SPLIT},
        {"map_11": 0.5},
        {"splits": {"test": {"recall": 0.5}}, "objects": "0b237a40f1f6"},
        {"layers": [], "runs": {}},
    ],
)
def test_what_no_model_knows_is_kept_and_says_nothing(quality):
    found = entry(quality)
    assert type(found.quality) is Quality
    assert found.model_dump()["quality"] == quality


def test_a_network_of_an_earlier_version_had_no_list_of_failed_images():
    found = entry({"identity": "x", "tested_on": "splits test", "views": {}}).quality
    assert isinstance(found, NetworkQuality)
    assert found.failed == {}


def test_records_of_an_old_root_are_written_as_they_were_read():
    texts = {}
    with tarfile.open(REPOSITORY / "tests" / "old_root.tar.xz") as archive:
        for member in archive:
            if member.name.endswith(".json") and "/runs/" in member.name:
                texts[member.name] = archive.extractfile(member).read().decode()
    assert len(texts) == 4
    for name, text in texts.items():
        written = RunRecord.model_validate_json(text).model_dump_json(indent=1)
        for added in ('   "manifest_sha256": "",\n', '   "passes": 0,\n'):  # which they did not write down
            written = written.replace(added, "")
        assert written == text, name
