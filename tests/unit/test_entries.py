"""Listings of labelled images: folders named after classes, and Parquet tables."""

import io
import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.entries import folder_entries
from jobs.errors import UsageError
from jobs.imagefile import block_of, is_row, read_image
from jobs.index import DatasetConfig, index_method, index_of, read_index
from jobs.labels import ImageLabels
from jobs.upstream import image_files


def encoded(seed, size=(12, 16)):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def indexed(path, layout, **values):
    return index_of(list(read_index(DatasetConfig(path=str(path), layout=layout, **values), 2)))


def add(folder, name, seed=0):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(seed))


class TestFolder:
    def test_folders_are_classes_and_an_image_is_one_object_that_fills_it(self, tmp_path):
        add(tmp_path, "cat/one.png")
        add(tmp_path, "dog/deep/two.png", 1)
        found = indexed(tmp_path, "folder")
        assert [(row["image_id"], row["splits"]) for row in found.images.to_pylist()] == [
            ("cat/one", ["all"]),
            ("dog/deep/two", ["all"]),
        ]
        rows = found.objects.to_pylist()
        assert [(row["class_name"], row["box"]["x2"], row["box"]["y2"]) for row in rows] == [
            ("cat", 16.0, 12.0),
            ("dog", 16.0, 12.0),
        ]
        assert ImageLabels.of(found).single().tolist() == [0, 1]

    def test_split_folders(self, tmp_path):
        for split in ("train", "val"):
            add(tmp_path, f"{split}/cat/one.png")
        found = indexed(tmp_path, "folder", train_splits=["train"], test_splits=["val"])
        assert [row["splits"] for row in found.images.to_pylist()] == [["train"], ["val"]]
        assert found.class_names() == ["cat"]
        labels = ImageLabels.of(found)
        assert labels.rows_in(["train"]).tolist() == [0]
        assert labels.rows_in(["val"]).tolist() == [1]

    def test_a_missing_split_is_named(self, tmp_path):
        add(tmp_path, "train/cat/one.png")
        with pytest.raises(UsageError, match=r"no split 'val'.*train"):
            indexed(tmp_path, "folder", train_splits=["train"], test_splits=["val"])

    def test_what_cannot_be_used_stands_in_the_ledger(self, tmp_path):
        add(tmp_path, "loose.png")
        add(tmp_path, "cat/one.png")
        (tmp_path / "cat/one.jpg").write_bytes(encoded(3))
        (tmp_path / "cat/broken.png").write_bytes(b"no image")
        (tmp_path / "cat/notes.txt").write_text("not an image")
        (tmp_path / "cat/.hidden.png").write_bytes(encoded(4))
        found = indexed(tmp_path, "folder")
        assert found.images["image_id"].to_pylist() == ["cat/one"]
        assert {(row.image_id, row.type) for row in found.ledger} == {
            ("loose", "NoClass"),
            ("cat/one.png", "DuplicateImage"),
            ("cat/broken", "ImageError"),
        }

    def test_a_folder_without_images_is_refused(self, tmp_path):
        (tmp_path / "cat").mkdir()
        with pytest.raises(UsageError, match="folder per class"):
            indexed(tmp_path, "folder")

    def test_reads_any_file_system(self):
        fs = fsspec.filesystem("memory")
        fs.pipe("/pets/cat/one.png", encoded(0))
        entries = folder_entries(fs, "/pets", "memory://pets", ["train"])
        assert entries["cat/one"].uri == "memory:///pets/cat/one.png"

    def test_the_layout_names_the_method_but_older_methods_stay(self):
        before = index_method(DatasetConfig(path="x"))
        assert index_method(DatasetConfig(path="x", layout="voc")) == before
        assert index_method(DatasetConfig(path="x", layout="folder")) != before


def write(path, labels, column="label", metadata=None, group=2, images=None):
    images = images or [{"bytes": encoded(seed), "path": None} for seed in range(len(labels))]
    table = pa.table({"image": images, column: labels}).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=group)


class TestTable:
    def test_rows_are_images(self, tmp_path):
        write(tmp_path / "pets.parquet", ["cat", "dog", "cat"])
        found = indexed(tmp_path, "table")
        assert found.images["image_id"].to_pylist() == [f"pets/{row:09d}" for row in range(3)]
        assert found.objects["class_name"].to_pylist() == ["cat", "dog", "cat"]
        files = list(image_files(found).values())
        assert all(is_row(file.uri) for file in files)
        assert block_of(files[0].uri) == block_of(files[1].uri) != block_of(files[2].uri)
        for seed, file in enumerate(files):
            expected = np.asarray(Image.open(io.BytesIO(encoded(seed))))
            np.testing.assert_array_equal(read_image(file, {}), expected)

    def test_plain_bytes_and_splits_by_file_name(self, tmp_path):
        for split in ("train", "test"):
            write(tmp_path / f"{split}-00000-of-00001.parquet", [1, 0], images=[encoded(0), encoded(1)])
        found = indexed(tmp_path, "table", train_splits=["train"], test_splits=["test"])
        assert [row["splits"] for row in found.images.to_pylist()] == [["test"], ["test"], ["train"], ["train"]]
        assert found.class_names() == ["0", "1"]

    def test_numbers_get_the_names_that_the_file_has(self, tmp_path):
        named = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        write(tmp_path / "pets.parquet", [1, 0], metadata={"huggingface": json.dumps(named)})
        assert indexed(tmp_path / "pets.parquet", "table").objects["class_name"].to_pylist() == ["dog", "cat"]

    def test_bad_rows_stand_in_the_ledger(self, tmp_path):
        broken = [{"bytes": encoded(0)}, {"bytes": b"x"}, {"bytes": None}, {"bytes": encoded(3)}]
        write(tmp_path / "pets.parquet", ["cat", "cat", "cat", None], images=broken)
        found = indexed(tmp_path, "table")
        assert len(found.images) == 1
        assert [row.type for row in found.ledger] == ["ImageError", "ImageError", "NoClass"]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"image_column": "picture"}, "no column 'picture'; its columns are image, label"),
            ({"label_column": "class"}, "no column 'class'"),
            ({"image_column": "label"}, "not encoded images"),
        ],
    )
    def test_another_kind_of_table_is_refused(self, tmp_path, values, message):
        write(tmp_path / "pets.parquet", ["cat"])
        with pytest.raises(UsageError, match=message):
            indexed(tmp_path, "table", **values)

    def test_a_file_that_is_no_parquet_is_named(self, tmp_path):
        (tmp_path / "pets.parquet").write_bytes(b"no table")
        with pytest.raises(UsageError, match=r"pets\.parquet is no Parquet file"):
            indexed(tmp_path, "table")


class TestLabels:
    def test_an_image_of_several_classes_is_named(self, tmp_path):
        add(tmp_path, "cat/one.png")
        found = indexed(tmp_path, "folder")
        (cat,) = found.objects.to_pylist()
        doubled = pa.Table.from_pylist([cat, {**cat, "object_id": 1, "class_name": "dog"}], found.objects.schema)
        labels = ImageLabels.of(type(found)(found.images, doubled, ()))
        with pytest.raises(ValueError, match=r"'cat/one' shows cat, dog"):
            labels.single()
