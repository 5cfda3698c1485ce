"""Runs with a budget: from a static network to paths, and on after a stop."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from catalog import create, images, randomize
from train_helpers import TINY

from train.classification import calibration
from train.classification.model import create_model, create_teacher
from train.classification.recipes import get_recipe
from train.classification.run import train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("train_paths")]


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    recipe = get_recipe("digits_resnet20_path", [*TINY, "wiring=chain", "macs_target=null"])
    train(recipe, folder, summary=False)
    return folder


@pytest.fixture(scope="module")
def path(static, tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    settings = [*TINY, "epochs=4", "macs_target=0.8", f"distill_from={static}"]
    recipe = get_recipe("digits_resnet20_path", settings)
    return recipe, folder, train(recipe, folder, init_from=str(static), summary=False)


def test_it_is_calibrated_on_training_images_and_says_the_curve(path):
    recipe, folder, results = path
    found = results["calibration"]
    assert recipe.macs_target - 0.01 <= found["training_share_of_macs"] <= recipe.macs_target
    at = {row["threshold"]: row for row in found["curve"]}
    assert len(at) == 5
    assert results["test_accuracy"] == at[found["threshold"]]["accuracy"]
    assert results["share_of_macs"] == at[found["threshold"]]["share_of_macs"]
    shares = [at[threshold]["share_of_macs"] for threshold in sorted(at)]
    assert shares[0] > shares[-1]
    history = json.loads((folder / "history.json").read_text())
    assert history[0]["train_share_of_macs"] > history[-1]["train_share_of_macs"]


def test_the_routers_health_is_that_at_the_calibrated_threshold(monkeypatch):
    model = randomize(create("resnet_cifar_path", depths=(5, 5), input_shape=(16, 16, 3)))
    evaluator = types.SimpleNamespace(findings=[])

    def evaluate_at(threshold):
        model.set_threshold(threshold)
        evaluator.findings = [types.SimpleNamespace(kind="kind", message=f"at {threshold}")]
        return {"accuracy": 0.5, "share_of_macs": 0.5, "router_health": {"kind": "before"}}

    run = types.SimpleNamespace(
        model=model,
        evaluator=evaluator,
        evaluate_at=evaluate_at,
        recipe=types.SimpleNamespace(macs_target=0.8),
    )
    monkeypatch.setattr(calibration, "_training_images", lambda _: images(16))
    found = calibration.calibrate_run(run)
    assert found["metrics"]["router_health"] == {"kind": f"at {found['threshold']}"}


def test_a_run_that_was_stopped_goes_on_with_the_noise_it_would_have_had(path, static, tmp_path):
    recipe, folder, results = path
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    steps = sorted(int(f.stem.split("-")[1]) for f in copy.glob("checkpoints/ckpt-*.index"))
    for file in copy.glob(f"checkpoints/ckpt-{steps[-1]}.*"):
        file.unlink()
    (copy / "results.json").unlink()
    shutil.rmtree(copy / "export")
    again = train(recipe, copy, init_from=str(static), summary=False)
    for key in ("weights_sha256", "test_accuracy", "calibration"):
        assert again[key] == results[key]


def test_a_network_to_learn_from_has_the_same_classes_and_one_with_edges_is_named(static, path):
    recipe, folder, _ = path
    with pytest.raises(ValueError, match="distill_from must be a network of 7 classes"):
        create_teacher(dataclasses.replace(recipe, distill_from=str(static)), 7)
    with pytest.warns(UserWarning, match=r"another network.*wiring path \(here chain\)"):
        create_teacher(dataclasses.replace(recipe, distill_from=str(folder)), 10)


def test_a_network_to_learn_from_may_be_of_another_variant(tmp_path):
    larger = get_recipe("digits_resnet20", ["wiring=chain", "input_shape=[8,8,3]"])
    network, file = create_model(larger, 10), tmp_path / "larger.weights.h5"
    network.save_weights(file)
    settings = [*TINY, "wiring=chain", "macs_target=null", f"distill_from={file}"]
    own = get_recipe("digits_resnet20_path", settings)
    teacher = create_teacher(dataclasses.replace(own, distill_model="resnet20_cifar"), 10)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(teacher(images), network(images))
    taken = dataclasses.replace(get_recipe("digits_resnet20_path", TINY), path_gradient="taken")
    teacher = create_teacher(
        dataclasses.replace(taken, distill_from=str(file), distill_model="resnet20_cifar"), 10
    )
    np.testing.assert_array_equal(teacher(images), network(images))
    with pytest.raises(ValueError, match="`distill_model` is the variant of what lies at"):
        get_recipe("digits_resnet20_path", [*TINY, "distill_model=resnet20_cifar"])
