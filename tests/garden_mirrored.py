"""Features, gradients and statistics of a backbone in Model Garden's hands on 1 and 2 devices.

python tests/garden_mirrored.py FOLDER
"""

import pathlib
import sys

import catalog
import mirrored
import numpy as np
import tensorflow as tf
import tf_keras

from dgnet_keras import detection


def one_step(devices):
    """What a training step on so many devices gives: dict of name to value."""
    strategy = mirrored.strategy_of(devices)
    with strategy.scope():
        model = catalog.randomize(catalog.create("resnet_basic", num_classes=None))
        for layer in model._flatten_layers():
            if "norm" in layer.name:
                layer.synchronized = True
        layer = detection.GardenBackbone(
            model, input_shape=(16, 16, 3), kernel_regularizer=tf_keras.regularizers.L2(1e-3)
        )
        optimizer = tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9)
    inputs = mirrored.split(strategy, catalog.images(batch=4))

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            features = layer(images, training=True)
            total = tf.add_n([tf.reduce_sum(x**2) for x in features.values()]) / 4
            total += tf.add_n(layer.losses) / devices
        gradients = tape.gradient(total, layer.trainable_weights)
        optimizer.apply_gradients(zip(gradients, layer.trainable_weights, strict=True))
        context = tf.distribute.get_replica_context()
        return features, context.all_reduce("sum", gradients)

    features, gradients = strategy.run(step, args=(inputs,))
    local = strategy.experimental_local_results
    paths = [v.path for v in layer._pyramid.trainable_variables]
    return {
        **{f"feature/{k}": tf.concat(local(x), 0) for k, x in features.items()},
        **{f"gradient/{p}": local(g)[0] for p, g in zip(paths, gradients, strict=True)},
        **{f"weight/{p}": v for p, v in layer.variables_by_path.items()},
    }


mirrored.configure()
for count in (1, 2):
    values = {name: np.asarray(value) for name, value in one_step(count).items()}
    np.savez(pathlib.Path(sys.argv[1]) / f"{count}.npz", **values)
