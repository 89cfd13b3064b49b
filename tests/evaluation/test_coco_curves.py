"""Precision over recall and AP by IoU and size: as COCO's tools compute them; the twelve numbers follow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.cocoeval import COCOeval

from swinv2_tasks.errors import UserError
from swinv2_tasks.evaluation.boundaries import boundary_distance, near_contours
from swinv2_tasks.evaluation.coco import Backend, CocoMetric, coco_scores
from swinv2_tasks.evaluation.coco_curves import describe_curves
from tests.helpers.evaluated_objects import content_of, evaluate, random_objects
from tests.helpers.objects import CATEGORIES

BACKENDS: list[Backend] = ["pycocotools", "faster_coco_eval"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_curves_are_those_of_cocos_tools(backend: Backend) -> None:
    truth, detections = random_objects(3, images=20)
    content, results = content_of(truth), [entry for of_image in detections for entry in of_image]
    scores = coco_scores(content, results, ("bbox", "segm"), backend)
    for iou_type in ("bbox", "segm"):
        of_type = scores[iou_type]
        curves = of_type.curves
        assert curves is not None
        expected = evaluate(content, results, iou_type)
        precision, at = expected.eval["precision"][..., 2], expected.eval["scores"][..., 2]
        np.testing.assert_allclose(curves.recalls, expected.params.recThrs)
        np.testing.assert_allclose(curves.precision, precision[..., 0].mean(2))
        for k, category in enumerate(CATEGORIES):
            np.testing.assert_allclose(curves.class_precision[category], precision[0, :, k, 0])
            np.testing.assert_allclose(curves.class_scores[category], at[0, :, k, 0])
            assert curves.class_precision[category].mean() == pytest.approx(curves.class_numbers[category]["ap50"])
            recall = expected.eval["recall"][:, k, 0, 2]
            assert curves.class_numbers[category]["ar"] == pytest.approx(recall.mean())

        numbers = of_type.statistics
        assert curves.ap["all"].mean() == pytest.approx(numbers["ap"])
        assert (curves.ap["all"][0], curves.ap["all"][5]) == (numbers["ap50"], numbers["ap75"])
        for size in ("small", "medium", "large"):
            mean = -1 if np.isnan(curves.ap[size]).any() else curves.ap[size].mean()
            assert mean == pytest.approx(numbers[f"ap_{size}"])


def test_boundary_ap_is_that_of_the_lower_iou_of_masks_and_boundaries() -> None:
    """By pycocotools, whose overlaps are replaced."""
    truth, detections = random_objects(5, images=8)
    content, results = content_of(truth), [entry for of_image in detections for entry in of_image]
    (scores,) = coco_scores(content, results, ["boundary"], "faster_coco_eval").values()
    for entry in (*content["annotations"], *results):
        mask = coco_masks.decode(entry["segmentation"])
        near = near_contours(mask, boundary_distance(mask.shape), outside=255) & (mask == 1)
        entry["boundary"] = coco_masks.encode(np.asfortranarray(near.astype(np.uint8)))

    class BoundaryEvaluation(COCOeval):
        def computeIoU(self, imgId: int, catId: int) -> Any:
            ious = super().computeIoU(imgId, catId)
            objects = self._gts[imgId, catId]
            found = sorted(self._dts[imgId, catId], key=lambda entry: -entry["score"])
            if not len(objects) or not len(found):
                return ious
            crowds = [entry["iscrowd"] for entry in objects]
            codes = [[entry["boundary"] for entry in entries] for entries in (found, objects)]
            return np.minimum(ious, np.where(crowds, 1.0, coco_masks.iou(*codes, crowds)))

    expected = evaluate(content, results, "segm", BoundaryEvaluation)
    assert [*scores.statistics.values()] == pytest.approx(expected.stats.tolist())
    assert 0 < scores.statistics["ap"] < evaluate(content, results, "segm").stats[0]
    with pytest.raises(UserError, match="faster_coco_eval"):
        coco_scores(content, results, ["boundary"])


def test_classes_without_objects_are_left_out_of_the_file() -> None:
    truth, detections = random_objects(2, images=10)
    content = content_of(truth)
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 5]
    (scores,) = coco_scores(content, [entry for results in detections for entry in results]).values()
    assert scores.curves is not None
    described = describe_curves(scores.curves, CATEGORIES)
    assert [entry["id"] for entry in described["classes"]] == [3, 90]
    assert math.isnan(scores.curves.class_numbers[5]["ap50"])
    assert not np.isnan(scores.curves.precision).any()


def test_the_metric_keeps_the_truth_as_an_annotation_file_states_it() -> None:
    truth, detections = random_objects(4)
    metric = CocoMetric(masks=True)
    metric.classes = (list(CATEGORIES), list(CATEGORIES.values()))
    for k, results in reversed([*enumerate(detections)]):
        metric.update(10 * k, results, truth[k])
    metric.compute()
    assert metric.truth == content_of(truth)
