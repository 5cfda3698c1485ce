import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize

import dgnet_keras as dg


def fit(model, monitor, epochs=2):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
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
        history = fit(model, monitor).history
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
    assert len(caught) == 1
    assert [finding.kind for finding in monitor.findings] == ["collapsed"]


def test_it_is_silent_while_patient_and_for_wiring_that_is_meant_to_be_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error", dg.RouterHealthWarning)
        patient = dg.ConnectivityMonitor(images(16), patience=3)
        fit(frozen_routers(create("resnet_basic")), patient)
        fit(create("resnet_cifar_complete"), dg.ConnectivityMonitor(images(16)))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"at least 2\. Received: 1"):
        dg.ConnectivityMonitor(images(1))
    single = create("resnet_basic", depths=(1, 1))
    with pytest.raises(ValueError, match="at least one edge"):
        fit(single, dg.ConnectivityMonitor(images(2)))
