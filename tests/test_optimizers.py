import keras
import numpy as np
import pytest
from catalog import create, images

from dgnet_keras import optimizers
from dgnet_keras.convert import is_wiring_weight

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def moved(optimizer):
    """How far each weight of a model moves in one step of `fit`."""
    model = create("resnet_basic", input_shape=(16, 16, 3))
    before = {v.path: v.numpy() for v in model.trainable_variables}
    model.compile(optimizer, LOSS, run_eagerly=True)
    model.fit(images(), np.arange(4) % 3, verbose=0)
    return {v.path: v.numpy() - before[v.path] for v in model.trainable_variables}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_routers_take_smaller_steps_and_the_others_keras_own(name):
    plain = moved(getattr(keras.optimizers, name)(0.1))
    slow = moved(getattr(optimizers, name)(0.1, router_lr_multiplier=0.1))
    routers = [path for path in plain if is_wiring_weight(path) and "bias" in path]
    assert max(np.abs(plain[path]).max() for path in routers) > 1e-5
    for path, value in plain.items():
        if not is_wiring_weight(path):
            np.testing.assert_allclose(slow[path], value, rtol=1e-4, atol=1e-7)
        elif name != "AdamW" or "bias" in path:
            np.testing.assert_allclose(slow[path], 0.1 * value, rtol=1e-4, atol=1e-7)


def test_it_is_saved_with_the_model(tmp_path):
    model = create("resnet_basic", input_shape=(16, 16, 3))
    model.compile(optimizers.SGD(0.01, momentum=0.9, router_lr_multiplier=0.5), LOSS)
    model.fit(images(), np.arange(4) % 3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.router_lr_multiplier == 0.5
    for each in (model, loaded):
        each.fit(images(), np.arange(4) % 3, verbose=0)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_negative_multiplier_is_named():
    with pytest.raises(ValueError, match="router_lr_multiplier=-1"):
        optimizers.Adam(router_lr_multiplier=-1)
