import json
import types

import numpy as np
import pytest
import tensorflow as tf

from train.detection import evaluator
from train.detection.annotations import CocoSplit
from train.detection.evaluator import Evaluator, class_figures, coco_evaluations


def truth(boxes, images=(1, 2)):
    return {
        "images": [{"id": i, "width": 100, "height": 100} for i in images],
        "categories": [{"id": 4, "name": "a"}],
        "annotations": [
            {
                "id": k,
                "image_id": image,
                "category_id": 4,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for k, (image, box) in enumerate(boxes, 1)
        ],
    }


def coco_figures(ground_truth, detections, **options):
    return evaluator.coco_figures(coco_evaluations(ground_truth, detections, **options))


def test_an_image_for_which_nothing_is_found_counts():
    boxes = [(1, [10, 10, 40, 40]), (2, [20, 20, 50, 50])]
    found = [{"image_id": 1, "category_id": 4, "bbox": [10, 10, 40, 40], "score": 0.9}]
    both = [*found, {**found[0], "image_id": 2, "bbox": [20, 20, 50, 50]}]
    assert coco_figures(truth(boxes), both)["AP50"] == pytest.approx(1.0)
    assert coco_figures(truth(boxes), found)["AP50"] == pytest.approx(0.5, abs=0.01)
    assert coco_figures(truth(boxes), [])["AP50"] == 0.0


def test_each_class_has_its_own_figures():
    """Against numbers worked out by hand; COCO takes the precision at 101 recalls.

    One class is found but for its second object; one with a false answer that is surer; one by
    boxes of IoU 0.62, which three of the ten thresholds allow; one has no objects but a crowd.
    """
    real = truth([(1, [0, 0, 40, 40]), (2, [0, 0, 40, 40])] * 2 + [(1, [0, 0, 100, 50])])
    for answer, category in zip(real["annotations"], (4, 4, 9, 9, 12), strict=True):
        answer["category_id"] = category
    crowd = {**real["annotations"][0], "id": 6, "category_id": 13, "iscrowd": 1}
    real["annotations"].append(crowd)
    real["categories"] = [
        {"id": i, "name": n} for i, n in ((4, "a"), (12, "c"), (9, "b"), (13, "d"))
    ]
    found = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category, box, score in (
            (4, [0, 0, 40, 40], 0.9),
            (9, [50, 50, 40, 40], 0.9),
            (9, [0, 0, 40, 40], 0.8),
            (12, [0, 0, 62, 50], 0.9),
        )
    ]
    rows = class_figures(coco_evaluations(real, found))
    rows = json.loads(json.dumps(rows))  # as runs keep them
    assert rows == [
        {"id": 4, "name": "a", "objects": 2, "AP": close(51 / 101), "AP50": close(51 / 101)},
        {"id": 9, "name": "b", "objects": 2, "AP": close(51 / 202), "AP50": close(51 / 202)},
        {"id": 12, "name": "c", "objects": 1, "AP": close(0.3), "AP50": close(1.0)},
        {"id": 13, "name": "d", "objects": 0, "AP": -1.0, "AP50": -1.0},
    ]
    assert coco_figures(real, found)["AP"] == close(np.mean([row["AP"] for row in rows[:3]]))


def close(value):
    return pytest.approx(value, abs=1e-9)


def test_the_size_of_a_mask_is_its_area_not_its_boxs():
    """A thin diagonal is small, however large its box; a false one of its kind counts as small."""
    from pycocotools import mask

    def diagonal(shift):
        ink = np.zeros((200, 200), "uint8", order="F")
        ink[np.arange(100), np.arange(100) + shift] = 1
        encoded = mask.encode(ink)
        return {
            "bbox": [float(shift), 0, 100, 100],
            "segmentation": {**encoded, "counts": encoded["counts"].decode()},
        }

    real = truth([(1, [0, 0, 100, 100])], images=(1,))
    real["annotations"][0] |= {**diagonal(0), "area": 100.0}
    answer = {"image_id": 1, "category_id": 4}
    found = [{**answer, **diagonal(60), "score": 0.9}, {**answer, **diagonal(0), "score": 0.8}]
    figures = coco_figures(real, found, masks=True)
    assert figures["mask_AP"] == pytest.approx(0.5, abs=0.01)
    assert figures["mask_APs"] == pytest.approx(0.5, abs=0.01)
    (row,) = class_figures(coco_evaluations(real, found, masks=True))
    assert row["mask_AP"] == figures["mask_AP"]
    assert row["AP"] == figures["AP"]


def split_of(images):
    return CocoSplit(None, images, truth([], images=images), [], (None, 4), ("?", "a"), [])


def predictions_of(image):
    """A box of each label, and padding."""
    return {
        "source_id": tf.constant([image]),
        "num_detections": tf.constant([3]),
        "detection_boxes": tf.constant([[[10.0, 20, 30, 60], [0, 0, 9, 9], [0, 0, 0, 0]]]),
        "detection_scores": tf.constant([[0.9, 0.5, 0.0]]),
        "detection_classes": tf.constant([[2, 1, 0]]),
        "image_info": tf.constant([[[50.0, 80], [100, 160], [2, 2], [0, 0]]]),
    }


def test_an_evaluation_says_how_far_it_is(monkeypatch):
    """An image in 8 s: a word after the third and the sixth, at most every 20 s."""
    clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(evaluator, "time", clock)
    told = []
    found = Evaluator(split_of(range(1, 9)), on_images=lambda *said: told.append(said))
    for image in range(1, 9):
        clock.now += 8
        found.update_state({}, predictions_of(image))
    assert told == [(3, ", 0:00:40 left"), (6, ", 0:00:16 left")]


def test_predictions_become_cocos_results():
    """Labels become category ids, boxes pixels of the image as it was; padding is left out.

    Replicas may be given an image again, to fill their last batch: it counts once.
    """
    evaluator = Evaluator(split_of(images=(7,)))
    predictions = predictions_of(7)
    evaluator.update_state({}, {name: (value, value) for name, value in predictions.items()})
    evaluator.update_state({}, predictions)
    evaluator.evaluate()
    assert evaluator.detections == [
        {
            "image_id": 7,
            "category_id": 4,
            "bbox": [10, 5, 20, 10],
            "score": pytest.approx(0.9),
        }
    ]
