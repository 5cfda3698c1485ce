"""Whole runs of tiny detectors on scenes of digits."""

import collections
import json
import shutil
import signal

import catalog
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from garden_losses import losses_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from train_helpers import (
    ANY_SCORE,
    detector_command,
    finish,
    logged_steps,
    start,
    start_workers,
    tiny_detector,
    wait_for_step,
)

import dgnet_keras as dg
from train.checkpoints import of_variables, steps_in
from train.classification.model import create_model
from train.classification.recipes import get_recipe
from train.detection import garden
from train.detection.evaluator import BOX_FIGURES
from train.detection.run import DetectionRun, dtype_policy, train
from train.detection.scenes import make_digit_scenes
from train.strategies import one_device
from train.weights import BEST_WEIGHTS, save_weights

RETINANET = "coco_tiny_retinanet"
pytestmark = pytest.mark.slow


def test_a_run_leaves_everything_behind(finished):
    recipe, workdir, results = finished
    assert results == json.loads((workdir / "results.json").read_text())
    assert results["steps"] == 6
    assert {"AP", "AP50", "parameters", "backbone_macs", "weights_sha256"} <= set(results)
    assert ("mask_AP" in results) == (recipe.detector == "maskrcnn")
    drawn = ["visualizations/0.png"] if recipe.detector == "retinanet" else []
    for name in ("history.png", "export/1/saved_model.pb", *drawn):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "checkpoints" / "ckpt-6.index").exists()
    lines = [x for x in (workdir / "train.log").read_text().splitlines() if x.startswith("step ")]
    told = [line.split(",")[0] for line in lines if ", loss " in line]
    assert told == [f"step {k}/6" for k in range(1, 7)]
    assert lines[-1].endswith("0:00:00 left")
    assert tf_keras.mixed_precision.global_policy().name == "float32"


def test_figures_are_those_of_pycocotools_on_the_written_detections(finished, scenes):
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
        with_objects = [row for row in results["classes"] if row["objects"]]
        mean = np.mean([row[f"{prefix}AP"] for row in with_objects])
        np.testing.assert_allclose(results[f"{prefix}AP"], mean, atol=1e-12)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps():
    """The loop that ends an epoch is shorter than the others."""
    loops = [(3, {"training_loss": 4.0}), (1, {"training_loss": 2.0})]
    assert DetectionRun._mean_of_loops(None, loops) == {"training_loss": 3.5}


def test_a_finished_run_is_reported_again_and_another_recipe_refused(finished, scenes):
    recipe, workdir, results = finished
    before = (workdir / "results.json").stat().st_mtime_ns
    assert train(recipe, workdir, data_dir=scenes) == results
    assert (workdir / "results.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"epochs: 2 there, 3 here"):
        longer = tiny_detector(f"coco_tiny_{recipe.detector}", ANY_SCORE, "epochs=3")
        train(longer, workdir, data_dir=scenes)


@pytest.mark.xdist_group(RETINANET)
def test_other_data_of_the_same_size_are_refused(finish_once, tmp_path):
    recipe, workdir, _ = finish_once(RETINANET)
    make_digit_scenes(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="train_sha256"):
        train(recipe, workdir, data_dir=tmp_path / "other")


@pytest.mark.xdist_group(RETINANET)
def test_a_run_is_not_started_again_where_its_checkpoints_are_gone(
    finish_once, restore_once, scenes, tmp_path
):
    recipe, workdir, _ = finish_once(RETINANET)
    run, copy = restore_once(RETINANET), tmp_path / "run"
    assert run.step == 6
    shutil.copytree(workdir, copy)
    for file in (copy / "checkpoints").glob("ckpt-6*"):
        file.unlink()
    with pytest.raises(ValueError, match="last checkpoint, of step 6, is gone"):
        train(recipe, copy, data_dir=scenes, visualize=1)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="the history of a run, and no checkpoint"):
        run.restore(copy)
    assert (copy / "history.json").read_text() == (workdir / "history.json").read_text()


@pytest.mark.xdist_group(RETINANET)
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(
    finish_once, restore_once, tmp_path
):
    workdir, run = finish_once(RETINANET)[1], restore_once(RETINANET)
    before = [v.numpy() for v in run.model.weights]
    for file in (workdir / "checkpoints").glob("ckpt-6.*"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "checkpoints")
        broken = file.read_bytes() if file.suffix == ".index" else b"broken"
        (tmp_path / "checkpoints" / file.name.replace("-6", "-9", 1)).write_bytes(broken)
    for variable in run.model.weights:
        variable.assign(tf.zeros_like(variable))
    run.restore(tmp_path)  # without TensorFlow's list of checkpoints, too
    assert run.step == 6
    assert "ckpt-9 cannot be read" in run.warnings.pop()
    for variable, value in zip(run.model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.fixture(scope="module")
def built_once(data):
    """A detector with untrained weights."""
    return DetectionRun(
        tiny_detector(RETINANET, "init=static", "clip_norm=1.0"), data, one_device()
    )


@pytest.fixture
def built(built_once):
    """The same for one test, which may change its weights."""
    before = [v.numpy() for v in built_once.model.weights]
    yield built_once
    for variable, value in zip(built_once.model.weights, before, strict=True):
        variable.assign(value)
    built_once.init_from = None


@pytest.mark.xdist_group(RETINANET)
def test_routers_learn_at_their_own_rate(built):
    rates, weights = {}, built.model.trainable_weights
    routers = {id(v) for p, v in built.backbone.variables_by_path.items() if "/router_" in p}
    is_router = np.array([id(w) in routers for w in weights])
    assert is_router.any()
    for multiplier in (1.0, 0.1):
        with built.strategy.scope():
            optimizer = garden.create_optimizer(built.params, built.model, multiplier)
        before = [w.numpy() for w in weights]
        optimizer.apply_gradients([(tf.ones_like(w), w) for w in weights])
        moved = [np.abs(w.numpy() - b).max() for w, b in zip(weights, before, strict=True)]
        rates[multiplier] = [np.mean(np.array(moved)[is_router == of]) for of in (True, False)]
    np.testing.assert_allclose(rates[0.1][0] / rates[1.0][0], 0.1, rtol=1e-4)
    np.testing.assert_allclose(rates[0.1][1], rates[1.0][1], rtol=1e-4)


@pytest.mark.xdist_group(RETINANET)
@pytest.mark.parametrize("source", ["", "model.keras", BEST_WEIGHTS, "checkpoints/ckpt-22"])
def test_a_classifiers_run_starts_the_backbone(built, source, tmp_path):
    items = (
        'model_overrides={"depths":[1,2,1,1],"widths":[8,8,16,16]}',
        "model=resnet18",
        "init=static",
        "input_shape=[32,32,3]",
    )
    model = catalog.randomize(create_model(get_recipe("digits_resnet20", items), 10))
    if source.startswith("checkpoints"):
        contents, _ = of_variables({"model": model.weights}, {})
        contents.write(str(tmp_path / source))
    elif source == BEST_WEIGHTS:
        save_weights(model, tmp_path / source)
    else:
        model.save(tmp_path / "model.keras")
    built.init_from = tmp_path / source
    built.restore(tmp_path / "new")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected = keras.Model(model.input, model.pyramid_outputs)(images, training=False)
    for level, x in built.backbone(images, training=False).items():
        np.testing.assert_array_equal(x, expected[f"P{level}"])


@pytest.mark.xdist_group(RETINANET)
def test_timms_weights_start_the_backbone(built, tmp_path):
    overrides = {"depths": (1, 2, 1, 1), "widths": (8, 8, 16, 16)}
    static = catalog.randomize(dg.create("resnet18", num_classes=5, wiring="chain", **overrides))
    catalog.write_timm_file(static, tmp_path / "timm.safetensors")
    built.init_from = tmp_path / "timm.safetensors"
    built.restore(tmp_path / "new")
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    expected = keras.Model(static.input, static.pyramid_outputs)(images, training=False)
    for level, x in built.backbone(images, training=False).items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(x / scale, expected[f"P{level}"] / scale, atol=1e-5)


@pytest.mark.parametrize(("dtype", "frozen"), [("mixed_bfloat16", False), ("mixed_float16", True)])
def test_a_backbone_learns_in_mixed_precision_unless_it_is_frozen(dtype, frozen, data, tmp_path):
    with dtype_policy(dtype):
        settings = (f"dtype={dtype}", f"freeze_backbone={str(frozen).lower()}")
        run = DetectionRun(tiny_detector(RETINANET, *settings), data, one_device())
        run.restore(tmp_path)
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


def state(run):
    """Arrays of all weights, and those of the optimizer's momentum."""
    optimizer, weights = run.trainer.optimizer, run.model.trainable_weights
    optimizer._create_all_weights(run.model.trainable_variables)  # else on first use
    slots = [optimizer.get_slot(v, "momentum") for v in weights]
    return [v.numpy() for v in run.model.weights], [slot.numpy() for slot in slots]


def test_a_checkpoint_holds_all_of_the_state(data, tmp_path):
    """Four steps, restored into a detector that was made anew: the next loss agrees."""
    recipe = tiny_detector("coco_tiny_fasterrcnn", "random_flip=false")
    runs = [DetectionRun(recipe, data, one_device()) for _ in range(2)]
    runs[0].restore(tmp_path)
    runs[0].train_to(4)
    runs[0].save()
    runs[1].restore(tmp_path)
    assert [run.step for run in runs] == [4, 4]
    ours, theirs = (state(run) for run in runs)
    assert all(np.any(slot) for slot in ours[1])
    for kind in range(2):
        for a, b in zip(ours[kind], theirs[kind], strict=True):
            np.testing.assert_array_equal(a, b)
    # Anchors are matched with random draws in the input pipeline: one batch for both.
    batch = next(iter(runs[0].task.build_inputs(runs[0].params.task.train_data)))
    losses = [losses_of(run.task, run.model, *batch)["total_loss"] for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_run_that_is_stopped_goes_on(tmp_path, scenes):
    workdir, settings = tmp_path / "run", ("epochs=8", "evaluation_epochs=8")
    line = ["-m", "train.coco", *detector_command(workdir, *settings), "--data-dir", scenes]
    process = start(line)
    wait_for_step(workdir, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output
    (stopped,) = steps_in(workdir / "checkpoints")
    assert 3 <= stopped < 24
    seen = len(logged_steps(workdir))
    finish([start(line)])
    goes_on = logged_steps(workdir)[seen:]
    assert (goes_on[0], goes_on[-1]) == (stopped, 24)
    assert json.loads((workdir / "results.json").read_text())["steps"] == 24


REPLICAS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from train import coco
coco.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def alone(data):
    """A detector on one device, to evaluate what others have trained."""
    recipe = tiny_detector(RETINANET, "synchronized_norm=true", ANY_SCORE)
    return DetectionRun(recipe, data, one_device())


@pytest.mark.xdist_group("replicas")
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_replicas_and_workers_evaluate_each_image_once(strategy, alone, scenes, tmp_path):
    """20 images in batches of 16: the last batch is too small for all replicas."""
    workdir = tmp_path / "run"
    line = detector_command(workdir, "synchronized_norm=true", ANY_SCORE)
    line += ["--data-dir", str(scenes), "--strategy", strategy]
    if strategy == "mirrored":
        finish([start(["-c", REPLICAS, *line])])
    else:
        finish(start_workers(["-m", "train.coco", *line]))
    last = json.loads((workdir / "history.json").read_text())[-1]
    alone.restore(workdir)
    figures = alone.evaluate()
    written = json.loads((workdir / "detections.json").read_text())
    counts = [
        collections.Counter(answer["image_id"] for answer in answers)
        for answers in (written, alone.task.evaluator.detections)
    ]
    assert len(counts[0]) == 20  # boxes in every image, however few steps it was trained for
    assert counts[0] == counts[1]
    for key in BOX_FIGURES:
        np.testing.assert_allclose(last[key], figures[key], rtol=1e-3, atol=1e-5, err_msg=key)
    assert json.loads((workdir / "results.json").read_text())["AP"] == last["AP"]
