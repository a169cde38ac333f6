"""The bootstrap against the slow way: repeat the images under new names, and evaluate."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.boxes import as_boxes
from pipeline.measures import bootstrap
from pipeline.measures.average_precision import Detections, GroundTruth, evaluate_classes, match_classes, mean_ap
from pipeline.measures.bootstrap import bootstrap_maps, difference_interval, interval, weighted_maps

IMAGES = 7
CLASSES = ("cat", "cow", "dog", "emu")


def boxes(rng, count):
    """On a grid so coarse that boxes coincide, overlap by a half and miss each other."""
    corners = rng.integers(0, 3, (count, 2)) * 4
    return as_boxes(np.concatenate([corners, corners + rng.choice([4, 8], (count, 2))], axis=1).reshape(-1, 4))


def truth_of(rng):
    """Objects of cat and cow on images 0 to 4, one dog on image 3, one difficult emu; images 5 and 6 have none."""
    count = 14
    images, names = rng.integers(0, 5, count), rng.choice(["cat", "cow"], count).astype(object)
    images[:3], names[:3] = (0, 3, 1), ("cat", "dog", "emu")
    difficult = rng.random(count) < 0.3
    difficult[:3] = (False, False, True)
    return GroundTruth(images, boxes(rng, count), difficult), names


def detections_of(rng, truth, names):
    """Of all classes but dog, on images 0 to 5: half of them on objects, and many of equal scores."""
    count = 40
    some, own = boxes(rng, count), rng.choice(["cat", "cow", "emu"], count).astype(object)
    images, chosen = rng.integers(0, 6, count), rng.integers(0, len(names), count)
    on_object = (rng.random(count) < 0.5) & (names[chosen] != "dog")
    some[on_object], own[on_object] = truth.boxes[chosen][on_object], names[chosen][on_object]
    images[on_object] = truth.images[chosen][on_object]
    return Detections(images, rng.integers(0, 6, count) / 4, some), own


@pytest.fixture(params=range(6))
def case(request):
    """Objects, and the detections of three models."""
    rng = np.random.default_rng(request.param)
    truth, names = truth_of(rng)
    return truth, names, [detections_of(rng, truth, names) for _ in range(3)]


def matched(truth, names, models):
    return [match_classes(truth, names, own, classes, class_names=CLASSES) for own, classes in models]


def repeated(images, weights):
    """Row numbers and new image ids: of an image drawn k times all rows k times, the copies of a row side by side."""
    rows = [(row, image * 100 + copy) for row, image in enumerate(images) for copy in range(weights[image])]
    return np.array(rows, np.int64).reshape(-1, 2).T


def slow_maps(truth, names, detections, classes, weights, thresholds="exact"):
    """Both means of one resample, from images that are really repeated."""
    rows, images = repeated(truth.images, weights)
    objects = GroundTruth(images, truth.boxes[rows], truth.difficult[rows])
    some, images = repeated(detections.images, weights)
    found = Detections(images, detections.scores[some], detections.boxes[some])
    results = evaluate_classes(objects, names[rows], found, classes[some], thresholds=thresholds).values()
    means = [mean_ap(result.ap_11 for result in results), mean_ap(result.ap_area for result in results)]
    return [np.nan if value is None else value for value in means]


def without_ties(detections):
    """The same order of detections, by the rule for equal scores: by image, then in the order given."""
    order = sorted(range(len(detections.scores)), key=lambda i: (-detections.scores[i], detections.images[i], i))
    scores = np.empty(len(order))
    scores[order] = -np.arange(len(order))
    return replace(detections, scores=scores)


@pytest.mark.parametrize("thresholds", ["exact", "arange"])
def test_every_resample_is_measured_as_if_its_images_were_repeated(case, thresholds):
    truth, names, models = case
    found = bootstrap_maps(matched(truth, names, models), IMAGES, samples=30, seed=5, thresholds=thresholds)
    drawn = np.random.default_rng(5).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=30)
    assert drawn.max() > 2
    for model, (detections, classes) in enumerate(models):
        own = without_ties(detections)
        expected = np.array([slow_maps(truth, names, own, classes, weights, thresholds) for weights in drawn])
        np.testing.assert_allclose(found.map_11[model], expected[:, 0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.map_area[model], expected[:, 1], rtol=0, atol=1e-12)


def test_equal_scores_of_different_images_are_taken_by_image_id(case):
    truth, names, models = case
    detections, classes = models[0]
    keys = [f"{row}" for row in zip(classes, detections.images, detections.scores, strict=True)]
    _, first = np.unique(keys, return_index=True)  # the ties that remain are between images
    own = Detections(detections.images[first], detections.scores[first], detections.boxes[first])
    assert len(np.unique(own.scores)) < len(first) / 2
    drawn = np.random.default_rng(1).multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), size=20)
    found = weighted_maps(matched(truth, names, [(own, classes[first])]), drawn.T)
    expected = np.array([slow_maps(truth, names, own, classes[first], weights) for weights in drawn])
    np.testing.assert_allclose(found.map_11[0], expected[:, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.map_area[0], expected[:, 1], rtol=0, atol=1e-12)


def test_weights_of_one_give_the_mean_average_precision_of_the_test_set(case):
    truth, names, models = case
    found = weighted_maps(matched(truth, names, models), np.ones((IMAGES, 1), np.int64))
    for model, own in enumerate(models):
        results = evaluate_classes(truth, names, *own, class_names=CLASSES).values()
        assert found.map_11[model, 0] == pytest.approx(mean_ap(result.ap_11 for result in results), abs=1e-12)
        assert found.map_area[model, 0] == pytest.approx(mean_ap(result.ap_area for result in results), abs=1e-12)


def test_the_data_have_what_they_are_to_test(case):
    truth, names, models = case
    results = evaluate_classes(truth, names, *models[0], class_names=CLASSES)
    assert results["emu"].n_positive == 0
    assert results["emu"].n_detections > 0
    assert (results["dog"].n_positive, results["dog"].n_detections) == (1, 0)
    assert any(one.on_difficult.any() for one in matched(truth, names, models)[0].values())
    assert any(result.true_positives > 1 for result in results.values())
    assert set(truth.images) < set(range(IMAGES))


def test_a_model_compared_with_itself_differs_by_exactly_nothing(case):
    truth, names, models = case
    found = bootstrap_maps(matched(truth, names, [models[0], models[1], models[0]]), IMAGES, samples=50)
    np.testing.assert_array_equal(found.map_11[0], found.map_11[2])
    assert difference_interval(found.map_area[0], found.map_area[2]) == (0, 0)
    assert (found.map_11[0] != found.map_11[1]).any()


def test_a_seed_gives_the_same_resamples_however_many_are_in_memory(case, monkeypatch):
    own = matched(*case)
    whole = bootstrap_maps(own, IMAGES, samples=40, seed=3)
    other = bootstrap_maps(own, IMAGES, samples=40, seed=4)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 100)
    pieces = bootstrap_maps(own, IMAGES, samples=40, seed=3)
    np.testing.assert_array_equal(whole.map_11, pieces.map_11)
    np.testing.assert_array_equal(whole.map_area, pieces.map_area)
    assert (whole.map_11 != other.map_11).any()
    assert whole.map_11.shape == whole.map_area.shape == (3, 40)


def test_the_mean_of_a_resample_is_over_the_classes_with_positives_in_it():
    truth = GroundTruth(np.array([0, 1]), as_boxes([(0, 0, 10, 10)] * 2), np.zeros(2, bool))
    names = np.array(["cat", "dog"], object)
    found = Detections(np.array([0]), np.ones(1), as_boxes([(0, 0, 10, 10)]))
    own = match_classes(truth, names, found, names[:1])
    maps = weighted_maps([own], np.array([[1, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 2]]))
    np.testing.assert_array_equal(maps.map_11, [[0.5, 1, 0, np.nan]])
    assert interval(maps.map_11[0], 0.5) == (0.25, 0.75)


def test_a_test_set_without_positives_has_no_interval():
    nothing = Detections(np.zeros(0, np.int64), np.zeros(0), as_boxes([]))
    none = GroundTruth(nothing.images, nothing.boxes, np.zeros(0, bool))
    own = match_classes(none, np.zeros(0, object), nothing, np.zeros(0, object), class_names=["cat"])
    maps = bootstrap_maps([own, own], 3, samples=4)
    assert maps.map_11.shape == (2, 4)
    assert np.isnan(difference_interval(*maps.map_11)).all()


def test_an_interval_leaves_out_as_much_below_as_above():
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert difference_interval(np.arange(101.0) + 7, np.arange(101.0)) == (7, 7)
    with pytest.raises(ValueError, match="not 95"):
        interval(np.arange(3.0), 95)


def test_models_of_different_objects_or_images_are_refused(case):
    truth, names, models = case
    own = matched(truth, names, models[:1])[0]
    less = matched(replace(truth, difficult=np.arange(len(names)) == 0), names, models[:1])[0]
    with pytest.raises(ValueError, match="models have different objects of class"):
        bootstrap_maps([own, less], IMAGES)
    with pytest.raises(ValueError, match="class 'emu' is not one of every model"):
        bootstrap_maps([own, {name: own[name] for name in CLASSES[:3]}], IMAGES)
    for images in (own["cat"].images + IMAGES, own["cat"].images - IMAGES, own["cat"].images.astype(str)):
        with pytest.raises(ValueError, match="whole numbers from 0 to 6"):
            bootstrap_maps([{**own, "cat": replace(own["cat"], images=images)}], IMAGES)
    with pytest.raises(ValueError, match="not 0"):
        bootstrap_maps([own], 0)
    with pytest.raises(ValueError, match="not 0"):
        bootstrap_maps([own], IMAGES, samples=0)
    for weights in (np.full((IMAGES, 1), 0.5), np.full((IMAGES, 1), -1), np.ones(IMAGES)):
        with pytest.raises(ValueError, match="weights must be whole numbers"):
            weighted_maps([own], weights)
