"""Loss, gradients and measured share of a budget on 1 and 2 devices.

python tests/budget_mirrored.py FILE
"""

import pathlib
import pickle
import sys

import catalog
import mirrored
import tensorflow as tf

from dgnet_keras.budget import Pressure, apply_pressure


def create(strategy):
    """A model with a budget, of which images take different shares."""
    with strategy.scope():
        model = catalog.create("resnet_cifar_split", gate="straight_through", macs_target=0.9)
        catalog.randomize(model)
        apply_pressure(model, Pressure(0.5, 0.0, 0.9))
    return model


def measured_share(devices):
    """What `share_of_macs` says of seven images on the first device and one on the second."""
    strategy = mirrored.strategy_of(devices)
    model = create(strategy)
    inputs = mirrored.split(strategy, mirrored.two_kinds(), first=7 if devices == 2 else None)
    with model.budget.measuring():
        strategy.run(tf.function(lambda images: model(images, training=False)), [inputs])
    return model.budget.share.result().numpy()


def gradients_of(devices):
    """Share of MACs, and gradients of the budget's loss: list of arrays."""
    strategy = mirrored.strategy_of(devices)
    model = create(strategy)
    routers = [r for stage in model.backbone.stages for r in stage.routers().values()]
    inputs = mirrored.split(strategy, mirrored.two_kinds())

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            # Statistics of training would be those of each device's images.
            _, loss, share = model.call_with_budget(images, training=False)
            loss /= devices
        gradients = tape.gradient(loss, [r.bias.value for r in routers])
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", [share / devices, loss, *gradients])

    found = strategy.run(step, [inputs])
    return [strategy.experimental_local_results(x)[0].numpy() for x in found]


if __name__ == "__main__":
    mirrored.configure()
    pathlib.Path(sys.argv[1]).write_bytes(
        pickle.dumps([[*gradients_of(d), measured_share(d)] for d in (1, 2)])
    )
