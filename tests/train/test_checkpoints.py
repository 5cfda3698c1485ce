"""Checkpoints are whole or not there, and are checked before they are used."""

import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from train import checkpoints, strategies
from train.classification import datasets, engine
from train.classification import run as runner
from train.classification.recipes import get_recipe
from train.imagenet import main

TINY = [
    "model_overrides.depths=[1,2]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "batch_size=64",
    "epochs=2",
]


def store(folder, value=0.0, *, shape=(4,), keep=3):
    """Checkpoints of one variable, and the variable."""
    variable = keras.Variable(np.full(shape, value, "float32"), name="layer.a")
    step = tf.Variable(0, dtype=tf.int64)
    group = {"model": [variable]}
    return variable, checkpoints.Checkpoints(folder, folder, group, {"n": step}, keep)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 10, of values 1, 2 and 10."""
    variable, store_ = store(tmp_path)
    for step in (1, 2, 10):
        variable.assign(np.full(4, step, "float32"))
        store_.save(step)
    return tmp_path


def test_the_newest_is_restored_and_the_oldest_are_pruned(three):
    variable, store_ = store(three)
    assert store_.restore() == (10, [])
    np.testing.assert_array_equal(variable, np.full(4, 10))
    store_.save(11)
    assert checkpoints.steps_in(three) == [11, 10, 2]
    assert store_.last_good == 11


def test_without_checkpoints_nothing_is_restored(tmp_path):
    assert store(tmp_path)[1].restore() == (None, [])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "index", "state"])
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(three, damage):
    data, index = three / "ckpt-10.data-00000-of-00001", three / "ckpt-10.index"
    if damage == "flipped":
        data.write_bytes(bytes(255 - b for b in data.read_bytes()))
    elif damage == "truncated":
        data.write_bytes(data.read_bytes()[:5])
    elif damage == "gone":
        data.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    else:
        (three / "checkpoint").write_text("nonsense {")
    variable, store_ = store(three)
    step, broken = store_.restore()
    assert store_.last_good == step  # what an error names, even beside a newer broken one
    assert step == (10 if damage == "state" else 2)
    np.testing.assert_array_equal(variable, np.full(4, step))
    assert len(broken) == (damage != "state")
    if broken:
        assert f"{three}/ckpt-10 cannot be read" in broken[0]
    store_.save(10)
    assert store(three)[1].restore() == (10, [])


def test_no_readable_checkpoint_is_an_error(three):
    for path in three.glob("*.data-*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"ckpt-10 cannot(.|\n)*ckpt-1 cannot(.|\n)*None is left"):
        store(three)[1].restore()


def test_a_checkpoint_of_another_model_is_refused_and_nothing_changes(three):
    variable, store_ = store(three, value=7.0, shape=(5,))
    with pytest.raises(ValueError, match=r"another model(.|\n)*expected \[5\], received \[4\]"):
        store_.restore()
    np.testing.assert_array_equal(variable, np.full(5, 7))


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    checkpoints.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        checkpoints.write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert path.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs of 1 MiB")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk):
    variable, store_ = store(small_disk, 3.0, shape=(50_000,))
    store_.save(1)
    variable.assign(np.full(50_000, 4.0))
    store_.save(2)
    (small_disk / "filling").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match=r"step 3 could not be written(.|\n)*last good .* step 2"):
        store_.save(3)
    assert checkpoints.steps_in(small_disk) == [2, 1]
    assert not list(small_disk.glob("ckpt-3*"))
    (small_disk / "filling").unlink()
    variable, store_ = store(small_disk, shape=(50_000,))
    assert store_.restore() == (2, [])
    assert float(variable[0]) == 4


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_sentence(small_disk):
    arguments = ["--config", "digits_resnet20", "--workdir", str(small_disk / "run")]
    for item in (*TINY, "model_overrides.widths=[32,64]"):
        arguments += ["--set", item]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    message = str(stopped.value)
    assert "could not be written" in message or "No space left" in message
    for step in checkpoints.steps_in(small_disk / "run" / "checkpoints"):
        tf.train.load_checkpoint(str(small_disk / "run" / "checkpoints" / f"ckpt-{step}"))
    assert not (small_disk / "run" / "results.json").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that was stopped after an epoch, and its model."""
    workdir = tmp_path_factory.mktemp("stopped")
    recipe = get_recipe("digits_resnet20", TINY)
    run = engine.Run(recipe, datasets.load_data(recipe), strategies.make_strategy("one_device"))
    with engine.orbit_log(workdir / "log"):
        run.open(workdir)
        next(run.train_epochs())
    return workdir, run.model


@pytest.mark.parametrize("source", ["checkpoints/ckpt-22", ".", "best.weights.h5"])
def test_a_run_starts_from_a_checkpoint_of_another(trained, source):
    workdir, model = trained
    recipe = get_recipe("digits_resnet20", [*TINY, "seed=1"])
    other = engine.create_model(recipe, 10)
    loaded = runner.load_initial_weights(other, workdir / source)
    assert len(loaded) == len(model.weights)
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_another_head_starts_from_the_backbone(trained):
    workdir, model = trained
    other = engine.create_model(get_recipe("digits_resnet20", TINY), 7)
    head = other.get_layer("logits").kernel.numpy()
    with pytest.warns(UserWarning, match="10 classes, the model 7: the backbone was loaded"):
        runner.load_initial_weights(other, workdir / "checkpoints" / "ckpt-22")
    np.testing.assert_array_equal(other.get_layer("logits").kernel, head)
    for a, b in zip(model.backbone.weights, other.backbone.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_a_checkpoint_of_another_network_does_not_start_a_run(trained):
    workdir, _ = trained
    wider = get_recipe("digits_resnet20", [*TINY, "model_overrides.widths=[8,24]"])
    other = engine.create_model(wider, 10)
    before = [v.numpy() for v in other.weights]
    with pytest.raises(ValueError, match=r"expected \(3, 3, 8, 24\), received \(3, 3, 8, 16\)"):
        runner.load_initial_weights(other, workdir / "checkpoints" / "ckpt-22")
    for variable, value in zip(other.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_an_evaluation_that_was_missed_is_made_up_for(trained):
    """Killed between checkpoint and evaluation: the row of the epoch appears after all."""
    workdir, _ = trained
    (workdir / "history.json").unlink()
    recipe = get_recipe("digits_resnet20", TINY)
    run = engine.Run(recipe, datasets.load_data(recipe), strategies.make_strategy("one_device"))
    with engine.orbit_log(workdir / "log"):
        run.open(workdir)
        row = next(run.train_epochs())
    assert (row["epoch"], row["step"], row["examples"]) == (1, 22, 360)
