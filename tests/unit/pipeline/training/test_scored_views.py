"""Test views: which pixels they are, that maps are computed once, and that their probabilities are averaged."""

from __future__ import annotations

import dataclasses
from typing import get_args

import cv2
import numpy as np
import pytest
import torch

from jobs.config import pretrain
from pipeline.network.spp_network import InputSizeError, new_network, pyramid_pool
from pipeline.spp.windows import map_windows
from pipeline.training.augmentation import FIVE, at_short_side, crop
from pipeline.training.scored_views import FIXED_VIEWS, SCALES, VIEWS, needed_side, score_views, view_boxes
from tests.small_body import SMALL_BODY

LEVELS = (3, 1)


@pytest.fixture(scope="module")
def network():
    return new_network(SMALL_BODY, "spp", LEVELS, 4, sizes=(8, 6), initial="he", seed=2).eval()


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    coarse = [random.integers(0, 256, (*size, 3), np.uint8) for size in ((6, 8), (9, 6), (7, 7))]
    return [cv2.resize(c, (c.shape[1] * 40, c.shape[0] * 40), interpolation=cv2.INTER_CUBIC) for c in coarse]


def odds(network, crops) -> np.ndarray:
    """The slow way: one after the other, then the mean."""
    with torch.inference_mode():
        return np.mean([torch.softmax(network(torch.from_numpy(c.copy())[None]), 1)[0].numpy() for c in crops], axis=0)


def test_crops_and_full_images_are_averaged(network, images):
    for image, one, small, ten, full, both in zip(
        images,
        *(score_views(network, images, view) for view in ("1-crop", "1-crop-180", "10-crop", "1-full", "2-full")),
        strict=True,
    ):
        whole = at_short_side(image)
        centre = crop(whole, (0.5, 0.5))
        np.testing.assert_allclose(one, odds(network, [centre]), atol=1e-5)
        np.testing.assert_allclose(small, odds(network, [cv2.resize(centre.copy(), (180, 180))]), atol=1e-5)
        five = [crop(whole, place) for place in FIVE]
        np.testing.assert_allclose(ten, odds(network, [*five, *(c[:, ::-1] for c in five)]), atol=1e-5)
        np.testing.assert_allclose(full, odds(network, [whole]), atol=1e-5)
        np.testing.assert_allclose(both, odds(network, [whole, whole[:, ::-1]]), atol=1e-5)
        assert not np.allclose(one, full, atol=1e-4)


def test_ninety_six_views_and_two_full_ones_share_a_map_per_scale(network, images):
    passes = []
    hook = network.body.register_forward_hook(lambda module, given, made: passes.append(tuple(given[0].shape)))
    found = score_views(network, images, "multi")
    hook.remove()
    assert len(passes) == len(images) * 2 * len(SCALES)
    assert {min(shape[2:]) for shape in passes} == set(SCALES)
    for image, means in zip(images, found, strict=True):
        vectors = []
        for scale in SCALES:
            for pixels in (at_short_side(image, scale), at_short_side(image, scale)[:, ::-1]):
                with torch.inference_mode():
                    conv_map = network.maps(torch.from_numpy(pixels.copy())[None])
                height, width = pixels.shape[:2]
                boxes = view_boxes(height, width)
                assert len(boxes) == (3 if scale == 224 else 9)
                if scale == 256:
                    boxes = np.concatenate([boxes, [[0, 0, width, height]]]).astype(np.float32)
                cells = conv_map.shape[2:]
                windows = map_windows(boxes, (height, width), scale, SMALL_BODY.geometry, tuple(cells))
                vectors += [pyramid_pool(conv_map[:, :, b : d + 1, a : c + 1], LEVELS) for a, b, c, d in windows]
        assert len(vectors) == 98
        with torch.inference_mode():
            wanted = torch.softmax(network.head(torch.cat(vectors)), 1).mean(0)
        np.testing.assert_allclose(means, wanted.numpy(), atol=1e-5)


def test_the_nine_views_are_the_centre_the_corners_and_the_middles_of_the_edges():
    boxes = view_boxes(300, 400)
    assert {tuple(box[:2]) for box in boxes.tolist()} == {(x, y) for x in (0, 88, 176) for y in (0, 38, 76)}
    assert ((boxes[:, 2:] - boxes[:, :2]) == 224).all()
    assert view_boxes(224, 300).tolist() == [[0, 0, 224, 224], [38, 0, 262, 224], [76, 0, 300, 224]]
    assert view_boxes(300, 224).tolist() == [[0, 0, 224, 224], [0, 38, 224, 262], [0, 76, 224, 300]]


def test_a_network_without_a_pyramid_takes_crops_only(images):
    network = new_network(SMALL_BODY, "fixed", LEVELS, 4, sizes=(8, 6), initial="he").eval()
    for view in VIEWS:
        if view in FIXED_VIEWS:
            assert score_views(network, images[:2], view).shape == (2, 4)
        else:
            with pytest.raises(InputSizeError, match="no spatial pyramid"):
                score_views(network, images, view)


def test_padded_cells_are_no_part_of_a_view(images):
    spec = dataclasses.replace(SMALL_BODY, pad_to=32)
    network = new_network(spec, "spp", LEVELS, 4, sizes=(8, 6), initial="he").eval()
    height, width = at_short_side(images[0], 300).shape[:2]
    maps = network.maps(torch.zeros((1, height, width, 3), dtype=torch.uint8))
    assert tuple(maps.shape[2:]) == (spec.map_length(height), spec.map_length(width)) != (320 // 4, 416 // 4)
    assert np.isfinite(score_views(network, images[:1], "multi")).all()


def test_no_images_give_no_scores(network):
    assert [score_views(network, [], view).shape for view in VIEWS] == [(0, 4)] * len(VIEWS)
    assert needed_side("multi") == 560
    assert needed_side("1-full") == 256


def test_the_config_names_the_views_that_there_are():
    """It has a list of its own: reading a config imports no torch."""
    assert get_args(pretrain.ScoredView) == VIEWS
    assert pretrain._FIXED_VIEWS == FIXED_VIEWS
