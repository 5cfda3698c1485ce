"""Reading the connectivity of a model again and again."""

import gc
import weakref

import keras
import numpy as np
from catalog import create, randomize

import dgnet_keras as dg
from dgnet_keras.adjacencies import connectivity_model


def images():
    return np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")


def test_a_model_is_traced_once_and_sees_its_new_weights():
    model = create("resnet_cifar_split", input_shape=(32, 32, 3))
    first = connectivity_model(model)
    assert dg.adjacency(model, images())["stage2"].min() == 0
    randomize(model)
    found, wanted = dg.adjacency(model, images()), first(images())
    assert connectivity_model(model) is first
    for key, matrix in found.items():
        np.testing.assert_allclose(matrix, wanted[key], atol=1e-6)


def test_a_model_whose_layers_changed_is_traced_anew():
    model = create("regnety", input_shape=(32, 32, 3))
    randomize(model)
    before = dg.adjacency(model, images())
    model.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
    after, traced_anew = (
        dg.adjacency(model, images()),
        keras.Model(model.input, model.adjacency_outputs),
    )
    for key, matrix in traced_anew.predict(images(), verbose=0).items():
        np.testing.assert_allclose(after[key], matrix, atol=1e-6)
    assert any((after[key] != before[key]).any() for key in before)


def test_a_model_is_not_kept_alive():
    model = create("resnet_cifar_split", input_shape=(32, 32, 3))
    dg.adjacency(model, images())
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None
