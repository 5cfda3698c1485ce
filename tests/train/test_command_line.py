"""The command lines end with one sentence, whatever the mistake."""

import os
import pathlib
import signal
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from dgnet_keras.serving.export import atomic_directory
from dgnet_keras.user_warnings import warn
from train import coco
from train.command_line import ending_clearly, explain
from train.imagenet import main

ROOT = pathlib.Path(__file__).parents[2]


def test_mistakes_on_the_command_line_end_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    workdir = str(tmp_path / "run")
    (tmp_path / "ckpt-20.index").touch()
    for arguments, message in [
        (["--config", "digits_resnet20", "--strategy", "tpu"], "needs a TPU"),
        (["--config", "digits_resnet20", "--set", "accumulation_steps=5"], "accumulation_steps=5"),
        (["--config", "digits_resnet20", "--init-from", "/nope"], "No weights file at /nope"),
        (
            ["--config", "digits_resnet20", "--init-from", str(tmp_path)],
            "neither model.keras nor best",
        ),
        (["--config", "digits_resnet20", "--init-from", f"{tmp_path}/ckpt-3"], "there: ckpt-20$"),
        (["--config", "digits_resnet20", "--init-from", "timm/resnet18.a"], r"dgnet_keras\[hub\]"),
        (["--config", "digits_resnet20", "--set", "distill_from=timm/a"], r"dgnet_keras\[hub\]"),
        (["--config", "digits_resnet20", "--set", "distill_from=/no"], "No weights file at /no"),
        (["--config", "imagenet_resnet50"], "TFRecords.*--data-dir"),
        (
            ["--config", "imagenet_resnet50", "--data-dir", "/nowhere"],
            "/nowhere does not exist. Expected",
        ),
        (["--config", "digits"], "Unknown recipe 'digits'"),
        (["--config", "cifar10_resnet20"], "--data-dir"),
        (["--config", "cifar10_resnet20", "--data-dir", "/nowhere"], "No data folder at /nowhere"),
        (["--config", "digits_resnet20", "--strategy", "many"], "one_device.*'many'"),
        (["--config", "digits_resnet20", "--strategy", "multi_worker"], "TF_CONFIG"),
        (["--config", "digits_resnet20", "--set", "wiring=ring"], 'wiring.*"ring"'),
        (["--config", "digits_resnet20", "--set", "model=resnet5"], "Unknown variant 'resnet5'"),
        (["--config", "digits_resnet20", "--init-from", "no.keras"], "No weights file at no.keras"),
        (["--config", "digits_resnet20", "--set", "input_shape=[8,8,1]"], "3 channels"),
        (["--config", "digits_resnet20", "--set", "model_overrides.depths=2"], "depths.*2"),
        (["--config", "digits_resnet20", "--set", "model_overrides.num_classes=5"], "num_classes"),
    ]:
        with pytest.raises(SystemExit, match=message):
            main([*arguments, "--workdir", workdir])
        assert not (tmp_path / "run").exists(), arguments


@pytest.mark.parametrize(
    ("command", "mistake", "message"),
    [
        ("train.imagenet", ["--config", "digits"], "Unknown recipe 'digits'"),
        ("train.imagenet", ["--set", "epoch=3"], "Unknown key 'epoch'. Did you mean 'epochs'"),
        ("train.imagenet", ["--set", "epochs=many"], '`epochs` must be of type int. Received: "ma'),
        ("train.imagenet", ["--set", "threshold=2"], "`threshold` must be in [0, edge_scale)"),
        ("train.imagenet", ["--set", "dataset=folders"], "`dataset` must be one of digits, "),
        ("train.coco", ["--set", "image_size=[8]"], "`image_size` must be of type [int, int]"),
        ("train.coco", ["--set", "gate=closed"], "`gate` must be one of"),
        ("train.coco", ["--help"], "Keys of a recipe"),
        ("train.preview", ["--set", "std=[0]"], "`std[0]` must be in (0, 1]"),
    ],
)
def test_mistakes_are_told_before_tensorflow_is_imported(command, mistake, message, tmp_path):
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('TensorFlow was imported')")
    config = "coco_tiny_retinanet" if command == "train.coco" else "digits_resnet20"
    flag = "--output" if command == "train.preview" else "--workdir"
    arguments = ["--config", config, flag, str(tmp_path / "x"), *mistake]
    done = subprocess.run(
        [sys.executable, "-m", command, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert message in (done.stderr or done.stdout)
    assert done.stderr.count("\n") <= 1


@pytest.mark.slow
def test_what_was_postponed_is_loaded_whole():
    code = """
from train import postponed
postponed.postpone()
from train.recipes import GraphOptions
import sys
assert not {"keras", "tensorflow"} & set(sys.modules)
postponed.load()
import keras, dgnet_keras as dg
assert dg.layers.GraphOptions is GraphOptions is sys.modules["dgnet_keras.layers"].GraphOptions
assert all(hasattr(dg, name) for name in dg.__all__)
assert keras.saving.get_registered_object("dgnet_keras>Classifier") is dg.Classifier
model = dg.create("resnet20_cifar", depths=(1,), widths=(8,), num_classes=2)
assert isinstance(model.backbone.graph_options, GraphOptions)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", ["loop", "detection.run"])
def test_a_missing_package_is_named_with_what_installs_it(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, f"train.{module}", None)
    with pytest.raises(SystemExit, match=r"pip install .*detection"):
        coco.main(["--config", "coco_tiny_retinanet", "--workdir", str(tmp_path / "run")])


def test_sigterm_leaves_nothing_half_written_before_training(tmp_path):
    with pytest.raises(SystemExit) as stopped, ending_clearly("train.coco", tmp_path):
        with atomic_directory(tmp_path / "records") as scratch:
            (scratch / "half").write_text("")
            os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143
    assert not list(tmp_path.iterdir())


def test_a_warning_of_a_run_is_one_line(tmp_path, capsys):
    with ending_clearly("train.coco", tmp_path):
        warn("Look out.")
    assert capsys.readouterr().err == "train.coco: warning: Look out.\n"


def test_an_error_in_a_graph_is_explained_by_its_cause():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    failing = tf.function(
        lambda x: tf.reduce_sum(dense(x)) + tf.reduce_sum(tf.reshape(x, (-1, 5))),
        input_signature=[tf.TensorSpec((None, 3))],
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        failing(tf.ones((2, 3)))
    sentence = explain(error.value)
    assert "6" in sentence and "5" in sentence and "\n" not in sentence
    assert "Graph execution error" not in sentence
