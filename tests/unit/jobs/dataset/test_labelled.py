"""Listings of labelled images: folders named after classes, and Parquet tables."""

import io
import json
import os
from collections import OrderedDict

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.config.dataset import DatasetConfig
from jobs.dataset import image_file as imagefile
from jobs.dataset.image_file import block_of, is_row, read_image
from jobs.dataset.index import index_method, index_of, read_index
from jobs.dataset.labelled import SUFFIXES, folder_entries
from jobs.dataset.labels import ImageLabels
from jobs.dataset.stored import image_files
from jobs.errors import UsageError
from jobs.pretrain.worker import LabelledFiles
from pipeline.images.decode import FORMATS
from pipeline.training.augmentation import PLAIN
from pipeline.training.mini_batches import Decoded, MiniBatches, Request, loaded


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
        with pytest.raises(UsageError, match=r"^dataset: there is no split 'val'.*train"):
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
            ("cat/one", "PassedOver"),
        }

    def test_folders_that_look_like_splits_are_no_classes(self, tmp_path):
        for name in ("train/cat/one.png", "val/cat/one.png"):
            add(tmp_path, name)
        with pytest.raises(UsageError, match=r"does not name; set dataset\.train_splits .*: train, val"):
            indexed(tmp_path, "folder")

    @pytest.mark.parametrize(
        "names",
        [
            ("Train", "Test"),
            ("TRAINING", "TESTING"),
            ("train", "dev"),
            ("seg_train", "seg_test", "seg_pred"),
            ("train2017", "val2017"),
            ("Validation set", "other"),
            ("fold-1", "fold-2"),
            ("images",),
            ("101_ObjectCategories",),
        ],
    )
    def test_folders_that_hold_only_folders_are_no_classes(self, tmp_path, names):
        for name in names:
            add(tmp_path, f"{name}/cat/one.png")
            add(tmp_path, f"{name}/dog/two.png", 1)
        add(tmp_path, "cover.png")
        with pytest.raises(UsageError, match=r"set dataset\.train_splits and dataset\.test_splits to some of") as error:
            indexed(tmp_path, "folder")
        assert names[0] in str(error.value)

    def test_split_folders_beside_a_class_are_no_classes(self, tmp_path):
        for name in ("Train/cat/one.png", "misc/two.png"):
            add(tmp_path, name)
        with pytest.raises(UsageError, match="some of: Train, or"):
            indexed(tmp_path, "folder")

    def test_classes_that_hold_only_folders_can_be_named(self, tmp_path):
        for name in ("cat/siamese/one.png", "dog/poodle/two.png"):
            add(tmp_path, name, len(name))
        with pytest.raises(UsageError, match=r"hold only folders \(cat, dog\).*or name them in dataset\.classes"):
            indexed(tmp_path, "folder")
        found = indexed(tmp_path, "folder", classes=["cat", "dog"])
        assert (found.class_names(), found.ledger) == (["cat", "dog"], ())

    def test_classes_of_a_named_split_that_hold_only_folders_are_noted(self, tmp_path):
        for name in ("train/cat/siamese/one.png", "test/cat/two.png"):
            add(tmp_path, name, len(name))
        found = indexed(tmp_path, "folder", train_splits=["train"], test_splits=["test"])
        assert [(row.type, "split 'train' hold only folders (cat)" in row.message) for row in found.ledger] == [
            ("NestedFolders", True)
        ]

    @pytest.mark.parametrize("suffix", ["jfif", "JPE", "TIF", "pgm"])
    def test_content_counts_and_not_the_suffix(self, tmp_path, suffix):
        add(tmp_path, f"cat/one.{suffix}")
        assert indexed(tmp_path, "folder").images["image_id"].to_pylist() == ["cat/one"]

    def test_what_is_passed_over_is_counted_by_suffix(self, tmp_path):
        add(tmp_path, "cat/one.png")
        for name in ("cat/c.HEIC", "dog/d.heic", "dog/e.cr2", "readme.txt", "cat/.DS_Store", "__MACOSX/cat/x.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        (row,) = indexed(tmp_path, "folder").ledger
        assert (row.image_id, row.type, row.level) == ("cat/one", "PassedOver", "note")
        assert row.message.endswith("3 files (1 with .cr2, 2 with .heic; such as c.HEIC)")

    def test_where_all_is_passed_over_it_says_what(self, tmp_path):
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat/one.heic").write_bytes(b"x")
        with pytest.raises(
            UsageError, match=r"passed over for their names: 1 file \(1 with \.heic; such as one\.heic\)"
        ):
            indexed(tmp_path, "folder")

    def test_orientations_that_nothing_tells_are_one_note(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for number in range(3):
            add(tmp_path, f"cat/{number}.png", number)
            Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(tmp_path / f"cat/turned{number}.png", exif=exif)
        found = indexed(tmp_path, "folder")
        assert [(row.type, row.image_id) for row in found.ledger] == [("NotTurned", "cat/turned0")]
        assert "3 of 6 images have an EXIF orientation, which is not applied" in found.ledger[0].message

    def test_every_suffix_of_a_kind_that_is_read_is_known(self):
        registered = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
        assert registered - {".pnm"} <= SUFFIXES

    def test_a_class_may_be_called_test(self, tmp_path):
        for name in ("test/one.png", "match/one.png"):
            add(tmp_path, name)
        assert indexed(tmp_path, "folder", test_splits=[]).class_names() == ["match", "test"]

    def test_links_to_folders_and_names_with_underscores_are_taken(self, tmp_path):
        add(tmp_path / "elsewhere", "_MG_1.png")
        data = tmp_path / "data"
        add(data, "_rare/_DSC1.png")
        (data / "cat").symlink_to(tmp_path / "elsewhere")
        (data / "cat" / "loop").symlink_to(data)
        found = indexed(data, "folder")
        assert found.images["image_id"].to_pylist() == ["_rare/_DSC1", "cat/_MG_1"]

    def test_a_link_beside_the_folder_it_names_hides_nothing(self, tmp_path):
        add(tmp_path, "cat/one.png")
        (tmp_path / "animal").symlink_to(tmp_path / "cat")
        (tmp_path / "dog").symlink_to(tmp_path / "cat")
        assert indexed(tmp_path, "folder").images["image_id"].to_pylist() == ["animal/one", "cat/one", "dog/one"]

    def test_a_folder_that_cannot_be_listed_stops_it(self, tmp_path, monkeypatch):
        add(tmp_path, "cat/one.png")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("cat"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(UsageError, match=r"cannot be read: .*Permission denied"):
            indexed(tmp_path, "folder")

    def test_a_name_that_is_no_text_stands_in_the_ledger(self, tmp_path):
        add(tmp_path, "cat/one.png")
        (tmp_path / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(1))
        found = indexed(tmp_path, "folder")
        assert found.images["image_id"].to_pylist() == ["cat/one"]
        (row,) = found.ledger
        assert row.type == "BadImageId"
        assert "not UTF-8" in row.message

    def test_only_the_classes_that_are_asked_for(self, tmp_path):
        for name in ("ant/one.png", "bee/one.png", "cat/one.png"):
            add(tmp_path, name)
        found = indexed(tmp_path, "folder", classes=["ant", "cat"])
        assert found.images["image_id"].to_pylist() == ["ant/one", "cat/one"]

    def test_folders_like_those_that_are_asked_for_are_told(self, tmp_path):
        for name in ("ant/one.png", "Ant/two.png", "bee/one.png", "Bee/two.png"):
            add(tmp_path, name, len(name))
        (row,) = indexed(tmp_path, "folder", classes=["ant"]).ledger
        assert (row.image_id, row.type) == ("ant/one", "SimilarClassNames")
        assert "'Ant', 'ant'" in row.message

    def test_a_folder_without_images_is_refused(self, tmp_path):
        (tmp_path / "cat").mkdir()
        with pytest.raises(UsageError, match="folder per class"):
            indexed(tmp_path, "folder")

    def test_reads_any_file_system(self):
        fs = fsspec.filesystem("memory")
        fs.pipe("/pets/cat/one.png", encoded(0))
        entries = folder_entries(fs, "/pets", "memory://pets", ["train"]).entries
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

    def test_a_number_that_is_no_class_stands_in_the_ledger(self, tmp_path):
        named = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        write(tmp_path / "pets.parquet", [-1, 1, 2], metadata={"huggingface": json.dumps(named)})
        found = indexed(tmp_path, "table")
        assert found.objects["class_name"].to_pylist() == ["dog"]
        assert ["has the 'label' -1" in row.message for row in found.ledger] == [True, False]

    @pytest.mark.parametrize("folder", ["data", "default/train", "."])
    def test_splits_of_tables_from_a_hub(self, tmp_path, folder):
        for split in ("train", "test"):
            place = tmp_path / folder.replace("train", split)
            place.mkdir(parents=True, exist_ok=True)
            write(place / ("0000.parquet" if "/" in folder else f"{split}-00000-of-00001.parquet"), ["cat", "dog"])
        splits = {"train_splits": ["train"], "test_splits": ["test"]}
        found = indexed(tmp_path, "table", **splits)
        assert (
            sorted(split for row in found.images["splits"].to_pylist() for split in row) == ["test"] * 2 + ["train"] * 2
        )
        with pytest.raises(UsageError, match="does not name"):
            indexed(tmp_path, "table", train_splits=["learn"], test_splits=[])

    @pytest.mark.parametrize(
        "names", [("Train-0.parquet", "Test-0.parquet"), ("training.parquet",), ("dev_1.parquet",), ("Test/a.parquet",)]
    )
    def test_files_that_look_like_splits_are_told(self, tmp_path, names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, ["cat", "dog"])
        with pytest.raises(UsageError, match="does not name; set") as error:
            indexed(tmp_path, "table")
        named = str(error.value).split("some of: ")[1].removesuffix(", or []").split(", ")
        assert len(indexed(tmp_path, "table", train_splits=named, test_splits=[]).images) == 2 * len(names)

    def test_words_that_only_hold_a_splits_name_are_none(self, tmp_path):
        write(tmp_path / "trains-contest.parquet", ["cat"])
        assert len(indexed(tmp_path, "table").images) == 1

    @pytest.mark.parametrize("labels", [["cat", " ", ""], [1.0, float("nan"), None]])
    def test_no_label_is_no_class(self, tmp_path, labels):
        write(tmp_path / "pets.parquet", labels)
        found = indexed(tmp_path, "table")
        assert len(found.images) == 1
        assert [(row.type, "has no 'label'" in row.message) for row in found.ledger] == [("NoClass", True)] * 2

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


def test_threads_that_train_on_a_table_read_each_row_group_once(tmp_path, monkeypatch):
    """Each thread has a file system of its own; what is kept at hand is for all of them."""
    groups, rows = 12, 10
    images = [encoded(number % 7, (260, 256)) for number in range(groups * rows)]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": images, "label": ["a", "b"] * (len(images) // 2)}), path, row_group_size=rows)
    table = indexed(tmp_path, "table", train_splits=["train"], test_splits=[]).images
    table = table.select(["image_id", "uri", "digest", "height", "width"])
    files = LabelledFiles(table, np.zeros(len(table), np.int64), {}).images()
    taken = []

    def column(parquet, name, group, read=imagefile._image_column):
        taken.append(group)
        return read(parquet, name, group)

    monkeypatch.setattr(imagefile, "_image_column", column)
    monkeypatch.setattr(imagefile, "_kept", OrderedDict())
    batches, decoded = MiniBatches(files, 16, seed=3), Decoded(files, 0)
    requests = [
        Request(decoded, rows, files.labels[rows], lambda number: PLAIN, 224)
        for rows in (batches.rows(iteration) for iteration in range(batches.per_epoch))
    ]
    assert sum(len(batch.labels) for batch in loaded(requests, 4, torch.device("cpu"))) == 112
    assert not decoded.failed
    assert sorted(taken) == list(range(groups))
