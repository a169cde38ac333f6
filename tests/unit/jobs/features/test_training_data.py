"""Which ground-truth rows a class learns from."""

import pyarrow as pa
import pytest

from jobs.dataset.objects import order_key
from jobs.features.training_data import positive_rows


@pytest.mark.parametrize(("difficult", "cats"), [(False, [True, False, False]), (True, [True, False, True])])
def test_difficult_objects_are_positives_only_where_asked_for(difficult, cats):
    table = pa.table({"class_name": ["cat", "dog", "cat"], "difficult": [False, False, True]})
    mask = positive_rows(table, ["cat", "dog", "emu"], difficult)
    assert mask[:, 0].tolist() == cats
    assert mask[:, 1].tolist() == [False, True, False]
    assert not mask[:, 2].any()


def test_an_order_of_images_depends_on_the_seed_and_moves_for_no_other_image():
    ids = [f"im-{number}" for number in range(40)]
    drawn = sorted(ids, key=lambda image_id: order_key(1, image_id))
    assert drawn != sorted(ids, key=lambda image_id: order_key(2, image_id))
    assert [i for i in drawn if i != "im-7"] == sorted(set(ids) - {"im-7"}, key=lambda i: order_key(1, i))
