"""A whole run, on digits, with a tiny model."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from image_files import encode
from train_helpers import TINY, flags

from train.classification import datasets
from train.classification.recipes import get_recipe
from train.classification.run import train
from train.imagenet import main
from train.weights import weights_sha256

pytestmark = pytest.mark.xdist_group("classified")


def test_a_run_learns_and_leaves_everything_behind(classified):
    _, workdir, results = classified
    assert results["test_accuracy"] > 0.5
    assert results == json.loads((workdir / "results.json").read_text())
    keys = {"test_accuracy", "steps", "epochs", "parameters", "macs", "seconds", "weights_sha256"}
    assert keys <= set(results)
    assert results["steps"] == 3 * (1437 // 32)
    assert results["split"] == "test"
    assert (results["unused_files"], results["data_findings"]) == (0, [])
    assert json.loads((workdir / "config.json").read_text())["wiring"] == "dynamic"
    for name in ("model.keras", "adjacency.png", "export/1/saved_model.pb"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / f"ckpt-{results['steps']}.index").exists()
    assert list((workdir / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_routers_health_is_in_the_results(classified):
    _, workdir, results = classified
    history = json.loads((workdir / "history.json").read_text())
    assert results["router_health"] == list(history[-1]["router_health"].values())


def test_the_saved_model_is_the_trained_one(classified):
    _, workdir, results = classified
    model = keras.saving.load_model(workdir / "model.keras")
    test = datasets.load_data(get_recipe("digits_resnet20")).test
    logits = model.predict(model.preprocessing(test.images), verbose=0)
    assert np.mean(logits.argmax(1) == test.labels) == pytest.approx(results["test_accuracy"])
    assert weights_sha256(model) == results["weights_sha256"]
    served = tf.saved_model.load(str(workdir / "export" / "1")).signatures["serving_default"]
    answer = served(tf.constant(test.images))["logits"]
    np.testing.assert_allclose(answer, logits, rtol=1e-3, atol=1e-3)


def test_mean_and_deviation_of_the_recipe_reach_everything(classified):
    recipe, workdir, results = classified
    assert (recipe.mean, recipe.std) == ((0.25,), (0.4,))
    test = datasets.load_data(recipe).test
    inputs = (test.images.astype("float32") / 255 - 0.25) / 0.4
    model = keras.saving.load_model(workdir / "model.keras")
    logits = model.predict(inputs, verbose=0)
    assert np.mean(logits.argmax(1) == test.labels) == pytest.approx(results["test_accuracy"])
    np.testing.assert_allclose(model.preprocessing(test.images), inputs, rtol=1e-5, atol=1e-6)
    served = tf.saved_model.load(str(workdir / "export" / "1")).signatures["serving_default"]
    answer = served(tf.constant(test.images))["logits"]
    np.testing.assert_allclose(answer, logits, rtol=1e-3, atol=1e-3)
    card = json.loads((workdir / "export" / "1" / "model_card.json").read_text())
    for found in (card["preprocessing"], results["preprocessing"]):
        assert (found["mean"], found["std"]) == ([0.25] * 3, [0.4] * 3)


def test_a_new_run_beside_the_model_of_another_is_refused(classified, tmp_path):
    recipe, workdir, _ = classified
    (tmp_path / "export" / "1").mkdir(parents=True)
    shutil.copy(workdir / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"the model of a run whose checkpoints are gone"):
        train(recipe, tmp_path)


def test_other_images_under_the_same_names_are_other_data(classified, monkeypatch):
    recipe, workdir, _ = classified
    data = datasets.load_data(recipe)
    pixels = data.test.images.copy()
    pixels[0, 0, 0] += 1
    other = dataclasses.replace(data, test=dataclasses.replace(data.test, images=pixels))
    monkeypatch.setattr(datasets, "load_data", lambda *_: other)
    with pytest.raises(ValueError, match="differ in the test images: other content"):
        train(recipe, workdir)


def test_digits_lie_in_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"leave out --data-dir, or .*dataset=folder"):
        train(get_recipe("digits_resnet20"), tmp_path / "run", data_dir=str(tmp_path))


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    """Workdir and results of a static run that is evaluated every second epoch, on validation."""
    workdir = tmp_path_factory.mktemp("static")
    settings = ("wiring=chain", "evaluation_epochs=2", "validation=0.3")
    recipe = get_recipe("digits_resnet20", [*TINY, *settings])
    return workdir, train(recipe, workdir, summary=False)


@pytest.mark.slow
def test_epochs_between_two_evaluations(static):
    workdir, results = static
    history = json.loads((workdir / "history.json").read_text())
    assert [row["epoch"] for row in history] == [2, 3]
    assert results["split"] == "validation"
    assert results["test_images"] == 432
    assert "router_health" not in results


@pytest.mark.slow
def test_a_dynamic_run_starts_from_a_trained_static_one(static, tmp_path):
    source = static[0] / "model.keras"
    settings = ("init=static", "learning_rate=1e-6", "epochs=1", "validation=0.3")
    recipe = get_recipe("digits_resnet20", [*TINY, *settings])
    results = train(recipe, tmp_path, init_from=source, summary=False)
    assert results["test_accuracy"] >= static[1]["test_accuracy"] - 0.02
    assert json.loads((tmp_path / "config.json").read_text())["init_from"] == str(source)


@pytest.mark.parametrize("bad", ["train", "test"])
def test_a_run_without_a_decodable_image_says_so(tmp_path, bad, capfd):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(4):
                png = tf.io.encode_png(np.full((8, 8, 3), 9 * i, "uint8")).numpy()
                content = b"broken" if part == bad else png
                (tmp_path / "data" / part / name / f"{i}.png").write_bytes(content)
    arguments = ["--config", "digits_resnet20", "--data-dir", str(tmp_path / "data")]
    arguments += flags(*TINY, "dataset=folder", "batch_size=4", "epochs=1", "wiring=chain")
    with pytest.raises(SystemExit, match=rf"None of these {bad}\w* images could be decoded"):
        main([*arguments, "--workdir", str(tmp_path / "run")])
    assert "Skipped" in capfd.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_what_is_not_used_is_said_before_training_and_in_the_results(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog", b"caf\xe9".decode(errors="surrogateescape")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for k in range(4):
                content = encode(rng.integers(0, 256, (8, 8, 3), "uint8"), "WEBP")
                (tmp_path / "data" / part / name / f"{k}.webp").write_bytes(content)
    (tmp_path / "data" / "train" / "cat" / "x.tif").write_bytes(b"")
    settings = [s for s in TINY if "batch_size" not in s and "epochs" not in s]
    arguments = ["--config", "digits_resnet20", "--data-dir", str(tmp_path / "data")]
    arguments += flags(*settings, "dataset=folder", "batch_size=4", "epochs=1", "wiring=chain")
    main([*arguments, "--workdir", str(tmp_path / "run")])
    printed = " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["unused_files"] == 1
    assert json.loads((tmp_path / "run" / "unused_files.json").read_text()) == ["train/cat/x.tif"]
    assert [line[:27] for line in results["data_findings"]] == [
        "Not used of the data folder",
        "1 epochs of 3 steps are 3 u",
    ]
    assert results["skipped_images"] == []
    for line in results["data_findings"]:
        assert printed.index(line) < printed.index("epoch 1/1")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["class_names"] == [
        "caf\\xe9",
        "cat",
        "dog",
    ]
