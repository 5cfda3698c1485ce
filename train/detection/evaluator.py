"""A detector's answers and COCO's figures of them, by pycocotools."""

import contextlib
import io
import json
import time

import tensorflow as tf
from official.vision.evaluation import coco_evaluator, coco_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from train.pace import HEARD_SECONDS, TimeLeft

BOX_FIGURES = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)


class Evaluator(coco_evaluator.COCOEvaluator):
    """Collects a detector's answers and has pycocotools evaluate them, on every image.

    Model Garden's own leaves out images for which nothing was predicted, and takes labels for
    category ids.

    Args:
        split: a `CocoSplit`.
        masks: whether masks are evaluated too.
        on_images: called every `train.pace.HEARD_SECONDS` with the number of images that have been
            seen, and a text about the time left.

    Attributes:
        detections: behind the figures of the last evaluation, in COCO's result format.
        classes: its `class_figures`.
    """

    def __init__(self, split, masks=False, on_images=lambda images, left: None):
        self._split = split
        super().__init__(annotation_file=None, include_mask=masks)
        self._annotation_file = "of the split"  # so that no ground truth is collected
        self._masks = masks
        self._on_images = on_images
        self.detections = []
        self.classes = []

    @property
    def image_count(self):
        """Number of images to evaluate."""
        return len(self._split.images)

    def reset_states(self):
        """Forgets all predictions."""
        super().reset_states()
        self._seen = set()
        self._told = time.monotonic()
        self._time_left = TimeLeft(self.image_count)

    def update_state(self, groundtruths, predictions):
        """Takes a batch's predictions; of an image that came before they are left out."""
        del groundtruths  # the split has it
        whole = {k: tf.concat(v, 0) if isinstance(v, tuple) else v for k, v in predictions.items()}
        ids = whole["source_id"].numpy().tolist()
        new = [k for k, i in enumerate(ids) if i not in self._seen and i not in ids[:k]]
        self._seen.update(ids)
        if new:
            super().update_state({}, {k: tf.gather(v, new) for k, v in whole.items()})
        now = time.monotonic()
        left = self._time_left(len(self._seen), now)
        if now - self._told >= HEARD_SECONDS:
            self._told = now
            self._on_images(len(self._seen), left)

    def evaluate(self):
        """Figures of `coco_figures`; what is behind them is kept in `detections` and `classes`."""
        found = []
        if self._predictions:
            found = coco_utils.convert_predictions_to_coco_annotations(self._predictions)
        answers = [self._as_coco(entry) for entry in found]
        self.detections = [answer for answer in answers if answer is not None]
        evaluations = coco_evaluations(self._split.ground_truth, self.detections, masks=self._masks)
        self.classes = class_figures(evaluations)
        return coco_figures(evaluations)

    def _as_coco(self, entry):
        """A prediction as COCO's result format has it; None for padding."""
        label = int(entry["category_id"])
        ids = self._split.category_ids
        if entry["score"] <= 0 or not 1 <= label <= len(ids) or ids[label - 1] is None:
            return None
        answer = {
            "image_id": int(entry["image_id"]),
            "category_id": ids[label - 1],
            "bbox": [float(x) for x in entry["bbox"]],
            "score": float(entry["score"]),
        }
        if self._masks:
            counts = entry["segmentation"]["counts"]
            size = [int(s) for s in entry["segmentation"]["size"]]
            answer["segmentation"] = {"size": size, "counts": counts.decode()}
        return answer


def coco_evaluations(ground_truth, detections, *, masks=False):
    """What pycocotools finds of boxes and masks.

    Args:
        ground_truth: dict in COCO's format; every image in it counts.
        detections: list in COCO's result format.
        masks: whether masks are evaluated too.

    Returns:
        Dict of the prefix of figures, `""` for boxes and `"mask_"`, to a summarized `COCOeval`.
    """
    evaluations = {}
    for kind, prefix in (("bbox", ""), ("segm", "mask_"))[: 2 if masks else 1]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = json.loads(json.dumps(ground_truth))
            truth.createIndex()
            found = json.loads(json.dumps(detections))
            if kind == "segm":  # else pycocotools takes the boxes' areas for those of the masks
                found = [{k: v for k, v in answer.items() if k != "bbox"} for answer in found]
            answers = truth.loadRes(found) if found else COCO()
            if not detections:
                answers.dataset = {**truth.dataset, "annotations": []}
                answers.createIndex()
            evaluations[prefix] = COCOeval(truth, answers, kind)
            evaluations[prefix].evaluate()
            evaluations[prefix].accumulate()
            evaluations[prefix].summarize()
    return evaluations


def coco_figures(evaluations):
    """COCO's twelve figures, of boxes and of masks.

    Args:
        evaluations: of `coco_evaluations`.

    Returns:
        Dict of names, such as `AP` and `mask_AP`, to floats in [0, 1]; -1 where there is nothing
        to find.
    """
    return {
        prefix + name: float(value)
        for prefix, run in evaluations.items()
        for name, value in zip(BOX_FIGURES, run.stats, strict=True)
    }


def class_figures(evaluations):
    """Average precision of each class by itself, as COCO defines it for all of them.

    Args:
        evaluations: of `coco_evaluations`.

    Returns:
        List of dicts, in order of category ids: `id`, `name`, `objects` (number to be found, those
        of crowds left out), `AP` and `AP50` in [0, 1], -1 where there are no objects; of masks
        also `mask_AP` and `mask_AP50`.
    """
    truth = evaluations[""].cocoGt
    rows = []
    for k, category in enumerate(map(int, evaluations[""].params.catIds)):
        objects = truth.loadAnns(truth.getAnnIds(catIds=[category], iscrowd=False))
        name = truth.cats[category].get("name") or category
        row = {"id": category, "name": str(name), "objects": len(objects)}
        for prefix, run in evaluations.items():
            # (IoU thresholds from 0.5 up, recalls, classes, sizes, numbers of detections): of all
            # sizes, with as many detections as are allowed.
            precision = run.eval["precision"][:, :, k, 0, -1]
            row |= {
                f"{prefix}AP": float(precision.mean()),
                f"{prefix}AP50": float(precision[0].mean()),
            }
        rows.append(row)
    return rows
