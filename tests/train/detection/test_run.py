"""Detection recipes, evaluation, and whole runs of tiny detectors on scenes of digits."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import catalog
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from train_helpers import finish, logged_steps, start, start_workers, wait_for_step

from benchmarks.serving import c_api
from dgnet_keras.serving.export import atomic_directory
from train import coco
from train.classification import run as runner
from train.command_line import ending_clearly, explain
from train.detection import annotations as coco_data
from train.detection import export as coco_export
from train.detection import report as coco_report
from train.detection import run as coco_runner
from train.detection import scenes as coco_scenes
from train.detection.evaluator import BOX_FIGURES
from train.detection.recipes import RECIPES
from train.recipes import get_recipe

ROOT = pathlib.Path(__file__).parents[3]
TINY = (
    'model_overrides={"depths":[1,2,1,1],"widths":[8,8,16,16]}',
    "fpn_filters=16",
    "fc_dims=32",
    "num_proposals=16",
    "num_sampled_rois=16",
    "batch_size=16",
    "epochs=2",
    "evaluation_epochs=1",
    "warmup_steps=0",
    "train_images=48",
    "validation_images=20",
    "steps_per_loop=1",
)
# Untrained RetinaNets are sure of nothing: boxes of any score.
ANY_SCORE = 'garden={"task":{"model":{"detection_generator":{"pre_nms_score_threshold":0.001}}}}'
DETECTORS = ("coco_tiny_fasterrcnn", "coco_tiny_maskrcnn", "coco_tiny_retinanet")


def tiny(name="coco_tiny_fasterrcnn", *more):
    return get_recipe(name, [*TINY, *more], RECIPES)


def command(workdir, *arguments, name="coco_tiny_fasterrcnn"):
    items = [part for item in TINY for part in ("--set", item)]
    line = ["-m", "train.coco", "--config", name, "--workdir", str(workdir), *items, *arguments]
    return [sys.executable, *line]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    coco_scenes.make_digit_scenes(folder)
    return folder


@pytest.fixture(scope="module")
def data(scenes, tmp_path_factory):
    return coco_runner.load_data(tiny(), tmp_path_factory.mktemp("work"), scenes)


def test_routers_learn_at_their_own_rate(data):
    rates = {}
    for multiplier in (1.0, 0.1):
        run = make_run(data, f"router_lr_multiplier={multiplier}", "clip_norm=1.0")
        weights = run.model.trainable_weights
        before = [w.numpy() for w in weights]
        run.trainer.optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])
        moved = [np.abs(w.numpy() - b).max() for w, b in zip(weights, before, strict=True)]
        routers = {id(v) for p, v in run.backbone.variables_by_path.items() if "/router_" in p}
        is_router = [id(w) in routers for w in weights]
        assert any(is_router)
        rates[multiplier] = [
            np.mean([m for m, r in zip(moved, is_router, strict=True) if r == wanted])
            for wanted in (True, False)
        ]
    np.testing.assert_allclose(rates[0.1][0] / rates[1.0][0], 0.1, rtol=1e-4)
    np.testing.assert_allclose(rates[0.1][1], rates[1.0][1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "frozen"), [("mixed_bfloat16", False), ("mixed_float16", True)])
def test_a_backbone_learns_in_mixed_precision_unless_it_is_frozen(dtype, frozen, data, tmp_path):
    with coco_runner._policy(dtype):
        run = make_run(data, f"dtype={dtype}", f"freeze_backbone={str(frozen).lower()}")
        run.restore(tmp_path)
        run.open(tmp_path)
        backbone = list(run.backbone.variables_by_path.values())
        heads = run.model.head.trainable_weights
        before = [v.numpy() for v in (*backbone, *heads)]
        run.train_to(2)
        features = run.backbone(tf.zeros((1, 128, 128, 3)))
    assert {x.dtype.name for x in features.values()} == {dtype.removeprefix("mixed_")}
    assert {v.dtype.base_dtype.name for v in run.model.weights} == {"float32"}
    moved = [not np.array_equal(v, b) for v, b in zip((*backbone, *heads), before, strict=True)]
    assert any(moved[: len(backbone)]) != frozen
    assert any(moved[len(backbone) :])


def make_run(data, *more, init_backbone=None):
    recipe = tiny("coco_tiny_retinanet", *more)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    return coco_runner.Run(recipe, data, strategy, init_backbone)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in DETECTORS],
)
def finished(request, scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    recipe = tiny(request.param, ANY_SCORE)
    return recipe, workdir, coco_runner.train(recipe, workdir, data_dir=scenes, visualize=1)


@pytest.mark.slow
def test_a_run_leaves_everything_behind(finished):
    recipe, workdir, results = finished
    assert results == json.loads((workdir / "results.json").read_text())
    assert results["steps"] == 6
    assert {"AP", "AP50", "parameters", "backbone_macs", "weights_sha256"} <= set(results)
    assert ("mask_AP" in results) == (recipe.detector == "maskrcnn")
    for name in ("history.png", "visualizations/0.png", "export/1/saved_model.pb"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / "ckpt-6.index").exists()
    assert tf_keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.slow
def test_a_run_is_not_started_again_where_its_checkpoints_are_gone(
    finished, scenes, tmp_path_factory
):
    recipe, workdir, _ = finished
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(workdir, copy)
    (copy / "checkpoints" / "checkpoint").unlink()  # TensorFlow's list of them
    data = coco_runner.load_data(recipe, copy, scenes)
    run = coco_runner.Run(recipe, data, tf.distribute.OneDeviceStrategy("/cpu:0"))
    run.restore(copy)
    assert run.step == 6
    for file in (copy / "checkpoints").glob("ckpt-6*"):
        file.unlink()
    with pytest.raises(ValueError, match="last checkpoint, of step 6, is gone"):
        coco_runner.train(recipe, copy, data_dir=scenes, visualize=1)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="the history of a run, and no checkpoint"):
        run.restore(copy)
    assert (copy / "history.json").read_text() == (workdir / "history.json").read_text()


@pytest.mark.slow
def test_other_data_of_the_same_size_are_refused(finished, tmp_path):
    recipe, workdir, _ = finished
    coco_scenes.make_digit_scenes(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="train_sha256"):
        coco_runner.train(recipe, workdir, data_dir=tmp_path / "other")


@pytest.mark.slow
def test_figures_are_those_of_pycocotools_on_the_written_detections(finished, scenes):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    recipe, workdir, results = finished
    annotations = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    annotations["images"] = annotations["images"][:20]
    (workdir / "truth.json").write_text(json.dumps(annotations))
    real = COCO(str(workdir / "truth.json"))
    answers = json.loads((workdir / "detections.json").read_text())
    if not answers:
        assert results["AP"] == results["AR100"] == 0.0
        return
    kinds = [("bbox", "", answers)]
    if recipe.detector == "maskrcnn":  # of masks pycocotools takes the box's area if there is one
        masks = [{k: v for k, v in answer.items() if k != "bbox"} for answer in answers]
        kinds.append(("segm", "mask_", masks))
    for kind, prefix, found in kinds:
        run = COCOeval(real, real.loadRes(found), kind)
        run.params.imgIds = [image["id"] for image in annotations["images"]]
        run.evaluate()
        run.accumulate()
        run.summarize()
        expected = [results[prefix + name] for name in BOX_FIGURES]
        np.testing.assert_allclose(expected, run.stats, atol=1e-12)


@pytest.mark.slow
def test_a_finished_run_is_reported_again_and_another_recipe_refused(finished, scenes):
    recipe, workdir, results = finished
    before = (workdir / "results.json").stat().st_mtime_ns
    assert coco_runner.train(recipe, workdir, data_dir=scenes) == results
    assert (workdir / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"epochs: 2 there, 3 here"):
        coco_runner.train(
            tiny(f"coco_tiny_{recipe.detector}", ANY_SCORE, "epochs=3"), workdir, data_dir=scenes
        )


@pytest.fixture(scope="module")
def restored(finished, scenes):
    """The finished run's newest checkpoint in a model of its own."""
    recipe, workdir, _ = finished
    data = coco_runner.load_data(recipe, workdir, scenes)
    run = coco_runner.Run(recipe, data, tf.distribute.OneDeviceStrategy("/cpu:0"))
    run.restore(workdir)
    return run


def assert_export_finds_the_same(run, directory, files):
    """Through the C API, in a process without TensorFlow's Python and Keras."""
    images = [coco_data.read_image(file) for file in files]
    requests = [("serving_default", {"inputs": image[None]}) for image in images]
    requests += [("predict_jpeg", {"inputs": [file.read_bytes()]}) for file in files]
    answers = c_api.run_elsewhere(directory, c_api.signature_tensors(directory), requests)
    expected = list(coco_export.predict(run, images))
    assert sum(len(found["boxes"]) for found in expected) > len(files)
    for answer, found in zip(answers, [*expected, *expected], strict=True):
        count = int(answer["num_detections"][0])
        assert count == len(found["boxes"])
        for key, name in (("boxes", "boxes"), ("scores", "scores"), ("labels", "classes")):
            np.testing.assert_allclose(
                answer[f"detection_{name}"][0, :count], found[key], rtol=1e-4, atol=1e-3
            )


@pytest.mark.slow
def test_the_export_finds_what_the_checkpoint_finds(finished, restored, scenes, tmp_path):
    """Images of several sizes, one by one; JPEG is decoded alike, PNG too."""
    from PIL import Image

    files = []
    for k, size in enumerate(((128, 128), (200, 90), (64, 300))):
        picture = Image.open(scenes / "val" / f"000{k}.png").convert("RGB").resize(size)
        files.append(tmp_path / f"{k}.png")
        picture.save(files[-1])
    assert_export_finds_the_same(restored, finished[1] / "export" / "1", files)


@pytest.mark.slow
def test_the_export_finds_what_the_checkpoint_finds_on_coco(finished, restored, coco128):
    files = sorted((coco128 / "train2017").glob("*.jpg"))[:10]
    assert len(files) == 10
    assert_export_finds_the_same(restored, finished[1] / "export" / "1", files)


@pytest.mark.slow
def test_a_new_process_goes_on_with_the_same_state(scenes, tmp_path):
    """Four steps, a checkpoint, and all of it restored elsewhere; the next loss agrees."""
    script = pathlib.Path(__file__).with_name("one_detector.py")
    states = []
    for k, steps in enumerate((4, 0)):
        output = tmp_path / f"{k}.npz"
        arguments = [scenes, tmp_path / "run", str(steps), output]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        subprocess.run([sys.executable, script, *arguments], check=True, env=environment)
        with np.load(output) as values:
            states.append(dict(values))
    loss, again = (state.pop("next_loss") for state in states)
    assert any("momentum" in name for name in states[0])
    assert any("moving_variance" in name for name in states[0])
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value, err_msg=name)
    np.testing.assert_allclose(again, loss, rtol=1e-5)


@pytest.mark.slow
def test_a_classifiers_run_starts_the_backbone(data, tmp_path):
    items = [
        'model_overrides={"depths":[1,2,1,1],"widths":[8,8,16,16]}',
        "model=resnet18",
        "epochs=1",
        "input_shape=[32,32,3]",
    ]
    classifier = get_recipe("digits_resnet20", items)
    runner.train(classifier, tmp_path / "classifier")
    import keras

    model = keras.saving.load_model(tmp_path / "classifier" / "model.keras")
    for source in ("", "model.keras", "best.weights.h5", "checkpoints/ckpt-22"):
        run = make_run(data, init_backbone=tmp_path / "classifier" / source)
        run.restore(tmp_path / "new")
        images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
        expected = keras.Model(model.input, model.pyramid_outputs)(images, training=False)
        for level, x in run.backbone(images, training=False).items():
            np.testing.assert_array_equal(x, expected[f"P{level}"])


@pytest.mark.slow
def test_timms_weights_start_the_backbone(data, tmp_path):
    import keras

    import dgnet_keras as dg

    overrides = {"depths": (1, 2, 1, 1), "widths": (8, 8, 16, 16)}
    static = catalog.randomize(dg.create("resnet18", num_classes=5, wiring="chain", **overrides))
    catalog.write_timm_file(static, tmp_path / "timm.safetensors")
    run = make_run(data, "init=static", init_backbone=tmp_path / "timm.safetensors")
    run.restore(tmp_path / "new")
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    expected = keras.Model(static.input, static.pyramid_outputs)(images, training=False)
    for level, x in run.backbone(images, training=False).items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(x / scale, expected[f"P{level}"] / scale, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(tmp_path, scenes):
    arguments = ["--data-dir", str(scenes), "--set", "epochs=8", "--set", "evaluation_epochs=8"]
    line = command(tmp_path / "run", *arguments, name="coco_tiny_retinanet")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    wait_for_step(tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    stopped = max(logged_steps(tmp_path / "run"))
    assert 3 <= stopped < 24
    subprocess.run(line, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    steps = logged_steps(tmp_path / "run")
    assert steps[-1] == 24
    assert steps[steps.index(stopped) :].count(stopped) <= 2
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 24


REPLICAS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from train import coco
coco.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_replicas_and_workers_evaluate_each_image_once(strategy, scenes, tmp_path):
    """20 images in batches of 16: the last batch is too small for all replicas."""
    name, workdir = "coco_tiny_retinanet", tmp_path / "run"
    options = ["--data-dir", str(scenes), "--strategy", strategy]
    settings = ("synchronized_norm=true", ANY_SCORE)
    options += [part for item in settings for part in ("--set", item)]
    line = command(workdir, *options, name=name)
    if strategy == "mirrored":
        finish([start(["-c", REPLICAS, *line[3:]])])
    else:
        finish(start_workers(line[1:]))
    last = json.loads((workdir / "history.json").read_text())[-1]
    recipe = tiny(name, *settings)
    data = coco_runner.load_data(recipe, workdir, scenes)
    run = coco_runner.Run(recipe, data, tf.distribute.OneDeviceStrategy("/cpu:0"))
    run.restore(workdir)
    run.open(workdir)
    figures = run.controller.evaluate()
    written = json.loads((workdir / "detections.json").read_text())
    counts = [
        collections.Counter(answer["image_id"] for answer in answers)
        for answers in (written, run.evaluator.detections)
    ]
    assert len(counts[0]) == 20  # boxes in every image, however few steps it was trained for
    assert counts[0] == counts[1]
    for key in BOX_FIGURES:
        np.testing.assert_allclose(last[key], figures[key], rtol=1e-3, atol=1e-5, err_msg=key)
    assert json.loads((workdir / "results.json").read_text())["AP"] == last["AP"]


def test_bad_data_leaves_no_workdir(tmp_path, scenes, capsys):
    with pytest.raises(SystemExit, match="instances_<split>"):
        coco.main(["--config", "coco_tiny_retinanet", "--workdir", str(tmp_path / "run"),
                   "--data-dir", str(tmp_path)])  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_splits_that_name_categories_differently_are_refused(scenes, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder, ignore=shutil.ignore_patterns("tfrecords"))
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], reversed(names), strict=True):
        category["name"] = name
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="same categories, under the same ids"):
        coco_runner.load_data(tiny(), tmp_path / "run", folder)


@pytest.mark.parametrize("flag", ["--data-dir", "--workdir"])
def test_folders_that_tensorflow_takes_for_patterns_are_refused(flag, tmp_path):
    places = {"--workdir": tmp_path / "run", flag: tmp_path / "a,b"}
    line = ["--config", "coco_tiny_retinanet"]
    line += [str(part) for pair in places.items() for part in pair]
    with pytest.raises(SystemExit, match=f"{flag} must not contain any.*a,b"):
        coco.main(line)
    assert not list(tmp_path.iterdir())


def test_records_of_data_that_cannot_be_written_to_are_kept_in_the_workdir(
    scenes, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *_: False)
    data = coco_runner.load_data(tiny(), tmp_path / "run", scenes)
    assert data.train_records.pattern.startswith(str(tmp_path / "run" / "tfrecords"))
    with pytest.raises(ValueError, match="--workdir must not contain any"):
        coco_runner.load_data(tiny(), tmp_path / "a,b", scenes)


def test_pictures_hold_one_image_at_a_time(data, tmp_path, monkeypatch):
    read = []

    def read_image(path):
        read.append(path)
        return np.zeros((8, 8, 3), "uint8")

    def predict(run, images):
        for k, _ in enumerate(images, start=1):
            assert len(read) == k
            yield dict.fromkeys(("boxes", "scores", "labels", "adjacency"), ())

    monkeypatch.setattr(coco_data, "read_image", read_image)
    monkeypatch.setattr(coco_export, "predict", predict)
    coco_export.draw_predictions(types.SimpleNamespace(data=data), tmp_path / "drawn", 3)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == len(read) == 3


def test_a_number_of_pictures_below_none_is_refused(tmp_path):
    line = ["--config", "coco_tiny_retinanet", "--workdir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"--visualize.*-1"):
        coco.main([*line, "--visualize", "-1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["engine", "coco_runner"])  # of `train` and `detection`
def test_a_missing_package_is_named_with_what_installs_it(module, tmp_path, monkeypatch):
    import train

    monkeypatch.delattr(train, module)
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


def test_history_is_drawn(tmp_path):
    rows = [{"epoch": k, "AP": 0.1 * k, "AP50": 0.2 * k, "train_training_loss": 1 / k}
            for k in (1, 2)]  # fmt: skip
    coco_report.plot_history(rows, tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000


def test_an_error_in_a_graph_is_explained_by_its_cause():
    import keras

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
