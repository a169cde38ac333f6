import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boxes import as_boxes, from_inclusive
from pipeline.measures import average_precision as evaluation
from pipeline.measures.average_precision import Detections, GroundTruth, evaluate_class, evaluate_classes, mean_ap

CLASSES = ("aeroplane", "bus", "cat", "cow", "sofa", "train")


def truth_of(rows):
    """From (image, half-open box, difficult)."""
    return GroundTruth(
        np.array([row[0] for row in rows], np.int64),
        as_boxes([row[1] for row in rows]),
        np.array([row[2] for row in rows], bool),
    )


def detections_of(rows):
    """From (image, score, half-open box)."""
    return Detections(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.float32),
        as_boxes([row[2] for row in rows]),
    )


def devkit(truth, detections, minimum, strict=False):
    """VOCevaldet.m and VOCap.m line by line, in fractions: (tp, fp) per detection, and both average precisions.

    ``truth``: (image, inclusive box, difficult); ``detections``: (image, score, inclusive box).
    """
    positives = sum(not difficult for _, _, difficult in truth)
    found = [False] * len(truth)
    order = sorted(range(len(detections)), key=lambda i: (-detections[i][1], detections[i][0], i))
    tp, fp = [], []
    for d in order:
        image, _, bb = detections[d]
        ovmax, jmax = Fraction(-1), None
        for j, (gt_image, gt, _) in enumerate(truth):
            if gt_image != image:
                continue
            bi = (max(bb[0], gt[0]), max(bb[1], gt[1]), min(bb[2], gt[2]), min(bb[3], gt[3]))
            iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
            if iw > 0 and ih > 0:
                ua = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1) + (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - iw * ih
                if Fraction(iw * ih, ua) > ovmax:
                    ovmax, jmax = Fraction(iw * ih, ua), j
        tp.append(0)
        fp.append(0)
        if jmax is None or not (ovmax > minimum if strict else ovmax >= minimum):
            fp[-1] = 1
        elif not truth[jmax][2]:
            if found[jmax]:
                fp[-1] = 1
            else:
                tp[-1] = 1
                found[jmax] = True
    if not positives:
        return tp, fp, None, None
    tps, fps = np.cumsum(tp).tolist(), np.cumsum(fp).tolist()
    rec = [Fraction(t, positives) for t in tps]
    prec = [Fraction(t, t + f) if t + f else Fraction(0) for t, f in zip(tps, fps, strict=True)]
    ap_11 = sum(max((p for r, p in zip(rec, prec, strict=True) if r >= Fraction(k, 10)), default=0) for k in range(11))
    mrec, mpre = [0, *rec, 1], [0, *prec, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    ap_area = sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))
    return tp, fp, float(Fraction(ap_11) / 11), float(ap_area)


boxes_on_a_grid = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
some_truth = st.lists(st.tuples(st.integers(0, 2), boxes_on_a_grid, st.booleans()), max_size=12)
some_detections = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), boxes_on_a_grid), max_size=15)


@given(some_truth, some_detections, st.sampled_from([(0.5, Fraction(1, 2)), (0.3, Fraction(3, 10))]), st.booleans())
def test_every_detection_counts_as_in_the_devkit(truth, detections, limit, strict):
    overlap, minimum = limit
    tp, fp, ap_11, ap_area = devkit(truth, detections, minimum, strict)
    result = evaluate_class(
        truth_of([(image, from_inclusive(box)[0], difficult) for image, box, difficult in truth]),
        detections_of([(image, score, from_inclusive(box)[0]) for image, score, box in detections]),
        overlap=overlap,
        strict=strict,
    )
    tps, fps = np.cumsum(tp, dtype=int), np.cumsum(fp, dtype=int)
    positives = sum(not difficult for _, _, difficult in truth)
    assert (result.n_positive, result.n_detections, result.true_positives) == (positives, len(detections), sum(tp))
    np.testing.assert_array_equal(result.scores, sorted((score for _, score, _ in detections), reverse=True))
    np.testing.assert_array_equal(result.recall, tps / max(positives, 1))
    np.testing.assert_array_equal(result.precision, tps / np.maximum(tps + fps, 1))
    assert result.ap_11 == (ap_11 if ap_11 is None else pytest.approx(ap_11, abs=1e-12))
    assert result.ap_area == (ap_area if ap_area is None else pytest.approx(ap_area, abs=1e-12))


@pytest.fixture(scope="module")
def small_case(shared):
    return json.loads((shared / "oracles/eval_small_case.json").read_text())


def small_case_result(small_case, overlap, thresholds):
    """Its x2 is x + w, inclusive, so its boxes are w + 1 pixels wide."""
    images = [np.array([row[0] for row in small_case[key]]) for key in ("ground_truth", "detections")]
    sides = [np.array([row[-4:] for row in small_case[key]]) for key in ("ground_truth", "detections")]
    boxes = [as_boxes(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] + 1], axis=1)) for xywh in sides]
    truth = GroundTruth(images[0], boxes[0], np.zeros(len(boxes[0]), bool))
    detections = Detections(images[1], np.array([row[1] for row in small_case["detections"]]), boxes[1])
    return evaluate_class(truth, detections, overlap=float(overlap), thresholds=thresholds)


@pytest.mark.parametrize("overlap", ["0.1", "0.3", "0.5", "0.75"])
def test_the_small_case_is_the_oracles(small_case, overlap):
    """Its recalls are numpy.linspace(0, 1, 11), which are the floats of numpy.arange."""
    result = small_case_result(small_case, overlap, "arange")
    assert (result.n_positive, result.n_detections) == (15, 24)
    assert result.ap_11 == pytest.approx(small_case["ap_11_point"][overlap], abs=1e-10)
    assert result.ap_area == pytest.approx(small_case["ap_every_point"][overlap], abs=1e-10)


@pytest.mark.parametrize(("overlap", "more"), [("0.1", 9 / 23 / 11), ("0.3", 0), ("0.5", 0), ("0.75", 0)])
def test_the_small_case_with_exact_tenths(small_case, overlap, more):
    """At 0.1 the ninth of 15 objects, found by the 23rd detection, makes a recall of exactly 6/10."""
    result = small_case_result(small_case, overlap, "exact")
    assert result.ap_11 == pytest.approx(small_case["ap_11_point"][overlap] + more, abs=1e-10)
    assert result.ap_area == pytest.approx(small_case["ap_every_point"][overlap], abs=1e-10)


@pytest.fixture(scope="module")
def voc07(shared):
    with np.load(shared / "oracles/voc07_eval_6cls.npz", allow_pickle=False) as file:
        return dict(file)


def voc07_class(voc07, name):
    """Its boxes are inclusive and count from 1; those of the detections have fractions."""
    truth = GroundTruth(voc07[f"{name}/gt_img"], from_inclusive(voc07[f"{name}/gt_box"]), voc07[f"{name}/gt_difficult"])
    boxes = from_inclusive(voc07[f"{name}/det_box"])
    return truth, Detections(voc07[f"{name}/det_img"], voc07[f"{name}/det_score"], boxes)


@pytest.mark.parametrize("name", CLASSES)
def test_voc07_is_as_py_faster_rcnn_measured_it(voc07, name):
    result = evaluate_class(*voc07_class(voc07, name), strict=True, thresholds="arange")
    assert result.ap_11 == pytest.approx(float(voc07[f"{name}/ref_ap07"]), abs=1e-5)
    # within a group of equal scores the reference's order is arbitrary
    last = np.flatnonzero(np.append(np.diff(result.scores) != 0, True))
    assert len(last) > 1000
    np.testing.assert_allclose(result.recall[last], voc07[f"{name}/ref_rec"][last], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.precision[last], voc07[f"{name}/ref_prec"][last], rtol=0, atol=1e-9)


def test_with_exact_tenths_a_recall_of_six_tenths_counts(voc07):
    truth, detections = voc07_class(voc07, "aeroplane")
    exact = evaluate_class(truth, detections, strict=True)
    arange = evaluate_class(truth, detections, strict=True, thresholds="arange")
    assert (exact.n_positive, 171 in np.round(exact.recall * 285)) == (285, True)
    assert exact.ap_11 == pytest.approx(0.61161, abs=1e-5)
    assert arange.ap_11 == pytest.approx(0.61107, abs=1e-5)
    assert exact.ap_area == arange.ap_area


def test_rows_of_all_classes_in_any_order_give_the_same(voc07):
    rng = np.random.default_rng(3)
    ids = voc07["image_ids"]
    parts = [voc07_class(voc07, name) for name in CLASSES]
    columns = {
        "gt": [
            np.concatenate([getattr(part[0], field) for part in parts]) for field in ("images", "boxes", "difficult")
        ],
        "det": [np.concatenate([getattr(part[1], field) for part in parts]) for field in ("images", "scores", "boxes")],
    }
    names = [np.repeat(CLASSES, [len(part[side].boxes) for part in parts]) for side in (0, 1)]
    shuffled = [rng.permutation(len(column)) for column in names]
    truth = GroundTruth(ids[columns["gt"][0]], *columns["gt"][1:])
    detections = Detections(ids[columns["det"][0]].astype(object), *columns["det"][1:])
    truth = GroundTruth(*(getattr(truth, field)[shuffled[0]] for field in ("images", "boxes", "difficult")))
    detections = Detections(*(getattr(detections, field)[shuffled[1]] for field in ("images", "scores", "boxes")))
    found = evaluate_classes(truth, names[0][shuffled[0]], detections, names[1][shuffled[1]], strict=True)
    assert tuple(found) == CLASSES
    for name, part in zip(CLASSES, parts, strict=True):
        alone = evaluate_class(*part, strict=True)
        assert found[name].n_positive == alone.n_positive
        assert found[name].n_detections == alone.n_detections
        assert found[name].ap_11 == pytest.approx(alone.ap_11, abs=1e-3)  # equal scores of an image stand otherwise
        np.testing.assert_array_equal(found[name].scores, alone.scores)


def test_however_few_pairs_are_in_memory_the_result_is_the_same(voc07, monkeypatch):
    whole = evaluate_class(*voc07_class(voc07, "cow"))
    monkeypatch.setattr(evaluation, "_PAIRS_AT_ONCE", 7)
    pieces = evaluate_class(*voc07_class(voc07, "cow"))
    np.testing.assert_array_equal(pieces.recall, whole.recall)
    np.testing.assert_array_equal(pieces.precision, whole.precision)


def test_an_overlap_of_exactly_one_half_is_enough_unless_strict():
    truth, detections = truth_of([(0, (0, 0, 10, 10), False)]), detections_of([(0, 1, (0, 0, 10, 5))])
    assert evaluate_class(truth, detections).true_positives == 1
    assert evaluate_class(truth, detections, strict=True).true_positives == 0


@pytest.mark.parametrize("tenths", [1, 2, 3, 6, 7, 9])
def test_every_overlap_in_tenths_is_exact(tenths):
    truth = truth_of([(0, (0, 0, 10, 1), False)])
    detections = detections_of([(0, 1, (0, 0, tenths, 1))])
    assert evaluate_class(truth, detections, overlap=tenths / 10).true_positives == 1
    assert evaluate_class(truth, detections, overlap=tenths / 10, strict=True).true_positives == 0


def test_areas_that_float32_does_not_tell_apart_are_compared_exactly():
    """10 x 5384 x 2024 = 3 x 6001 x 6053 + 1."""
    truth, detections = truth_of([(0, (0, 0, 6001, 6053), False)]), detections_of([(0, 1, (0, 0, 5384, 2024))])
    assert evaluate_class(truth, detections, overlap=0.3, strict=True).true_positives == 1


def test_a_recall_of_three_tenths_tells_the_thresholds_apart():
    truth = truth_of([(i, (0, 0, 10, 10), False) for i in range(10)])
    detections = detections_of([(i, 1 - i / 10, (0, 0, 10, 10)) for i in range(3)])
    assert evaluate_class(truth, detections).ap_11 == pytest.approx(4 / 11)
    assert evaluate_class(truth, detections, thresholds="arange").ap_11 == pytest.approx(3 / 11)


def test_a_detection_of_a_difficult_object_is_neither_right_nor_wrong():
    truth = truth_of([(0, (0, 0, 10, 10), True), (0, (50, 0, 60, 10), False)])
    detections = detections_of([(0, 3, (0, 0, 10, 10)), (0, 2, (0, 0, 10, 9)), (0, 1, (50, 0, 60, 10))])
    result = evaluate_class(truth, detections)
    np.testing.assert_array_equal(result.recall, [0, 0, 1])
    np.testing.assert_array_equal(result.precision, [0, 0, 1])
    assert (result.ap_11, result.ap_area, result.n_positive, result.true_positives) == (1, 1, 1, 1)


def test_a_second_detection_is_wrong_even_where_another_object_would_fit():
    truth = truth_of([(0, (0, 0, 10, 10), False), (0, (1, 0, 11, 10), False)])
    detections = detections_of([(0, 2, (0, 0, 10, 10)), (0, 1, (0, 0, 10, 10))])
    np.testing.assert_array_equal(evaluate_class(truth, detections).precision, [1, 0.5])


def test_of_equal_overlaps_the_first_object_counts():
    boxes = [(0, 0, 10, 10), (2, 0, 12, 10)]
    between = detections_of([(0, 1, (1, 0, 11, 10))])
    for difficult, expected in (((True, False), 0), ((False, True), 1)):
        truth = truth_of([(0, box, flag) for box, flag in zip(boxes, difficult, strict=True)])
        assert evaluate_class(truth, between).true_positives == expected


def test_equal_scores_go_by_image_and_then_by_the_order_given():
    truth = truth_of([(1, (0, 0, 10, 10), False), (2, (0, 0, 10, 10), False)])
    right, wrong = (0, 0, 10, 10), (50, 0, 60, 10)
    by_image = evaluate_class(truth, detections_of([(2, 1, wrong), (1, 1, right)]))
    np.testing.assert_array_equal(by_image.precision, [1, 0.5])
    by_order = evaluate_class(truth, detections_of([(2, 1, wrong), (2, 1, right)]))
    np.testing.assert_array_equal(by_order.precision, [0, 0.5])


def test_an_object_of_another_image_is_not_found():
    truth = truth_of([(1, (0, 0, 10, 10), False)])
    assert evaluate_class(truth, detections_of([(2, 1, (0, 0, 10, 10))])).ap_11 == 0


def test_without_positives_there_is_no_average_precision():
    truth, detections = (
        truth_of([(0, (0, 0, 10, 10), True)]),
        detections_of([(0, 1, (0, 0, 9, 9)), (1, 0, (0, 0, 9, 9))]),
    )
    result = evaluate_class(truth, detections)
    assert (result.ap_11, result.ap_area, result.n_positive, result.n_detections) == (None, None, 0, 2)
    np.testing.assert_array_equal(result.recall, [0, 0])


def test_without_detections_average_precision_is_zero():
    result = evaluate_class(truth_of([(0, (0, 0, 10, 10), False)]), detections_of([]))
    assert (result.ap_11, result.ap_area, result.n_positive, result.n_detections) == (0, 0, 1, 0)
    assert result.recall.shape == result.precision.shape == result.scores.shape == (0,)


def test_classes_are_those_that_occur_or_those_asked_for():
    truth = truth_of([(0, (0, 0, 10, 10), False), (0, (0, 0, 10, 10), False)])
    detections = detections_of([(0, 1, (0, 0, 10, 10)), (0, 1, (0, 0, 10, 10))])
    found = evaluate_classes(truth, np.array(["dog", "cat"]), detections, np.array(["dog", "emu"]))
    assert {name: result.ap_11 for name, result in found.items()} == {"cat": 0, "dog": 1, "emu": None}
    asked = evaluate_classes(
        truth, np.array(["dog", "cat"]), detections, np.array(["dog", "emu"]), class_names=["yak", "dog"]
    )
    assert {name: result.ap_11 for name, result in asked.items()} == {"yak": None, "dog": 1}
    assert evaluate_classes(truth_of([]), np.array([]), detections_of([]), np.array([])) == {}


def test_classes_without_positives_are_left_out_of_the_mean():
    assert mean_ap(iter([0.5, None, 0.0])) == 0.25
    assert mean_ap([None]) is None


ONE, NONE = detections_of([(0, 1, (0, 0, 1, 1))]), truth_of([])


@pytest.mark.parametrize(
    ("truth", "detections", "options", "message"),
    [
        (NONE, ONE, {"overlap": 0}, "above 0"),
        (NONE, ONE, {"overlap": 1.1}, "at most 1, not 1.1"),
        (truth_of([(0, (0, 0, 1, 1), False)]), ONE, {"thresholds": "tenths"}, "'exact' or 'arange'"),
        (NONE, Detections(ONE.images, np.array([np.nan]), ONE.boxes), {}, "detection 0 is NaN"),
        (
            NONE,
            Detections(ONE.images, ONE.scores, np.full((1, 4), np.inf)),
            {},
            "box 0 of the detections is not finite",
        ),
        (NONE, Detections(ONE.images, np.ones(2), ONE.boxes), {}, r"scores must have shape \(1,\)"),
        (GroundTruth(np.array(["0"]), ONE.boxes, np.array([False])), ONE, {}, "of one kind"),
    ],
)
def test_an_input_that_cannot_be_measured_is_refused(truth, detections, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_class(truth, detections, **options)
