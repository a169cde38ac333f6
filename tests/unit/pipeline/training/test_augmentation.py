"""Training images: five crops, mirroring, colours, and that every choice depends on seed, epoch and image alone."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.augmentation import (
    CENTRE,
    FIVE,
    PLAIN,
    SHORT_SIDE,
    Choice,
    at_short_side,
    choose,
    corner,
    crop,
    shown,
)


def picture(height: int = SHORT_SIDE, width: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((300, 400), (256, 342)), ((400, 300), (342, 256)), ((10, 20), (256, 512)), ((256, 257), (256, 257))],
)
def test_the_short_side_becomes_256(size, wanted):
    assert at_short_side(picture(*size)).shape == (*wanted, 3)


@pytest.mark.parametrize("size", [(4, 4000), (4000, 4)])
def test_of_a_very_long_image_the_middle_is_taken(size):
    image = np.zeros((*size, 3), np.uint8)
    middle = slice(2000 - 32, 2000 + 32)
    image[(slice(None), middle) if size[0] == 4 else middle] = 200
    found = at_short_side(image)
    assert sorted(found.shape[:2]) == [256, 4096]
    assert found.min() == 200


def test_the_crops_lie_in_the_centre_and_the_corners_of_the_whole_image():
    places = {place: corner(256, 401, 224, place) for place in FIVE}
    assert list(places.values()) == [(16, 88), (0, 0), (0, 177), (32, 0), (32, 177)]
    image = picture(256, 401)
    for place, (top, left) in places.items():
        np.testing.assert_array_equal(crop(image, place), image[top : top + 224, left : left + 224])


def test_a_mirrored_crop_is_that_crop_mirrored_and_a_smaller_one_the_same_pixels_resized():
    image = picture()
    plain = shown(image, PLAIN, 224)
    np.testing.assert_array_equal(plain, crop(image, CENTRE))
    np.testing.assert_array_equal(shown(image, Choice(CENTRE, True, PLAIN.shift), 224), plain[:, ::-1])
    smooth = np.linspace(0, 255, 256 * 300 * 3).reshape(256, 300, 3).astype(np.uint8)
    small, whole = shown(smooth, PLAIN, 180), shown(smooth, PLAIN, 224)
    assert small.shape == (180, 180, 3)
    rows = np.linspace(0, 223, 180).round().astype(int)
    assert np.abs(small.astype(int) - whole[rows][:, rows]).max() <= 4
    out = np.empty((180, 180, 3), np.uint8)
    assert shown(smooth, PLAIN, 180, out=out) is out
    np.testing.assert_array_equal(out, small)


def test_a_choice_depends_on_seed_epoch_and_image_alone():
    def same(a, b):
        return (a.place, a.flip) == (b.place, b.flip) and np.array_equal(a.shift, b.shift)

    assert same(choose(1, 2, 3), choose(1, 2, 3))
    assert not any(same(choose(1, 2, 3), choose(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)))


def test_places_and_mirroring_are_drawn_evenly_and_colours_as_krizhevsky_says():
    choices = [choose(0, 0, number) for number in range(4000)]
    places = [choice.place for choice in choices]
    assert all(700 < places.count(place) < 900 for place in FIVE)
    assert 1900 < sum(choice.flip for choice in choices) < 2100
    shifts = np.stack([choice.shift for choice in choices])
    # the covariance of the shifts has the published components: variances (0.1 * eigenvalue)^2
    values, vectors = np.linalg.eigh(np.cov(shifts.T))
    np.testing.assert_allclose(np.sqrt(values[::-1]), 0.1 * 255 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.05)
    assert abs(vectors[:, 2] @ [-0.5675, -0.5808, -0.5836]) > 0.999
    assert not any(choose(0, 0, n, flips=False).flip for n in range(50))
    assert not any(choose(0, 0, n, colour=False).shift.any() for n in range(50))
    assert [choose(0, 0, n, colour=False).place for n in range(50)] == places[:50]
