"""A training step with synchronised normalisation on 1 and 2 devices, skipping and not.

python tests/skipping_mirrored.py FILE
"""

import pathlib
import pickle
import sys

import catalog
import mirrored
import tensorflow as tf


def one_step(skip, devices):
    """What a step on so many devices gives: dict of name to value."""
    strategy = mirrored.strategy_of(devices)
    with strategy.scope():
        model = catalog.create("resnet_basic", skip=skip, skip_in_training=skip)
        catalog.randomize(model)
        for layer in model._flatten_layers():
            if "norm" in layer.name:
                layer.synchronized = True
    inputs = mirrored.split(strategy, mirrored.two_kinds())

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(images, training=True) ** 2) / 8
        gradients = tape.gradient(total, [v.value for v in model.trainable_variables])
        context = tf.distribute.get_replica_context()
        gradients = [tf.zeros(()) if g is None else g for g in gradients]
        return context.all_reduce("SUM", [total, *gradients])

    found = [
        strategy.experimental_local_results(x)[0].numpy() for x in strategy.run(step, [inputs])
    ]
    names = ["loss", *(v.path for v in model.trainable_variables)]
    values = dict(zip(names, found, strict=True))
    values |= {v.path: v.numpy() for v in model.non_trainable_variables if "moving" in v.path}
    return values


if __name__ == "__main__":
    mirrored.configure()
    kinds = (("never", 1), ("never", 2), ("auto", 2))
    results = {kind: one_step(*kind) for kind in kinds}
    pathlib.Path(sys.argv[1]).write_bytes(pickle.dumps(results))
