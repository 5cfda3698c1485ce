"""From a trained network to a faster one: one command, on three of scikit-learn's digits."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import dgnet_keras as dg
from dgnet_keras.__main__ import main
from dgnet_keras.commands.models import class_names, run_record
from train.classification.adapted import picture, verdict
from train.classification.adapting import RECIPE, schedule
from train.classification.recipes import get_recipe
from train.classification.run import train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("adapting")]
STATIC = (
    "wiring=chain",
    "macs_target=null",
    "dataset=folder",
    "model_overrides.depths=[1,3]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "batch_size=16",
    "epochs=4",
)


def write_digits(folder, digits, names):
    """Class folders of real digits, of which every fifth image is held out."""
    data = load_digits()
    for digit, name in zip(digits, names, strict=True):
        chosen = data.images[data.target == digit]
        for k, image in enumerate(chosen):
            place = folder / ("train" if k % 5 else "test") / name
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.round(image * (255 / 16)).astype("uint8")
            Image.fromarray(pixels).convert("RGB").save(place / f"{k}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return write_digits(folder, (4, 1, 0), ("four", "one", "zero"))


@pytest.fixture(scope="module")
def static(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static")
    recipe = get_recipe("digits_resnet20_path", STATIC)
    train(recipe, folder, data_dir=str(digits), summary=False)
    return folder


def adapt(source, digits, workdir, *flags):
    arguments = ["--data-dir", str(digits), "--workdir", str(workdir), "--epochs", "3"]
    main(["adapt", str(source), *arguments, "--set", "random_flip=false", *flags])
    return json.loads((workdir / "adapt.json").read_text())


@pytest.fixture(scope="module")
def adapted(static, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, adapt(static, digits, folder, "--macs", "0.8")


def test_both_are_evaluated_and_timed_and_the_paths_are_exported(static, adapted):
    folder, rows = adapted
    before = json.loads((static / "results.json").read_text())
    assert rows["static"]["test_accuracy"] == pytest.approx(before["test_accuracy"])
    assert rows["static"]["share_of_macs"] == 1
    found = json.loads((folder / "paths" / "results.json").read_text())
    assert rows["paths"]["test_accuracy"] == found["test_accuracy"]
    assert rows["paths"]["share_of_macs"] == found["share_of_macs"]
    assert (folder / "adapt.png").stat().st_size > 0
    dial = rows["paths"]["dial"]
    assert {p["accuracy"] for p in dial if p["threshold"] == rows["paths"]["threshold"]} == {
        rows["paths"]["test_accuracy"]
    }
    both = keras.models.load_model(folder / "cascade" / "model.keras")
    assert (both.first.wiring, both.second.wiring) == ("path", "chain")
    assert rows["cascade"]["again"] == pytest.approx(0.1, abs=0.02)
    share = rows["paths"]["share_of_macs"] + rows["cascade"]["again"]
    assert rows["cascade"]["share_of_macs"] == pytest.approx(share)
    for row in rows.values():
        assert sorted(row["milliseconds"]) == ["1", "32"]
        assert min(row["milliseconds"].values()) > 0
    for name in ("paths", "cascade"):
        assert (folder / name / "export" / "1" / "saved_model.pb").exists()
        assert class_names(run_record(folder / name)[0]) == ["four", "one", "zero"]
    config = json.loads((folder / "paths" / "config.json").read_text())
    assert config["distill_from"] == config["init_from"] == str(static)
    assert config["model_overrides"] == {"depths": [1, 3], "widths": [8, 16]}
    assert config["batch_size"] < 128  # of 432 images


@pytest.mark.parametrize(
    ("static", "paths", "images", "said"),
    [
        (
            0.80,
            0.32,
            200,
            r"lose 48\.0 points at 0\.58 .*give or take 8\.5 .*try more images, more --epochs",
        ),
        (0.99, 0.98, 100, r"lose 1\.0 points at 0\.58 of the multiply-adds \(give or take 3\.4"),
        (0.90, 0.91, 10000, r"lose nothing at 0\.58"),
    ],
)
def test_the_verdict_says_what_was_lost_and_what_to_do(static, paths, images, said):
    rows = {"static": {"test_accuracy": static}}
    rows["paths"] = {"test_accuracy": paths, "share_of_macs": 0.58}
    sentence = verdict(rows, images)
    assert re.search(said, sentence)
    assert ("try" in sentence) == (static - paths > 0.1)


@pytest.mark.parametrize(
    ("images", "given", "batch_size", "learning_rate", "epochs", "warmup"),
    [
        (50_000, {}, 128, 0.03, 10, None),
        (50_000, {"epochs": 3}, 128, 0.03, 3, None),
        (50_000, {"batch_size": 16}, 16, 0.03, 10, None),
        (10_000, {}, 128, 0.03, 20, 2),
        (300, {}, 16, 0.03 / 8, 84, 8.4),
        (300, {"epochs": 20}, 16, 0.03 / 8, 20, 2),
        (300, {"batch_size": 50}, 50, 0.03, 250, 25),
    ],
)
def test_few_images_get_small_batches_and_enough_updates(
    images, given, batch_size, learning_rate, epochs, warmup
):
    """And are evaluated, and saved, about ten times."""
    found = schedule(RECIPE, images, **given)
    every = max(1, epochs // 10)
    assert found.pop("warmup_epochs", None) == warmup
    assert found == {
        "batch_size": batch_size,
        "learning_rate": pytest.approx(learning_rate),
        "epochs": epochs,
        "evaluation_epochs": every,
        "checkpoint_epochs": every,
    }


def test_the_picture_has_room_for_a_cascade_above_the_static_network():
    rows = {
        "static": {"test_accuracy": 0.8},
        "paths": {
            "test_accuracy": 0.7,
            "share_of_macs": 0.5,
            "dial": [{"share_of_macs": 0.5, "accuracy": 0.7}],
        },
        "cascade": {"test_accuracy": 0.9, "share_of_macs": 0.7},
    }
    (axis,) = picture(rows).axes
    low, high = axis.get_ylim()
    assert low < 70
    assert high > 90


def test_the_same_command_again_says_the_same(static, digits, adapted):
    folder, rows = adapted
    of_other_paths = folder / "cascade" / "export" / "1" / "left"  # had these been removed
    of_other_paths.touch()
    again = adapt(static, digits, folder, "--macs", "0.8")
    assert not of_other_paths.exists()
    assert (of_other_paths.parent / "saved_model.pb").exists()
    for name, row in again.items():
        for key in ("test_accuracy", "share_of_macs"):
            assert row[key] == rows[name][key]


def test_other_classes_are_fitted_first(static, tmp_path):
    data = write_digits(tmp_path / "data", (7, 2), ("seven", "two"))
    rows = adapt(static, data, tmp_path / "out", "--macs", "0.8", "--fit-epochs", "4")
    results = json.loads((tmp_path / "out" / "static" / "results.json").read_text())
    assert rows["static"]["test_accuracy"] == pytest.approx(results["test_accuracy"])
    assert rows["static"]["test_accuracy"] > 0.8
    model = keras.models.load_model(tmp_path / "out" / "paths" / "model.keras")
    assert (model.num_classes, model.wiring) == (2, "path")


def test_a_network_without_named_classes_must_know_the_data(static, digits, tmp_path):
    """Its classes in another order would teach nonsense."""
    shutil.copy(static / "model.keras", tmp_path / "static.keras")
    other = tmp_path / "data"
    for name, renamed in (("four", "zebra"), ("one", "ape"), ("zero", "cat")):
        for split in ("train", "test"):
            shutil.copytree(digits / split / name, other / split / renamed)
    with pytest.raises(SystemExit, match=r"no more than by guessing.*ape, cat, zebra"):
        adapt(tmp_path / "static.keras", other, tmp_path / "out")
    assert not (tmp_path / "out" / "paths").exists()
    with pytest.raises(SystemExit, match=r"others than those of .*Received: fit_epochs=0"):
        adapt(static, other, tmp_path / "out", "--fit-epochs", "0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--macs", "0.1", "--fit-epochs", "4"], r"always run cost 0\.\d+"),
        (
            ["--set", "macs_target=0.7"],
            r"said by `macs` \(--macs\)\. Received: --set macs_target=0",
        ),
        (["--set", "distill_from=x"], "learn from the network that they are made of"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(
    static, digits, tmp_path, flags, message
):
    with pytest.raises(SystemExit, match=message):
        adapt(static, digits, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_paths_of_the_network_as_it_was_are_not_fitted_over(static, digits, adapted):
    folder, _ = adapted
    with pytest.raises(SystemExit, match="paths of a network that was not fitted"):
        adapt(static, digits, folder, "--macs", "0.8", "--fit-epochs", "2")
    assert not (folder / "static").exists()


def test_times_are_of_the_models_as_they_are(static, digits):
    from train.classification.adapting import milliseconds
    from train.classification.datasets import load_data

    model = keras.models.load_model(static / "model.keras", compile=False)
    data = load_data(get_recipe("digits_resnet20_path", STATIC), str(digits))
    sizes = {"depths": (1, 3), "widths": (128, 256)}  # 250 times the multiply-adds
    large = dg.create(
        "resnet20_cifar", num_classes=3, input_shape=(8, 8, 3), wiring="chain", **sizes
    )
    found = milliseconds({"small": model, "large": large}, data.test)
    assert found["large"]["32"] > found["small"]["32"]
