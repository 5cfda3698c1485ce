"""What a run may start from."""

import shutil

import numpy as np
import pytest
from train_helpers import TINY

from train.checkpoints import read_model_weights
from train.classification.model import create_model
from train.classification.recipes import get_recipe
from train.weights import BEST_WEIGHTS, load_initial_weights

pytestmark = pytest.mark.xdist_group("classified")


def assert_weights(variables, values):
    assert {v.path for v in variables} == set(values)
    for variable in variables:
        np.testing.assert_array_equal(variable, values[variable.path], err_msg=variable.path)


@pytest.mark.parametrize("source", ["checkpoints/ckpt-132", ".", BEST_WEIGHTS, "only the best"])
def test_a_run_starts_from_what_another_has_left(classified, source, tmp_path):
    _, workdir, results = classified
    path, step = workdir / source, 132
    if source == "only the best":
        shutil.copy(workdir / BEST_WEIGHTS, tmp_path)
        path = tmp_path
    if source in (BEST_WEIGHTS, "only the best"):
        step = 44 * results["best_epoch"]
    model = create_model(get_recipe("digits_resnet20", [*TINY, "seed=1"]), 10)
    assert len(load_initial_weights(model, path)) == len(model.weights)
    assert_weights(model.weights, read_model_weights(workdir / "checkpoints" / f"ckpt-{step}"))


def test_another_head_starts_from_the_backbone(classified):
    recipe, workdir, _ = classified
    model = create_model(recipe, 7)
    head = model.get_layer("logits").kernel.numpy()
    path = workdir / "checkpoints" / "ckpt-132"
    with pytest.warns(
        UserWarning, match="10 classes, the model 7: the backbone was loaded"
    ) as caught:
        load_initial_weights(model, path)
    assert {w.filename for w in caught if w.category is UserWarning} == {__file__}
    np.testing.assert_array_equal(model.get_layer("logits").kernel, head)
    values = read_model_weights(path)
    assert_weights(model.backbone.weights, {v.path: values[v.path] for v in model.backbone.weights})


def test_a_checkpoint_of_another_network_does_not_start_a_run(classified):
    wider = create_model(
        get_recipe("digits_resnet20", [*TINY, "model_overrides.widths=[8,24]"]), 10
    )
    before = {v.path: v.numpy() for v in wider.weights}
    with pytest.raises(ValueError, match=r"expected \(3, 3, 8, 24\), received \(3, 3, 8, 16\)"):
        load_initial_weights(wider, classified[1] / "checkpoints" / "ckpt-132")
    assert_weights(wider.weights, before)
