"""Recipes as Model Garden's experiments, and evaluation with pycocotools."""

import numpy as np
import pytest
import tensorflow as tf
from train_helpers import tiny_detector

from train.detection import annotations, garden
from train.detection.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_an_experiment_of_model_garden(name):
    recipe = RECIPES[name]
    records = garden.Records("train*", 1000)
    params = garden.experiment(recipe, records, records, num_classes=81)
    model = params.task.model
    assert model.num_classes == 81
    assert model.input_size == [*recipe.image_size, 3]
    assert model.backbone.get().name == recipe.model
    assert params.task.train_data.global_batch_size == recipe.batch_size
    steps = recipe.epochs * (1000 // recipe.batch_size)
    assert params.trainer.train_steps == steps
    assert ("mask_head" in model.as_dict() and bool(model.mask_head)) == ("mask" in name)


def test_other_settings_of_model_garden_can_be_set():
    records = garden.Records("train*", 64)
    recipe = tiny_detector(
        "coco_tiny_retinanet", 'garden={"task":{"losses":{"box_loss_weight":7}}}'
    )
    assert garden.experiment(recipe, records, records, 11).task.losses.box_loss_weight == 7
    recipe = tiny_detector(
        "coco_tiny_retinanet", 'garden={"task":{"losses":{"box_loss_weight":7.5}}}'
    )
    assert garden.experiment(recipe, records, records, 11).task.losses.box_loss_weight == 7.5
    recipe = tiny_detector("coco_tiny_retinanet", 'garden={"task":{"losses":{"box_los":7}}}')
    with pytest.raises(ValueError, match="box_los"):
        garden.experiment(recipe, records, records, 11)


@pytest.mark.parametrize(
    "settings",
    [
        '{"trainer":{"train_steps":3}}',
        '{"task":{"use_coco_metrics":false}}',
        '{"task":{"per_category_metrics":true}}',
        '{"task":{"annotation_file":"val.json"}}',
    ],
)
def test_settings_that_would_not_take_effect_are_refused(settings):
    records = garden.Records("train*", 64)
    with pytest.raises(ValueError, match="sets what stands under `task`"):
        garden.experiment(
            tiny_detector("coco_tiny_retinanet", f"garden={settings}"), records, records, 11
        )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ('{"model":3}', "task.model must be settings by name"),
        ('{"model":{"backbone":3}}', "task.model.backbone must be settings"),
        ('{"losses":{"box_loss_weight":"x"}}', "box_loss_weight must be a number"),
        ('{"losses":{"box_loss_weight":true}}', "box_loss_weight must be a number"),
        ('{"freeze_backbone":"no"}', "freeze_backbone must be true or false"),
    ],
)
def test_settings_of_another_kind_are_named(task, message):
    records = garden.Records("train*", 64)
    recipe = tiny_detector("coco_tiny_retinanet", f'garden={{"task":{task}}}')
    with pytest.raises(ValueError, match=f"garden.*{message}"):
        garden.experiment(recipe, records, records, 11)


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


def test_an_image_for_which_nothing_is_found_counts():
    boxes = [(1, [10, 10, 40, 40]), (2, [20, 20, 50, 50])]
    found = [{"image_id": 1, "category_id": 4, "bbox": [10, 10, 40, 40], "score": 0.9}]
    both = [*found, {**found[0], "image_id": 2, "bbox": [20, 20, 50, 50]}]
    assert garden.coco_figures(truth(boxes), both)["AP50"] == pytest.approx(1.0)
    assert garden.coco_figures(truth(boxes), found)["AP50"] == pytest.approx(0.5, abs=0.01)
    assert garden.coco_figures(truth(boxes), [])["AP50"] == 0.0


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
    figures = garden.coco_figures(real, found, masks=True)
    assert figures["mask_AP"] == pytest.approx(0.5, abs=0.01)
    assert figures["mask_APs"] == pytest.approx(0.5, abs=0.01)


def test_predictions_become_cocos_results():
    """Labels become category ids, boxes pixels of the image as it was; padding is left out.

    Replicas may be given an image again, to fill their last batch: it counts once.
    """
    split = annotations.CocoSplit(None, [], truth([], images=(7,)), [], (None, 4), ("?", "a"), [])
    evaluator = garden.Evaluator(split)
    predictions = {
        "source_id": tf.constant([7]),
        "num_detections": tf.constant([3]),
        "detection_boxes": tf.constant([[[10.0, 20, 30, 60], [0, 0, 9, 9], [0, 0, 0, 0]]]),
        "detection_scores": tf.constant([[0.9, 0.5, 0.0]]),
        "detection_classes": tf.constant([[2, 1, 0]]),
        "image_info": tf.constant([[[50.0, 80], [100, 160], [2, 2], [0, 0]]]),
    }
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
