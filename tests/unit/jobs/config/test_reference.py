from jobs.config.reference import page
from tests import REPOSITORY

PAGE = REPOSITORY / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run: python -m jobs.config.reference > docs/config.md"


def test_every_key_has_a_meaning():
    rows = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert all(len(row) == 4 and row[3].removesuffix(" |").strip() for row in rows)
