import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize

import dgnet_keras as dg


def fit(model, monitor, epochs=2, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, **{"run_eagerly": True, **kwargs})
    x = images(8)
    return model.fit(x, np.arange(8) % 3, epochs=epochs, callbacks=[monitor], verbose=0)


def frozen_routers(model):
    for stage in model.backbone.stages:
        for router in getattr(stage, "_routers", {}).values():
            router.trainable = False
    return model


def test_connectivity_is_in_the_history_and_in_tensorboard(tmp_path):
    model = randomize(create("resnet_basic"))
    monitor = dg.ConnectivityMonitor(images(16), log_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.RouterHealthWarning)
        history = fit(model, monitor, run_eagerly=False).history
    expected = dg.connectivity.metrics(dg.adjacency(model, images(16)))
    assert {name: values[-1] for name, values in history.items() if name != "loss"} == expected
    (events,) = tmp_path.glob("events.out.tfevents.*")
    tags = [
        v.tag for e in tf.compat.v1.train.summary_iterator(str(events)) for v in e.summary.value
    ]
    assert tags.count("adjacency/stage2") == tags.count("distinct_paths") == 2


def test_collapsed_routers_are_a_warning_said_once():
    model = frozen_routers(create("resnet_basic"))
    monitor = dg.ConnectivityMonitor(images(16))
    with pytest.warns(dg.RouterHealthWarning, match="collapsed.*router_lr_multiplier") as caught:
        fit(model, monitor, epochs=3)
    assert [warning.filename for warning in caught] == [__file__]
    assert [finding.kind for finding in monitor.findings] == ["collapsed"]


def test_it_is_silent_while_patient_and_for_wiring_that_is_meant_to_be_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error", dg.RouterHealthWarning)
        patient = dg.ConnectivityMonitor(images(16), patience=3)
        fit(frozen_routers(create("resnet_basic")), patient)
        fit(create("resnet_cifar_complete"), dg.ConnectivityMonitor(images(16)))


def test_a_diverged_network_is_said_to_have_diverged():
    model = create("resnet_basic")
    model.get_layer("stem").weights[0].assign(np.full((7, 7, 3, 64), np.nan))
    with pytest.warns(dg.RouterHealthWarning, match="diverged"):
        fit(model, dg.ConnectivityMonitor(images(4)), epochs=1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"at least 2\. Received: shape \(1, 16"):
        dg.ConnectivityMonitor(images(1))
    with pytest.raises(ValueError, match="Dataset"):
        dg.ConnectivityMonitor(tf.data.Dataset.from_tensors(images(4)))
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*\(8, 8, 3\)"):
        model = create("resnet_basic", input_shape=(16, 16, 3))
        fit(model, dg.ConnectivityMonitor(images(4, size=8)))
    single = create("resnet_basic", depths=(1, 1))
    with pytest.raises(ValueError, match="at least one edge"):
        fit(single, dg.ConnectivityMonitor(images(2)))
