"""What one update and one evaluation compute, against plain loops and hand-made values."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import dgnet_keras as dg
from dgnet_keras import connectivity
from dgnet_keras.convert import is_wiring_weight
from train import strategies
from train.classification import input_pipeline, optimizers, task
from train.classification.datasets import ImageData, Split
from train.classification.losses import losses_of
from train.classification.model import create_model, norms, trained_variables
from train.classification.recipes import get_recipe
from train.classification.run import ClassificationRun
from train.loop import orbit_log

RECIPE = get_recipe(
    "digits_resnet20",
    [
        "model_overrides.depths=[2,2]",
        "model_overrides.widths=[8,8]",
        "input_shape=[8,8,3]",
        "batch_size=8",
        "epochs=2",
        "warmup_epochs=0",
        "weight_decay=0.0",
        "momentum=0.0",
        "random_shift=0",
        "learning_rate=0.1",
    ],
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (32, 1, 1, 3))  # images that routers can tell apart
    images = (colours + rng.integers(0, 56, (32, 8, 8, 3))).astype("uint8")
    split = Split(rng.integers(0, 10, 32), images=images)
    return ImageData(tuple("0123456789"), split, split)


def update(recipe, data, steps=1, model=None, frozen=()):
    """Some updates of a model (as it is, where one is given) of a recipe.

    Returns the model, the optimizer and the weights before, by path.
    """
    strategy = strategies.make_strategy("one_device")
    if model is None:
        model = create_model(recipe, 10)
        trained = trained_variables(
            model,
            freeze_backbone="backbone" in frozen,
            freeze_routers="routers" in frozen,
        )
    else:
        trained = model.trainable_variables
    variables = list(model.trainable_variables)
    optimizer = optimizers.create_optimizer(recipe, 4, variables)
    batches = input_pipeline.train_batches(data.train, model.preprocessing, recipe, num_classes=10)
    before = {v.path: v.numpy() for v in model.weights}
    step = tf.Variable(0, dtype=tf.int64)
    trainer = task.Trainer(model, trained, optimizer, recipe, strategy, batches, step)
    trainer.train(tf.constant(steps))
    assert int(step) == steps
    return model, optimizer, before


def change(recipe, data, **options):
    model, _, before = update(recipe, data, **options)
    return {v.path: v.numpy() - before[v.path] for v in model.weights}


def freeze_norms(model):
    """Normalisation that cannot see the batch, as the comparison of whole and parts needs."""
    for layer in norms(model):
        layer.trainable = False
    return model


def test_an_update_is_that_of_keras_fit(data):
    """One update equals one step of `model.fit` on the same batch and loss."""
    model, twin = (create_model(RECIPE, 10) for _ in range(2))
    update(RECIPE, data, model=model)
    batches = input_pipeline.train_batches(data.train, model.preprocessing, RECIPE)
    batch = next(iter(batches))
    twin.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    twin.train_on_batch(batch["image"], batch["label"])
    for ours, theirs in zip(model.weights, twin.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=ours.path)


def test_four_parts_of_32_equal_a_batch_of_128():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 10, 256), images=rng.integers(0, 256, (256, 8, 8, 3), "uint8"))
    data = ImageData(tuple("0123456789"), split, split)
    weights = []
    for parts in (1, 4):
        recipe = dataclasses.replace(
            RECIPE, wiring="chain", batch_size=128, accumulation_steps=parts, momentum=0.9,
            weight_decay=1e-3,
        )  # fmt: skip
        model = freeze_norms(create_model(recipe, 10))
        model, _, before = update(recipe, data, steps=5, model=model)
        weights.append({v.path: v.numpy() for v in model.weights})
    assert any(np.abs(weights[0][path] - before[path]).max() > 1e-3 for path in before)
    for path, value in weights[0].items():
        np.testing.assert_allclose(weights[1][path], value, rtol=1e-5, atol=1e-5, err_msg=path)


def test_gradients_are_clipped_to_the_global_norm(data):
    whole = change(RECIPE, data)
    trained = [p for p in whole if "moving" not in p]
    norm = np.sqrt(sum(np.square(whole[p]).sum() for p in trained)) / 0.1
    clipped = change(dataclasses.replace(RECIPE, clip_norm=float(norm / 4)), data)
    for path in trained:
        np.testing.assert_allclose(clipped[path], whole[path] / 4, rtol=1e-3, atol=1e-6)
    loose = change(dataclasses.replace(RECIPE, clip_norm=float(norm * 4)), data)
    for path in trained:
        np.testing.assert_allclose(loose[path], whole[path], rtol=1e-4, atol=1e-7)


def test_routers_and_blocks_are_clipped_to_norms_of_their_own(data):
    """A router's gradient, which a budget makes large, does not keep the blocks from learning."""
    recipe = dataclasses.replace(RECIPE, wiring="dynamic", router_lr_multiplier=1.0)
    whole = change(recipe, data)
    wiring = {p for p in whole if is_wiring_weight(p)}
    blocks = {p for p in whole if p not in wiring and "moving" not in p}
    lengths = [
        float(np.sqrt(sum(np.square(whole[p]).sum() for p in some)) / 0.1)
        for some in (wiring, blocks)
    ]
    limits = {"router_clip_norm": lengths[0] / 4, "clip_norm": lengths[1] / 2}
    clipped = change(dataclasses.replace(recipe, **limits), data)
    assert min(lengths) > 0
    for path in wiring | blocks:
        expected = whole[path] / (4 if path in wiring else 2)
        np.testing.assert_allclose(clipped[path], expected, rtol=1e-3, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_kernels_alone_are_decayed(data, optimizer):
    """Decay moves kernels by -rate * decay * value, and nothing else."""
    recipe = dataclasses.replace(
        RECIPE, optimizer=optimizer, wiring="dynamic", threshold=0.2, learn_threshold=True,
        gate="surrogate", router_lr_multiplier=1.0,
    )  # fmt: skip
    plain = change(recipe, data)
    model, _, before = update(dataclasses.replace(recipe, weight_decay=0.5), data)
    decayed = 0
    for v in model.trainable_variables:
        extra = v.numpy() - before[v.path] - plain[v.path]
        is_kernel = v.path.endswith("kernel")
        decayed += is_kernel
        expected = -0.1 * 0.5 * before[v.path] if is_kernel else np.zeros(v.shape)
        np.testing.assert_allclose(extra, expected, atol=1e-6, err_msg=v.path)
    assert decayed > 5


def test_routers_have_their_own_learning_rate(data):
    recipe = dataclasses.replace(RECIPE, router_lr_multiplier=1.0)
    once = change(recipe, data)
    thrice = change(dataclasses.replace(recipe, router_lr_multiplier=3.0), data)
    routers = [path for path in once if is_wiring_weight(path)]
    assert any(np.abs(once[path]).max() > 0 for path in routers)
    for path, value in once.items():
        factor = 3 if path in routers else 1
        np.testing.assert_allclose(thrice[path], factor * value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("frozen", ["backbone", "routers"])
def test_what_is_frozen_stays_and_the_rest_learns(data, frozen):
    moved = {p for p, value in change(RECIPE, data, frozen=(frozen,)).items() if value.any()}
    routers = {p for p in moved if is_wiring_weight(p)}
    assert {"logits/kernel", "logits/bias"} <= moved
    if frozen == "backbone":
        assert routers
        assert moved == routers | {"logits/kernel", "logits/bias"}
    else:
        assert not routers
        assert any("moving_mean" in path for path in moved)
        assert any("conv/kernel" in path for path in moved)


def test_a_phase_ends_and_everything_learns_again(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, freeze_backbone_epochs=1)
    run = ClassificationRun(recipe, data, strategies.make_strategy("one_device"))
    start = {v.path: v.numpy() for v in run.model.weights}
    run.restore(tmp_path)
    with orbit_log(tmp_path / "log"):
        epochs = run.train_epochs()
        next(epochs)
        after_one = {v.path: v.numpy() for v in run.model.weights}
        next(epochs)
    run.finish()
    end = {v.path: v.numpy() for v in run.model.weights}
    kernel = next(p for p in start if p.endswith("conv/kernel"))
    np.testing.assert_array_equal(after_one[kernel], start[kernel])
    assert np.abs(end[kernel] - start[kernel]).max() > 0
    assert all(layer.trainable for layer in run.model.layers)


def test_evaluation_uses_the_moving_average_and_training_does_not(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, ema_momentum=0.5, steps_per_loop=1)
    run = ClassificationRun(recipe, data, strategies.make_strategy("one_device"))
    kernel = run.variables[0]
    values = []
    run.restore(tmp_path)
    with orbit_log(tmp_path / "log"):
        list(run.train_epochs(lambda step: values.append(kernel.numpy())))
    np.testing.assert_array_equal(kernel.numpy(), values[-1])
    average = values[0]
    for value in values[1:]:
        average = 0.5 * average + 0.5 * value
    run.finish()
    np.testing.assert_allclose(kernel.numpy(), average, rtol=1e-5, atol=1e-7)
    logits = run.model.predict(run.model.preprocessing(data.test.images), verbose=0)
    accuracy = np.mean(logits.argmax(1) == data.test.labels)
    assert run.history[-1]["accuracy"] == pytest.approx(accuracy)


def test_float16_skips_a_step_that_overflows_and_goes_on(data):
    recipe = dataclasses.replace(RECIPE, dtype="mixed_float16")
    model, optimizer, before = update(recipe, data)
    assert float(optimizer.dynamic_scale) == 2.0**15
    assert any(np.abs(v.numpy() - before[v.path]).max() > 0 for v in model.trainable_variables)
    # The gradient of a loss scaled this much is not finite in float16.
    strategy = strategies.make_strategy("one_device")
    optimizer.dynamic_scale.assign(2.0**60)
    before = [v.numpy() for v in model.trainable_variables]
    batches = input_pipeline.train_batches(data.train, model.preprocessing, recipe)
    step = tf.Variable(0, dtype=tf.int64)
    task.Trainer(
        model, model.trainable_variables, optimizer, recipe, strategy, batches, step
    ).train(tf.constant(1))
    assert int(step) == 1  # the data goes on
    assert float(optimizer.dynamic_scale) == 2.0**59
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_float16_learns_what_float32_does(data):
    full = change(dataclasses.replace(RECIPE, weight_decay=1e-2), data)
    half = change(dataclasses.replace(RECIPE, weight_decay=1e-2, dtype="mixed_float16"), data)
    for path in full:
        if "moving" not in path:
            scale = np.abs(full[path]).max()
            np.testing.assert_allclose(half[path], full[path], atol=0.1 * scale + 1e-4)


def test_mixed_labels_are_a_weighted_cross_entropy():
    logits = np.array([[2.0, 0.0, -1.0]], "float32")
    log_p = logits - np.log(np.exp(logits).sum())
    batch = {"target": np.array([[0.7, 0.3, 0.0]], "float32"), "label": np.array([0])}
    loss = losses_of(tf.constant(logits), batch, 0.0)
    np.testing.assert_allclose(loss, [-(0.7 * log_p[0, 0] + 0.3 * log_p[0, 1])], rtol=1e-6)
    smooth = losses_of(tf.constant(logits), {"label": np.array([0])}, 0.3)
    np.testing.assert_allclose(smooth, [-(0.8 * log_p[0, 0] + 0.1 * log_p[0, 1:].sum())], 1e-6)


def test_the_step_of_a_loss_that_is_not_finite_is_named(data):
    broken = dataclasses.replace(RECIPE, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"at step [1-5]:"):
        update(broken, data, steps=8)


def test_connectivity_is_measured_over_the_test_split(data, tmp_path):
    """Against NumPy on `dg.adjacency`, for a router with random weights."""
    recipe = dataclasses.replace(RECIPE, threshold=0.45, batch_size=12)  # does not divide 32
    run = ClassificationRun(recipe, data, strategies.make_strategy("one_device"))
    rng = np.random.default_rng(0)
    for variable in run.model.weights:
        if is_wiring_weight(variable.path):
            variable.assign(3 * rng.normal(size=variable.shape))
    run.restore(tmp_path)
    with orbit_log(tmp_path / "log"):
        metrics = run.evaluate()
    adjacency = dg.adjacency(run.model, run.model.preprocessing(data.test.images))
    paths = set()
    opened = {stage: a > 0 for stage, a in adjacency.items()}
    for k in range(32):
        paths.add(b"".join(o[k].tobytes() for o in opened.values()))
    assert run.evaluator.findings == connectivity.router_health(adjacency)
    assert metrics["distinct_paths"] == len(paths) > 1
    for stage, o in opened.items():
        rates = [o[:, j, i].mean() for i in range(3) for j in range(i)]
        assert metrics[f"open_rate/{stage}"] == pytest.approx(np.mean(rates), rel=1e-5)
        entropy = [-(p * np.log2(p) + (1 - p) * np.log2(1 - p)) if 0 < p < 1 else 0 for p in rates]
        assert metrics[f"router_entropy/{stage}"] == pytest.approx(np.mean(entropy), abs=1e-5)
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").rglob("events*"))
    for tag in ("loss", "accuracy", "distinct_paths", "open_rate/stage1", "adjacency/stage2"):
        assert tag.encode() in events


def test_synchronised_norm_is_a_setting_of_the_recipe():
    for wanted in (False, True):
        model = create_model(dataclasses.replace(RECIPE, synchronized_norm=wanted), 10)
        found = norms(model)
        assert len(found) > 4
        assert all(isinstance(layer, keras.layers.BatchNormalization) for layer in found)
        assert {layer.synchronized for layer in found} == {wanted}


def test_an_evaluation_finds_that_untrained_routers_have_collapsed(data):
    recipe = dataclasses.replace(RECIPE, threshold=0.45)
    model, strategy = create_model(recipe, 10), strategies.make_strategy("one_device")
    batches = input_pipeline.test_batches(data.test, model.preprocessing, 8)
    untrained = task.Evaluator(model, recipe, strategy, batches)
    untrained.evaluate(tf.constant(4))
    assert "collapsed" in [finding.kind for finding in untrained.findings]
