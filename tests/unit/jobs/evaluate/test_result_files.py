"""What `spp evaluate --detections` says of files that leave something out, or that contradict the data set."""

import pytest

from jobs.cli.main import main
from tests.voc_folder import small_data_set

DOG = "im-002 0.9 17 21 56 60\nim-003 0.8 20 21 59 60\n"


@pytest.fixture
def measure(tmp_path, capsys):
    """Exit code and all that is said, of result files by name."""
    small_data_set(tmp_path / "data", train=2, test=2)  # im-002: square and slab, im-003: square
    config = tmp_path / "c.yaml"
    config.write_text(f"dataset: {{path: {tmp_path / 'data' / 'VOC2007'}}}\n")

    def run(files: dict[str, str | bytes], pattern: str = "comp*.txt") -> tuple[int, str]:
        (tmp_path / "out").mkdir()
        for name, text in files.items():
            (tmp_path / "out" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(["evaluate", "--config", str(config), "--detections", str(tmp_path / "out" / pattern), "--json"])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.err + captured.out

    return run


def square(name: str = "square", split: str = "test") -> str:
    return f"comp4_det_{split}_{name}.txt"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({square(): DOG}, "note: 1 of 2 classes have no file, and so AP 0, which the mean counts: slab"),
        ({square(): DOG, square("slab"): ""}, "note: 1 files are empty: no detection of slab"),
        ({square(): DOG, square("slab", "val"): DOG}, "the files are of several splits: test, val"),
        (
            {square(): DOG.splitlines()[0], square("slab"): ""},
            "note: 1 of 2 images have no detection in any file",
        ),
        ({square(): DOG + DOG}, "note: 2 lines of class 'square' stand twice, and count as false positives"),
        ({square(): "im-002 0.9 50 50 20 20\n"}, "note: 1 boxes of class 'square' are reversed or empty"),
    ],
)
def test_what_is_left_out_is_told(files, says, measure):
    code, said = measure(files)
    assert code == 0
    assert says in said
    assert '"notes": ["' in said


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {square("Square"): DOG},
            "the data set has no class 'Square'; did you mean 'square'? its classes: ",
        ),
        ({square("cat"): ""}, "the data set has no class 'cat'"),
        ({square(): "im-2 0.9 1 1 2 2\n"}, "1 of its images are not in the splits test, such as 'im-2'"),
        ({square(): "im-002 0.9 1_0 1 20 20\n"}, "line 1: after the image id stands"),
        ({square(): "im-002 0.9 \u0661 1 20 20\n"}, "line 1: after the image id stands"),
        ({square(): "im-002 inf 1 1 20 20\n"}, "line 1: after the image id stands"),
        ({square(): "im-002 0.9 1e300 1 20 20\n"}, "line 1: a corner beyond 10,000,000 pixels"),
        ({square(): "im-002 0.9 1 1 20 20 0 x\n"}, "line 1: after the image id stands"),
        ({square(): b"\xff\xfe"}, "line 1: not UTF-8 text"),
        ({"comp4_det_test_.txt": ""}, "a VOC results file is named"),
        ({"comp4_det_test_square.txt": "", "comp3_det_test_square.txt": ""}, "another file of class 'square'"),
        ({}, "there is no such file"),
    ],
)
def test_what_contradicts_the_data_set_is_refused(files, says, measure):
    code, said = measure(files)
    assert code == 2
    assert says in said


def test_a_folder_or_a_file_that_is_not_there(measure):
    code, said = measure({}, pattern="none.txt")
    assert (code, "there is no such file" in said) == (2, True)


def test_a_folder_in_place_of_files(measure):
    code, said = measure({}, pattern="")
    assert (code, "is a folder; give its files" in said) == (2, True)


def test_a_byte_order_mark_is_no_part_of_an_id(measure):
    code, said = measure({square(): "\ufeff" + DOG, square("slab"): ""})
    assert code == 0, said
