import pyarrow as pa
import pytest

from storage.columns import BOX, WINDOW, vector_type
from storage.root import StorageError
from storage.schemas import DATASETS, SCHEMA_VERSION, check_version, schema

LAYOUT = {
    "images": "image_id uri width height splits digest",
    "objects": "image_id object_id class_name box difficult truncated",
    "proposals": "image_id proposal_id box method rank strategy level",
    "features": "image_id proposal_id box scale window feature",
    "windows": "image_id proposal_id box scale window",
    "maps": "image_id scale height width channels map",
    "truth_features": "image_id object_id class_name difficult box scale window feature",
    "training_windows": "image_id window_id class_name flipped box scale window feature",
    "head": "name shape weight",
    "checkpoints": "name shape weight",
    "training_curve": "phase iteration learning_rate loss held_out_loss held_out_accuracy",
    "network": "name shape weight",
    "pretraining_curve": "phase epoch size learning_rate loss held_out_loss top1 top5",
    "embeddings": "image_id proposal_id box scale window feature",
    "truth_embeddings": "image_id object_id class_name difficult box scale window feature",
    "svms": "class_name bias feature_scale positives negatives left_out all_negatives violators "
    "objective objective_all passes history weight",
    "regressors": "class_name windows feature_scale ridge bias mean whitening weight",
    "detections": "image_id class_name score box",
    "image_features": "image_id view layer height width channels feature",
    "image_scores": "image_id view layer split class_name score",
    "classification": "class_name view layer split tested_on images positives accuracy ap_11 ap_area",
    "metrics": "class_name ap_11 ap_area positives detections true_positives score recall precision",
}
"""The columns of every dataset, in order."""

MODELS = (
    "head",
    "checkpoints",
    "training_curve",
    "network",
    "pretraining_curve",
    "svms",
    "regressors",
    "metrics",
    "detections",
    "image_features",
    "image_scores",
    "classification",
)
"""Their columns have types of their own."""

TYPES = {
    "image_id": pa.string(),
    "uri": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "splits": pa.list_(pa.field("element", pa.string(), nullable=False)),
    "digest": pa.string(),
    "object_id": pa.int32(),
    "class_name": pa.string(),
    "difficult": pa.bool_(),
    "truncated": pa.bool_(),
    "proposal_id": pa.int32(),
    "method": pa.string(),
    "rank": pa.int32(),
    "strategy": pa.string(),
    "level": pa.int32(),
    "scale": pa.int32(),
    "box": BOX,
    "window": WINDOW,
    "feature": vector_type(12800),
    "channels": pa.int32(),
    "window_id": pa.int32(),
    "flipped": pa.bool_(),
    "map": pa.list_(pa.field("element", pa.float16(), nullable=False)),
}


def layout_of(dataset: str) -> pa.Schema:
    sized = "feature" in LAYOUT[dataset].split() or dataset in ("svms", "regressors")
    sized = sized and dataset != "image_features"  # layers have lengths of their own
    return schema(dataset, 12800 if sized else None)


@pytest.mark.parametrize("dataset", LAYOUT)
def test_columns_and_types(dataset):
    assert layout_of(dataset).names == LAYOUT[dataset].split()
    if dataset in MODELS:
        return
    for field in layout_of(dataset):
        assert field.type == TYPES[field.name]


def test_weights_are_as_long_as_the_vectors():
    assert schema("svms", 12800).field("weight").type.list_size == 12800
    assert schema("regressors", 12800).field("weight").type.list_size == 4 * 12800


def test_what_can_be_null_is_what_is_not_always_there():
    nullable = [(name, field.name) for name in LAYOUT for field in layout_of(name) if field.nullable]
    assert nullable == [
        ("proposals", "strategy"),
        ("proposals", "level"),
        ("training_windows", "class_name"),
        ("training_curve", "held_out_loss"),
        ("training_curve", "held_out_accuracy"),
        ("pretraining_curve", "size"),
        ("pretraining_curve", "held_out_loss"),
        ("pretraining_curve", "top1"),
        ("pretraining_curve", "top5"),
        ("classification", "accuracy"),
        ("classification", "ap_11"),
        ("classification", "ap_area"),
        ("metrics", "ap_11"),
        ("metrics", "ap_area"),
    ]


def test_the_datasets_are_in_the_order_in_which_they_come_to_be():
    assert tuple(LAYOUT) == DATASETS


def test_a_dim_gives_the_vector_column():
    assert "feature" not in schema("features").names
    assert schema("truth_features", 51200).field("feature").type == vector_type(51200)


def test_metadata_says_what_a_file_is():
    found = schema("features", 8, {"method": "0123456789ab", "levels": "[6, 3, 2, 1]"}).metadata
    assert found == {
        b"spp.schema_version": str(SCHEMA_VERSION).encode(),
        b"spp.dataset": b"features",
        b"spp.method": b"0123456789ab",
        b"spp.levels": b"[6, 3, 2, 1]",
    }


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION, str(SCHEMA_VERSION)])
def test_a_known_version_passes(version):
    check_version(version, "here")


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2", "1000", "?", "", None, "1.5", "-1", 0, "²"])
def test_another_version_is_refused_by_name(version):
    with pytest.raises(StorageError, match=r"here/x\.json has schema version .*update"):
        check_version(version, "here/x.json")
