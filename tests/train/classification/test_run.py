"""A whole run, on digits, with a tiny model."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from train_helpers import logged_steps, wait_for_step

from train import checkpoints, strategies
from train.classification import datasets, engine, input_pipeline, report, task
from train.classification import run as runner
from train.classification.recipes import get_recipe
from train.imagenet import main

ROOT = pathlib.Path(__file__).parents[3]
TINY = [
    "model_overrides.depths=[1,2]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "epochs=3",
    "batch_size=32",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    recipe = get_recipe("digits_resnet20", TINY)
    return recipe, workdir, runner.train(recipe, workdir)


def test_a_run_learns_and_leaves_everything_behind(finished):
    _, workdir, results = finished
    assert results["test_accuracy"] > 0.5
    assert results == json.loads((workdir / "results.json").read_text())
    keys = {"test_accuracy", "steps", "epochs", "parameters", "macs", "seconds", "weights_sha256"}
    assert keys <= set(results)
    assert results["steps"] == 3 * (1437 // 32)
    assert json.loads((workdir / "config.json").read_text())["wiring"] == "dynamic"
    for name in ("model.keras", "adjacency.png", "export/1/saved_model.pb"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / f"ckpt-{results['steps']}.index").exists()
    assert list((workdir / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(list((workdir / "samples").iterdir())) == report.NUM_SAMPLES


def test_the_routers_health_is_in_the_results(finished):
    _, workdir, results = finished
    history = json.loads((workdir / "history.json").read_text())
    assert results["router_health"] == list(history[-1]["router_health"].values())


def test_a_run_needs_a_folder():
    with pytest.raises(ValueError, match=r"--workdir must be the name of a folder"):
        runner.train(get_recipe("digits_resnet20", TINY), "")


def test_epochs_between_two_evaluations(finished, tmp_path, capsys):
    _, other, _ = finished
    recipe = get_recipe(
        "digits_resnet20", [*TINY, "evaluation_epochs=2", "validation=0.3", "wiring=chain"]
    )
    results = runner.train(recipe, tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row["epoch"] for row in history] == [2, 3]
    assert results["split"] == "validation"
    assert results["test_images"] == 432
    assert "router_health" not in results
    assert json.loads((other / "results.json").read_text())["split"] == "test"


def test_the_saved_model_is_the_trained_one(finished):
    _, workdir, results = finished
    model = keras.saving.load_model(workdir / "model.keras")
    test = datasets.load_data(get_recipe("digits_resnet20")).test
    logits = model.predict(model.preprocessing(test.images), verbose=0)
    assert np.mean(logits.argmax(1) == test.labels) == pytest.approx(results["test_accuracy"])
    assert engine.weights_sha256(model) == results["weights_sha256"]
    served = tf.saved_model.load(str(workdir / "export" / "1")).signatures["serving_default"]
    answer = served(tf.constant(test.images))["logits"]
    np.testing.assert_allclose(answer, logits, rtol=1e-3, atol=1e-3)


def test_the_same_command_again_reports_the_finished_run(finished, capsys):
    recipe, workdir, results = finished
    assert runner.train(recipe, workdir) == results
    assert "test_accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dynamic_run_starts_from_a_trained_static_one(tmp_path):
    static = get_recipe("digits_resnet20", [*TINY, "wiring=chain"])
    first = runner.train(static, tmp_path / "static")
    warm = get_recipe("digits_resnet20", [*TINY, "init=static", "learning_rate=1e-6", "epochs=1"])
    second = runner.train(warm, tmp_path / "warm", init_from=tmp_path / "static" / "model.keras")
    assert second["test_accuracy"] >= first["test_accuracy"] - 0.02
    config = json.loads((tmp_path / "warm" / "config.json").read_text())
    assert config["init_from"] == str(tmp_path / "static" / "model.keras")


def test_other_data_in_the_same_workdir_is_refused(finished, monkeypatch):
    recipe, workdir, _ = finished
    data = datasets.load_data(get_recipe("digits_resnet20"))
    fewer = dataclasses.replace(data, test=data.test.take(np.arange(100)))
    monkeypatch.setattr(datasets, "load_data", lambda *_: fewer)
    with pytest.raises(ValueError, match=r"other data.*'test_images': 360.*'test_images': 100"):
        runner.train(recipe, workdir)


@pytest.mark.parametrize("bad", ["train", "test"])
def test_a_run_without_a_decodable_image_says_so(tmp_path, bad, capfd):
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(4):
                png = tf.io.encode_png(np.full((8, 8, 3), 9 * i, "uint8")).numpy()
                content = b"broken" if part == bad else png
                (tmp_path / "data" / part / name / f"{i}.png").write_bytes(content)
    options = [*TINY, "dataset=folder", "batch_size=4", "epochs=1"]
    arguments = ["--config", "digits_resnet20", "--data-dir", str(tmp_path / "data")]
    for item in options:
        arguments += ["--set", item]
    with pytest.raises(SystemExit, match=rf"None of these {bad}\w* images could be decoded"):
        main([*arguments, "--workdir", str(tmp_path / "run")])
    assert "Skipped" in capfd.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_run_that_diverges_stops_and_says_so(tmp_path):
    arguments = ["--config", "digits_resnet20", "--set", "learning_rate=1e30"]
    for item in TINY:
        arguments += ["--set", item]
    with pytest.raises(SystemExit, match=r"not finite at step \d+: training has diverged"):
        main([*arguments, "--workdir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "results.json").exists()


def test_another_recipe_in_the_same_workdir_is_refused(finished):
    recipe, workdir, _ = finished
    with pytest.raises(ValueError, match=r"\* \? \[ \]"):
        runner.train(recipe, workdir / "a[1]")
    other = dataclasses.replace(recipe, wiring="chain")
    with pytest.raises(ValueError, match=r"another recipe.*wiring: 'dynamic' there, 'chain' here"):
        runner.train(other, workdir)


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_weights(tmp_path):
    """kill -9 at random steps, within epochs and between; the hash is that of a quiet run."""
    command = [sys.executable, "-m", "train.imagenet", "--config", "digits_resnet20"]
    for item in (*TINY, "epochs=8", "deterministic=true", "checkpoint_steps=10"):
        command += ["--set", item]
    command += ["--set", "steps_per_loop=2", "--workdir"]
    rng = np.random.default_rng()
    targets = sorted(rng.integers(1, 8 * 44 - 20, 5).tolist())
    for target in targets:
        process = run_command([*command, tmp_path / "killed"], wait=False)
        wait_for_step(tmp_path / "killed", target)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "results.json").exists()
    hashes = []
    for name in ("killed", "quiet"):
        run_command([*command, tmp_path / name])
        results = json.loads((tmp_path / name / "results.json").read_text())
        hashes.append(results["weights_sha256"])
        history = json.loads((tmp_path / name / "history.json").read_text())
        assert [row["epoch"] for row in history] == list(range(1, 9))
    assert hashes[0] == hashes[1], f"killed at {targets}"


@pytest.mark.slow
def test_sigterm_saves_and_the_command_goes_on_past_a_broken_checkpoint(tmp_path):
    command = [sys.executable, "-m", "train.imagenet", "--config", "digits_resnet20"]
    for item in (*TINY, "steps_per_loop=2", "checkpoint_epochs=3"):
        command += ["--set", item]
    command += ["--workdir", tmp_path]
    process = run_command(command, wait=False, stderr=subprocess.PIPE)
    wait_for_step(tmp_path, 7)
    process.terminate()
    _, message = process.communicate()
    assert process.returncode == 143
    assert b"Stopped and saved" in message
    (saved,) = checkpoints.steps_in(tmp_path / "checkpoints")
    assert saved >= 8
    seen = len(logged_steps(tmp_path))
    # Meanwhile a newer checkpoint has come to harm: the run says so and takes the whole one.
    for part in ("index", "data-00000-of-00001"):
        whole = (tmp_path / "checkpoints" / f"ckpt-{saved}.{part}").read_bytes()
        broken = whole if part == "index" else whole[:100]
        (tmp_path / "checkpoints" / f"ckpt-{saved + 1}.{part}").write_bytes(broken)
    process = run_command(command, wait=False, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    assert process.returncode == 0
    # The console wraps lines, in the middle of a long path too.
    assert f"ckpt-{saved + 1}cannotberead" in "".join(output.decode().split())
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 132
    assert logged_steps(tmp_path)[seen] == saved


def run_command(command, *, wait=True, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, **options)
    if wait:
        assert process.wait() == 0
    return process


def test_an_optimizer_step_is_that_of_keras_fit():
    """One engine step equals one step of `model.fit` on the same batch and loss."""
    recipe = get_recipe("digits_resnet20", [*TINY, "weight_decay=0.0", "momentum=0.0"])
    data = datasets.load_data(get_recipe("digits_resnet20"))
    strategy = strategies.make_strategy("one_device")
    model, twin = (engine.create_model(recipe, 10) for _ in range(2))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    batches = input_pipeline.train_batches(data.train, model.preprocessing, recipe)
    step = tf.Variable(0, dtype=tf.int64)
    trainer = task.Trainer(
        model, model.trainable_variables, optimizer, recipe, strategy, batches, step
    )
    trainer.train(tf.constant(1))
    batch = next(iter(batches))
    twin.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    twin.train_on_batch(batch["image"], batch["label"])
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=ours.path)


def test_a_broken_cluster_is_named(monkeypatch):
    for text in ("{cluster: 1}", '{"cluster": 3}', "[]", '{"task": {"type": "worker"}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ValueError, match="TF_CONFIG.*Received: .*" + re.escape(text)):
            strategies.make_strategy("multi_worker")
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]}}')
    with pytest.warns(UserWarning, match="TF_CONFIG names 2 workers.*--strategy multi_worker"):
        strategies.make_strategy("one_device")
    monkeypatch.setenv("TF_CONFIG", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        strategies.make_strategy("one_device")


def test_mistakes_on_the_command_line_end_with_one_sentence(tmp_path):
    workdir = str(tmp_path / "run")
    (tmp_path / "ckpt-20.index").touch()
    for arguments, message in [
        (["--config", "digits_resnet20", "--strategy", "tpu"], "needs a TPU"),
        (["--config", "digits_resnet20", "--set", "accumulation_steps=5"], "accumulation_steps=5"),
        (["--config", "digits_resnet20", "--init-from", "/nope"], "No weights file at /nope"),
        (["--config", "digits_resnet20", "--init-from", "/tmp"], "neither model.keras nor best"),
        (["--config", "digits_resnet20", "--init-from", f"{tmp_path}/ckpt-3"], "there: ckpt-20$"),
        (["--config", "imagenet_resnet50"], "TFRecords.*--data-dir"),
        (["--config", "imagenet_resnet50", "--data-dir", "/nowhere"], "No TFRecords found"),
        (["--config", "digits"], "Unknown recipe 'digits'"),
        (["--config", "cifar10_resnet20"], "--data-dir"),
        (["--config", "cifar10_resnet20", "--data-dir", "/nowhere"], "No data folder at /nowhere"),
        (["--config", "digits_resnet20", "--strategy", "many"], "one_device.*'many'"),
        (["--config", "digits_resnet20", "--strategy", "multi_worker"], "TF_CONFIG"),
        (["--config", "digits_resnet20", "--set", "wiring=ring"], "wiring.*'ring'"),
        (["--config", "digits_resnet20", "--set", "model=resnet5"], "Unknown variant 'resnet5'"),
        (["--config", "digits_resnet20", "--init-from", "no.keras"], "No weights file at no.keras"),
        (["--config", "digits_resnet20", "--set", "input_shape=[8,8,1]"], "3 channels"),
        (["--config", "digits_resnet20", "--set", "model_overrides.depths=2"], "depths.*2"),
        (["--config", "digits_resnet20", "--set", "model_overrides.num_classes=5"], "num_classes"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([*arguments, "--workdir", workdir])
        assert not (tmp_path / "run").exists(), arguments


def test_replicas_that_do_not_divide_the_batch_are_refused():
    recipe = get_recipe("digits_resnet20", [*TINY, "batch_size=127"])

    class TwoReplicas:
        num_replicas_in_sync = 2

    with pytest.raises(ValueError, match="batch_size=127, 2 replicas"):
        engine.Run(recipe, None, TwoReplicas())


def test_predictions_come_from_a_process_without_keras(finished):
    _, workdir, _ = finished
    data = datasets.load_data(get_recipe("digits_resnet20"))

    class Finished:
        pass

    Finished.data = data
    rows = report.predict_samples(Finished, workdir)
    assert len(rows) == report.NUM_SAMPLES
    model = keras.saving.load_model(workdir / "model.keras")
    for row in rows:
        image = tf.io.decode_image(pathlib.Path(row["file"]).read_bytes())
        logits = model(model.preprocessing(image[None]))
        assert row["label"] == str(int(np.argmax(logits)))
        assert f"_{row['true']}.png" in row["file"]
