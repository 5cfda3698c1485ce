import dataclasses

import pytest

from train.detection.garden import experiment
from train.detection.recipes import RECIPES
from train.detection.records import Records


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_an_experiment_of_model_garden(name):
    recipe = RECIPES[name]
    records = Records("train*", 1000)
    params = experiment(recipe, records, records, num_classes=81)
    model = params.task.model
    assert model.num_classes == 81
    assert model.input_size == [*recipe.image_size, 3]
    assert model.backbone.get().name == recipe.model
    assert params.task.train_data.global_batch_size == recipe.batch_size
    steps = recipe.epochs * (1000 // recipe.batch_size)
    assert params.trainer.train_steps == steps
    assert ("mask_head" in model.as_dict() and bool(model.mask_head)) == ("mask" in name)


def with_settings(garden):
    recipe = dataclasses.replace(RECIPES["coco_tiny_retinanet"], garden=garden)
    records = Records("train*", 64)
    return experiment(recipe, records, records, 11)


@pytest.mark.parametrize("weight", [7, 7.5])
def test_other_settings_of_model_garden_can_be_set(weight):
    params = with_settings({"task": {"losses": {"box_loss_weight": weight}}})
    assert params.task.losses.box_loss_weight == weight


def test_a_setting_that_is_none_is_named():
    with pytest.raises(ValueError, match="box_los"):
        with_settings({"task": {"losses": {"box_los": 7}}})


@pytest.mark.parametrize(
    "garden",
    [
        {"trainer": {"train_steps": 3}},
        {"task": {"use_coco_metrics": False}},
        {"task": {"per_category_metrics": True}},
        {"task": {"annotation_file": "val.json"}},
    ],
)
def test_settings_that_would_not_take_effect_are_refused(garden):
    with pytest.raises(ValueError, match="sets what stands under `task`"):
        with_settings(garden)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"model": 3}, "task.model must be settings by name"),
        ({"model": {"backbone": 3}}, "task.model.backbone must be settings"),
        ({"losses": {"box_loss_weight": "x"}}, "box_loss_weight must be a number"),
        ({"losses": {"box_loss_weight": True}}, "box_loss_weight must be a number"),
        ({"freeze_backbone": "no"}, "freeze_backbone must be true or false"),
    ],
)
def test_settings_of_another_kind_are_named(task, message):
    with pytest.raises(ValueError, match=f"garden.*{message}"):
        with_settings({"task": task})
