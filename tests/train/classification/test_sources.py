"""What a trained network's file or folder says of it."""

import json
import shutil
import sys

import keras
import numpy as np
import pytest
from catalog import images, randomize, write_timm_file

import dgnet_keras as dg
from train.classification.recipes import get_recipe
from train.classification.sources import (
    check_static,
    check_teacher,
    find_source,
    other_classes,
    settled,
)
from train.weights import load_initial_weights

SIZES = {"depths": (1, 2), "widths": (4, 8), "input_shape": (16, 16, 3), "num_classes": 3}


@pytest.fixture
def saved(tmp_path):
    model = dg.create("resnet20_cifar", wiring="chain", **SIZES)
    model.preprocessing = dg.Preprocessing((16, 16), 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    model.save(tmp_path / "static.keras")
    return tmp_path / "static.keras"


def test_a_keras_file_tells_variant_sizes_and_pixels(saved):
    found = find_source(saved)
    assert (found.weights, found.model) == (str(saved), "resnet20_cifar")
    assert found.model_overrides == {"depths": (1, 2), "widths": (4, 8)}
    assert found.settings == {
        "input_shape": (16, 16, 3),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop": 0.9,
    }


def test_the_folder_of_a_run_tells_its_classes_too(tmp_path):
    config = {
        "model": "resnet56_cifar",
        "model_overrides": {"stem_strides": 2},
        "wiring": "chain",
        "input_shape": [32, 32, 3],
        "mean": None,
        "std": None,
        "crop": 1.0,
        "data": {"class_names": ["cat", "dog"]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find_source(tmp_path)
    assert (found.model, found.class_names) == ("resnet56_cifar", ("cat", "dog"))
    assert found.model_overrides == {"stem_strides": 2}
    assert found.settings["input_shape"] == (32, 32, 3)


def run_folder(folder, **changes):
    """A folder that says what run it is of, with nothing in it."""
    recipe = get_recipe("digits_resnet20", ["wiring=chain"])
    config = {**json.loads(recipe.to_json()), "data": {"class_names": ["cat", "dog"]}, **changes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("inside", ["", "best.weights.h5", "checkpoints/ckpt-7"])
def test_a_teacher_of_other_pixels_or_classes_is_refused(inside, tmp_path):
    teacher = run_folder(tmp_path / "teacher", mean=[0.5], std=[0.25])
    (teacher / "checkpoints").mkdir()
    (teacher / "checkpoints" / "ckpt-7.index").touch()

    def check(names, *settings):
        settings = [f"distill_from={teacher / inside}", *settings]
        check_teacher(get_recipe("digits_resnet20", settings), names)

    check(("cat", "dog"), "mean=[0.5]", "std=[0.25]")
    check(("0", "1"), "mean=[0.5]", "std=[0.25]")  # numbers stand for no names
    with pytest.raises(ValueError, match=r"mean and standard deviation, \(\(0\.48.*\(\(0\.5, "):
        check(("cat", "dog"))
    with pytest.raises(ValueError, match=r"same classes.*, dog, cat\. Received.*of cat, dog"):
        check(("dog", "cat"), "mean=[0.5]", "std=[0.25]")


def test_a_start_from_other_classes_is_said(saved, tmp_path):
    folder = run_folder(tmp_path / "run")
    assert other_classes(folder, ("cat", "dog")) == []
    assert other_classes(folder, ("cat", "dog", "emu")) == []  # its classifier is left out
    assert other_classes(saved, ("dog", "cat")) == []  # does not say
    (sentence,) = other_classes(folder, ("dog", "cat"))
    assert "other classes, or in another order: cat, dog. Here they are dog, cat" in sentence


def test_the_folder_one_is_in_is_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(run_folder(tmp_path / "run"))
    assert find_source(".").class_names == ("cat", "dog")
    assert len(other_classes(".", ("dog", "cat"))) == 1


def test_timm_tells_by_name_and_by_what_lies_beside(tmp_path):
    file = tmp_path / "resnet50.a1_in1k" / "model.safetensors"
    file.parent.mkdir()
    file.touch()
    assert find_source(file).model == "resnet50"
    shutil.copy(file, tmp_path / "regnetx_016.tv2_in1k.safetensors")
    assert find_source(tmp_path / "regnetx_016.tv2_in1k.safetensors").model == "regnetx_016"
    pixels = {"input_size": [3, 288, 256], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.95}
    config = {"architecture": "resnet34", "num_classes": 7, "pretrained_cfg": pixels}
    file.with_name("config.json").write_text(json.dumps(config))
    found = find_source(file)
    assert found.model == "resnet34"
    assert found.settings == {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "crop": 0.95,
        "input_shape": (288, 256, 3),
    }


def test_a_file_of_weights_alone_needs_the_variant(tmp_path):
    file = tmp_path / "static.weights.h5"
    dg.create("resnet20_cifar", wiring="chain", **SIZES).save_weights(file)
    assert find_source(file, "resnet50").model == "resnet50"
    with pytest.raises(ValueError, match=r"does not say which variant it is"):
        find_source(file)
    with pytest.raises(ValueError, match=r"Unknown variant 'resnet5O'.*Did you mean 'resnet50'"):
        find_source(file, "resnet5O")


def test_other_networks_are_refused(saved, tmp_path):
    with pytest.raises(
        ValueError, match=r"holds a resnet20_cifar\. Received: the variant resnet50"
    ):
        find_source(saved, "resnet50")
    other = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten()])
    other.save(tmp_path / "other.keras")
    with pytest.raises(ValueError, match=r"must hold a model that `dgnet_keras.create` made"):
        find_source(tmp_path / "other.keras")
    dg.create("resnet20_cifar", wiring="path", **SIZES).save(tmp_path / "path.keras")
    found = find_source(tmp_path / "path.keras")
    with pytest.raises(ValueError, match=r"A static network is needed.*of wiring 'path'"):
        check_static(found, tmp_path / "path.keras")
    with pytest.raises(FileNotFoundError, match=r"nothing\.keras does not exist"):
        find_source(tmp_path / "nothing.keras")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"is not the folder of a run"):
        find_source(tmp_path / "folder")


def test_a_recipe_takes_from_its_source_what_was_not_set(saved, tmp_path):
    recipe = get_recipe("cifar10_resnet56_path", ["wiring=dynamic", "macs_target=null"])
    found, changes = settled(recipe, ["wiring=dynamic"], saved, tmp_path / "run")
    assert changes == {
        "model": "resnet20_cifar",
        "model_overrides": {"depths": (1, 2), "widths": (4, 8)},
        "input_shape": (16, 16, 3),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop": 0.9,
        "init": "static",
    }
    assert found.init == "static"
    _, changes = settled(recipe, ["init=open", "input_shape=[8,8,3]"], saved, tmp_path / "run")
    assert not {"init", "input_shape"} & set(changes)
    path = get_recipe("cifar10_resnet56_path", [])
    assert "init" not in settled(path, [], saved, tmp_path / "run")[1]
    with pytest.raises(ValueError, match=r"holds a resnet20_cifar\. Received: the variant resnet5"):
        settled(recipe, ["model=resnet56_cifar"], saved, tmp_path / "run")


def test_weights_alone_leave_the_recipes_variant(tmp_path):
    model = dg.create("resnet20_cifar", wiring="chain", **SIZES)
    model.save_weights(tmp_path / "static.weights.h5")
    recipe = get_recipe("cifar10_resnet20", [])
    assert settled(recipe, [], tmp_path / "static.weights.h5", tmp_path / "run")[1] == {
        "init": "static"
    }
    dg.create("resnet20_cifar", **SIZES).save_weights(tmp_path / "dynamic.weights.h5")
    assert not settled(recipe, [], tmp_path / "dynamic.weights.h5", tmp_path / "run")[1]


def test_a_run_goes_on_without_the_network_that_it_started_from(saved, tmp_path):
    recipe = get_recipe("cifar10_resnet56_path", ["wiring=dynamic", "macs_target=null"])
    before, changes = settled(recipe, ["wiring=dynamic"], saved, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(before.to_json())
    saved.unlink()
    assert settled(recipe, ["wiring=dynamic"], saved, tmp_path / "run") == (before, changes)


def test_a_hub_name_is_a_source_and_weights_to_start_from(tmp_path, monkeypatch):
    """With a stand-in for the hub, in whose folder lies what the real one would have brought."""
    options = {"num_classes": 7, "input_shape": (32, 32, 3), "wiring": "chain"}
    there = randomize(dg.create("resnet18", **options))
    write_timm_file(there, tmp_path / "model.safetensors")
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    class Hub:
        @staticmethod
        def hf_hub_download(repo_id, filename):
            assert repo_id == "timm/resnet18.a1_in1k"
            return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    found = find_source("timm/resnet18.a1_in1k")
    assert (found.model, found.settings) == ("resnet18", {"mean": (0.1, 0.2, 0.3)})
    model = dg.create("resnet18", **options)
    for path in (found.weights, "timm/resnet18.a1_in1k"):
        assert len(load_initial_weights(model, path)) == len(model.weights)
    x = images(2, size=32)
    np.testing.assert_allclose(model(x), there(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"Unknown variant 'resnet19'. Did you mean .*resnet18"):
        find_source("timm/resnet19.a1_in1k")
    with pytest.raises(ConnectionError, match="resnet19"):  # it is asked for: a variant is given
        find_source("timm/resnet19.a1_in1k", "resnet18")
