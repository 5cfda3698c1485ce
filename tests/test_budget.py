import functools
import pathlib
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize
from scipy import stats

import dgnet_keras as dg
from dgnet_keras.budget import Pressure, apply_pressure
from dgnet_keras.complexity import model_costs

WIRINGS = ["path", "learned_path", "dynamic", "learned"]
LABELS = np.arange(32) % 3


def tiny(wiring="path", **kwargs):
    options = {"depths": (3, 4), "widths": (4, 8), "input_shape": (16, 16, 3), "macs_target": 0.6}
    return create("resnet_cifar_path", wiring=wiring, **{**options, **kwargs})


def small(wiring="path", **kwargs):
    """One stage, for what does not depend on their number: it is traced in half the time."""
    return tiny(wiring, depths=(3,), widths=(4,), **kwargs)


@functools.cache
def static_macs(depths):
    chain = tiny("chain", depths=depths, widths=(4, 8)[: len(depths)], macs_target=None)
    return dg.count_macs(chain)["macs"]


def shares(model, x):
    static = static_macs(tuple(len(stage.blocks) for stage in model.backbone.stages))
    return dg.count_macs(model, x)["per_instance"]["macs"] / static


def compiled(model, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dg.optimizers.SGD(0.01), loss, **kwargs)
    return model


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_share_in_the_log_is_that_of_count_macs(wiring):
    model = compiled(randomize(tiny(wiring), scale=0.5))
    x = images(40)
    found = model.evaluate(x, np.arange(40) % 3, batch_size=32, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["share_of_macs"], shares(model, x).mean(), rtol=1e-5)


def test_the_loss_is_the_weighted_square_of_the_distance():
    model = randomize(tiny(macs_weight=7.0), scale=0.5)
    apply_pressure(model, Pressure(0.45, 0.0, 0.0))
    x = images(16)
    model(x, training=True)
    (loss,) = model.losses
    _, _, share = model.call_with_budget(tf.constant(x), training=True)
    np.testing.assert_allclose(loss, 7 * (share - 0.45) ** 2, rtol=1e-4)


def test_images_in_doubt_may_compute_more():
    """Own targets from target - spread to target + spread, in order of doubt, once it is down."""
    x = images(5)
    model = randomize(tiny(macs_target=0.6, macs_weight=4.0, macs_spread=0.2), scale=0.5)
    apply_pressure(model, Pressure(0.6, 0.0, 0.0))
    doubt = tf.constant([0.9, 0.1, 0.5, 0.2, 0.3])
    own = [0.8, 0.4, 0.7, 0.5, 0.6]
    _, loss, share = model.call_with_budget(tf.constant(x), training=True, doubt=doubt)
    adjacency = keras.Model(model.input, dict(model.adjacency_outputs))(x, training=True)
    found = model_costs(model).shares(adjacency, 5)
    expected = (share - 0.6) ** 2 + 0.25 * np.mean((found - own) ** 2)
    np.testing.assert_allclose(loss, 4 * expected, rtol=1e-4)
    apply_pressure(model, Pressure(0.8, 0.0, 0.0))  # half way
    _, loss, _ = model.call_with_budget(tf.constant(x), training=True, doubt=doubt)
    own = 0.8 + (np.array(own) - 0.6) / 2
    expected = (share - 0.8) ** 2 + 0.25 * np.mean((found - own) ** 2)
    np.testing.assert_allclose(loss, 4 * expected, rtol=1e-4)


def test_one_image_is_neither_in_doubt_nor_sure():
    model = randomize(tiny(macs_spread=0.2), scale=0.5)
    apply_pressure(model, Pressure(0.6, 0.0, 0.0))
    x = tf.constant(images(1))
    _, loss, share = model.call_with_budget(x, training=True)
    np.testing.assert_allclose(loss, 10 * 1.25 * (share - 0.6) ** 2, rtol=1e-4)


def test_the_spread_opens_on_the_way_to_the_target_of_now():
    """Also where the step was traced with another."""
    x, doubt = tf.constant(images(5)), tf.constant([0.9, 0.1, 0.5, 0.2, 0.3])
    models = [small(macs_target=t, macs_spread=0.1) for t in (0.8, 0.95)]
    first, again = (randomize(model, scale=0.5) for model in models)
    step = tf.function(lambda: first.call_with_budget(x, training=True, doubt=doubt)[1])
    step()
    first.macs_target = 0.95
    for model in (first, again):
        apply_pressure(model, Pressure(0.95, 0.0, 0.0))
    expected = again.call_with_budget(x, training=True, doubt=doubt)[1]
    np.testing.assert_allclose(step(), expected, rtol=1e-4)


def test_without_a_saying_the_model_itself_is_in_doubt():
    model = randomize(tiny(macs_spread=0.2), scale=0.5)
    apply_pressure(model, Pressure(0.6, 0.0, 0.0))
    x = tf.constant(images(16))
    logits, loss, _ = model.call_with_budget(x, training=True)
    p = tf.nn.softmax(logits).numpy()
    doubt = tf.constant(stats.entropy(p, axis=1))
    np.testing.assert_allclose(
        loss, model.call_with_budget(x, training=True, doubt=doubt)[1], rtol=1e-5
    )
    opposite = model.call_with_budget(x, training=True, doubt=-doubt)[1]
    assert abs(opposite - loss) > 1e-4 * loss
    model.macs_spread = 0.0
    assert model.call_with_budget(x, training=True)[1] < loss


def test_the_budget_moves_the_choice_by_the_cost_of_its_block():
    """d loss / d bias = 2 w (share - target) mean(sigmoid'(z)) cost / static, a node at a time."""
    model = randomize(tiny(macs_weight=3.0), scale=0.5)
    apply_pressure(model, Pressure(0.6, 0.0, 0.0))
    x = tf.constant(images(16))
    seen = {}
    for stage in model.backbone.stages:
        for i, router in stage.routers().items():
            call = router.call

            def note(inputs, training=None, call=call, key=(stage.name, i)):
                seen[key] = call(inputs, training=training)
                return seen[key]

            router.call = note
    with tf.GradientTape() as tape:
        _, loss, share = model.call_with_budget(x, training=True)
    biases = {(s.name, i): r.bias for s in model.backbone.stages for i, r in s.routers().items()}
    gradients = tape.gradient(loss, [b.value for b in biases.values()])
    costs = dg.complexity.model_costs(model)
    for (name, i), gradient in zip(biases, gradients, strict=True):
        z = seen[name, i].numpy()
        slope = np.mean(1 / (1 + np.exp(-z)) * (1 - 1 / (1 + np.exp(-z))))
        cost = costs.graphs[name].nodes[i] / costs.static
        expected = 2 * 3 * (float(share) - 0.6) * slope * cost
        np.testing.assert_allclose(gradient.numpy()[0], expected, rtol=1e-3)


def test_a_block_that_too_few_take_is_pulled_up():
    model = tiny(macs_weight=2.0)
    router = model.backbone.stages[1].routers()[2]
    router.bias.assign([-5.0])
    target = float(shares(model, images(8)).mean())
    apply_pressure(model, Pressure(target, 0.0, 0.25))
    with tf.GradientTape() as tape:
        model(images(8), training=True)
        (loss,) = model.losses
    blocks = sum(len(stage.blocks) - 1 for stage in model.backbone.stages)
    np.testing.assert_allclose(loss, 2 * 0.25**2 / blocks, rtol=1e-3)
    assert tape.gradient(loss, router.bias.value).numpy()[0] < 0


@pytest.mark.parametrize("wiring", WIRINGS)
def test_training_brings_the_share_to_the_target(wiring):
    model = tiny(wiring, macs_weight=200.0, init="static")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dg.optimizers.SGD(0.05, router_lr_multiplier=10.0, global_clipnorm=1.0), loss)
    history = model.fit(images(32), LABELS, epochs=80, batch_size=32, verbose=0).history
    # `learned_path` in training has noise: its share is a mean over it.
    assert abs(np.mean(history["share_of_macs"][-20:]) - 0.6) < 0.08
    assert history["share_of_macs"][0] > 0.9


def test_the_schedule_goes_from_all_blocks_to_the_target_and_ends_without_noise():
    found = [Pressure.at(p, target=0.5) for p in (0.0, 0.25, 0.5, 0.79, 0.8, 1.0)]
    np.testing.assert_allclose([p.target for p in found], [1, 0.75, 0.5, 0.5, 0.5, 0.5])
    assert [float(p.noise) for p in found] == [1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose([p.floor for p in found], [0.25, 0.0625, 0, 0, 0, 0], atol=1e-7)


def test_the_callback_moves_target_and_noise():
    model = compiled(small())
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            gate = self.model.backbone.stages[0].gates()[0]
            target = self.model.budget.current_target
            seen.append((round(float(target), 3), float(gate.noise)))

    model.fit(
        images(32), LABELS, epochs=5, batch_size=16, verbose=0,
        callbacks=[dg.BudgetSchedule(), Watch()],
    )  # fmt: skip
    assert [t for t, _ in seen] == [1.0, 0.92, 0.84, 0.76, 0.68, *[0.6] * 5]
    assert [n for _, n in seen] == [1.0] * 8 + [0.0] * 2
    assert model.macs_target == 0.6


def test_the_target_can_be_set_and_taken_away():
    model = compiled(small(macs_target=None))
    x = images(32)
    assert "share_of_macs" not in model.evaluate(x, LABELS, verbose=0, return_dict=True)
    model.macs_target = 0.5
    assert "share_of_macs" in model.fit(x, LABELS, verbose=0).history
    model.macs_target = None
    assert "share_of_macs" not in model.fit(x, LABELS, verbose=0).history
    model(x, training=True)
    assert model.losses == []


def test_it_can_be_changed_while_fit_runs():
    model = compiled(small())
    x = images(32)

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.macs_target = [0.9, 0.5, None, 0.7][epoch]
            self.model.macs_weight = [1.0, 2.0, 3.0, 4.0][epoch]

    callbacks = [Change(), dg.BudgetSchedule()]
    history = model.fit(x, LABELS, epochs=4, verbose=0, callbacks=callbacks).history
    assert len(history["loss"]) == 4
    assert float(model.budget.weight) == 4 and model.macs_target == 0.7
    with pytest.raises(ValueError, match="always run"):
        model.macs_target = 0.01
    assert (model.macs_target, float(model.budget.current_target)) == (0.7, pytest.approx(0.7))


def test_what_a_schedule_left_goes_with_a_new_target_and_stays_with_a_new_weight():
    model = tiny()
    apply_pressure(model, Pressure(target=0.9, noise=1.0, floor=0.25))
    model.macs_weight = 5.0
    assert [float(v) for v in (model.budget.current_target, model.budget.floor)] == [
        pytest.approx(0.9),
        0.25,
    ]
    model.macs_target = 0.7
    assert [float(v) for v in (model.budget.current_target, model.budget.floor)] == [
        pytest.approx(0.7),
        0.0,
    ]


def test_it_reaches_a_model_with_preprocessing_that_has_been_trained():
    model = small(macs_target=None)
    whole = compiled(model.with_preprocessing())
    x = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), "uint8")
    before = whole.evaluate(x, LABELS, verbose=0)
    whole.fit(x, LABELS, verbose=0)
    model.macs_target, model.macs_weight = 0.6, 1e5
    (loss,) = whole.fit(x, LABELS, verbose=0).history["loss"]
    assert loss > 1000 > before
    model.macs_target = None
    (loss,) = whole.fit(x, LABELS, verbose=0).history["loss"]
    assert loss < 1000


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_is_float32_under_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = compiled(small(macs_weight=100.0))
    count = 600 if policy == "mixed_bfloat16" else 64  # which cannot count beyond 256
    x, labels = images(count), np.arange(count) % 3
    found = model.evaluate(x, labels, batch_size=2, verbose=0, return_dict=True)
    expected = shares(model, x).mean()
    np.testing.assert_allclose(found["share_of_macs"], expected, rtol=1e-5)
    history = model.fit(x[:64], labels[:64], batch_size=32, verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_a_threshold_can_be_set_while_fit_runs():
    model = compiled(small("dynamic", macs_target=None))
    x = images(32)

    class Calibrate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_threshold([0.2, 0.6, 0.3][epoch])

    model.fit(x, LABELS, epochs=3, verbose=0, validation_data=(x, LABELS), callbacks=[Calibrate()])
    assert model.backbone.stages[0].gates()[0].threshold == 0.3


def test_it_is_saved_with_the_model(tmp_path):
    model = tiny(macs_target=0.7, macs_weight=3.0, macs_spread=0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.macs_target, loaded.macs_weight, loaded.macs_spread) == (0.7, 3.0, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs_target": 0.0}, r"`macs_target` must be in \(0, 1\].*Received: macs_target=0.0"),
        ({"macs_target": 1.2}, r"`macs_target` must be in \(0, 1\]"),
        ({"macs_target": float("nan")}, r"`macs_target` must be in \(0, 1\]"),
        ({"macs_target": True}, r"`macs_target` must be in \(0, 1\]"),
        ({"macs_target": 0.05}, r"always run cost 0\.\d+ of.*target of 0.05"),
        ({"macs_spread": 1.0}, r"`macs_spread` must be in \[0, 1\)"),
        ({"macs_spread": 0.1, "num_classes": None}, "`macs_spread` goes by a classifier's doubt"),
        ({"macs_spread": 0.1, "num_classes": 1}, "one class has none.*num_classes=1"),
        ({"macs_weight": -1}, "`macs_weight` must be a number of at least 0"),
        ({"macs_weight": "1", "macs_target": None}, "`macs_weight` must be a number"),
        ({"wiring": "chain"}, "wiring with gates.*wiring='chain'"),
        ({"wiring": "complete"}, "wiring with gates"),
        ({"depths": (1, 1)}, "at least two blocks"),
    ],
)
def test_budgets_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_a_schedule_without_a_budget_is_refused():
    with pytest.raises(ValueError, match="needs a model with a `macs_target`"):
        compiled(small(macs_target=None)).fit(
            images(8), LABELS[:8], verbose=0, callbacks=[dg.BudgetSchedule()]
        )
    with pytest.raises(ValueError, match=r"`fall` must be in \[0, 1\]"):
        dg.BudgetSchedule(fall=2)


def test_two_replicas_have_one_budget(tmp_path):
    """Their means are over the whole batch, though each half takes other paths."""
    file = tmp_path / "found.pkl"
    script = pathlib.Path(__file__).with_name("budget_mirrored.py")
    subprocess.run([sys.executable, script, file], check=True, timeout=300)
    one, two = pickle.loads(file.read_bytes())
    assert 0.1 < one[0] < 1.1 and any(np.any(gradient) for gradient in one[2:])
    for a, b in zip(two, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_budget_of_the_backbone_alone_is_refused_in_a_classifier():
    backbone = tiny(num_classes=None)
    with pytest.raises(ValueError, match=r"give `macs_target` to the classifier.*macs_target=0\.6"):
        dg.Classifier(backbone, 3)
    model = tiny(macs_target=None)
    with pytest.warns(UserWarning, match="Set `macs_target` of the classifier"):
        model.backbone.macs_target = 0.7
    backbone.with_preprocessing()
    backbone.macs_target = 0.7
    backbone(images(4), training=True)
    assert len(backbone.losses) == 1


def test_a_fit_that_is_stopped_leaves_the_target_in_force():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = compiled(small(), run_eagerly=True)
    with pytest.raises(KeyboardInterrupt):
        model.fit(images(32), LABELS, verbose=0, callbacks=[dg.BudgetSchedule(), Stop()])
    assert [float(v) for v in (model.budget.current_target, model.budget.floor)] == [
        pytest.approx(0.6),
        0.0,
    ]


class Targets(keras.callbacks.Callback):
    """The targets in force, batch by batch."""

    def __init__(self, model):
        super().__init__()
        self.of, self.seen = model, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(round(float(self.of.budget.current_target), 3))


def of_unknown_length(x):
    data = tf.data.Dataset.from_tensor_slices((x, LABELS[: len(x)])).batch(8)
    return data.filter(lambda *_: True)


def test_a_schedule_counts_the_batches_of_data_of_unknown_length():
    model = compiled(small())
    targets = Targets(model)
    schedule = dg.BudgetSchedule(fall=1.0)
    model.fit(of_unknown_length(images(32)), epochs=2, verbose=0, callbacks=[schedule, targets])
    assert targets.seen == [1.0] * 4 + [0.8, 0.75, 0.7, 0.65]
    with pytest.raises(ValueError, match=r"how long the training is.*one epoch of data"):
        model.fit(of_unknown_length(images(32)), verbose=0, callbacks=[dg.BudgetSchedule()])


def test_a_schedule_finds_the_budget_behind_preprocessing():
    model = small()
    whole, targets = compiled(model.with_preprocessing(), run_eagerly=True), Targets(model)
    x = np.zeros((32, 16, 16, 3), "uint8")
    schedule = dg.BudgetSchedule(fall=1.0)
    whole.fit(x, LABELS, batch_size=16, verbose=0, callbacks=[schedule, targets])
    assert targets.seen == [1.0, 0.8]


def test_images_may_come_in_a_dict():
    model = compiled(small(macs_weight=1e4), run_eagerly=True)
    x = images(8)
    found = model.fit({"images": x}, LABELS[:8], verbose=0).history
    assert found["loss"][0] > 100
