"""A process of a distributed run, for test_distribute.py: trains, and saves what came of it.

python one_run.py STRATEGY DEVICES WORKDIR KEY=VALUE ...
"""

import json
import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

TINY = (
    "model_overrides.depths=[2,3]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "batch_size=68",
    "epochs=1",
    "threshold=0.3",
)


def main(strategy_name, devices, workdir, *overrides):
    if int(devices) > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices)
        )
    from train.classification import datasets
    from train.classification.recipes import get_recipe
    from train.classification.run import ClassificationRun, configure
    from train.loop import orbit_log
    from train.strategies import make_strategy

    recipe = get_recipe("digits_resnet20", [*TINY, *overrides])
    strategy = make_strategy(strategy_name)
    configure(recipe)
    run = ClassificationRun(recipe, datasets.load_data(recipe), strategy)
    run.restore(pathlib.Path(workdir))
    run.own.mkdir(parents=True, exist_ok=True)
    with orbit_log(run.own / "train.log"):
        rows = list(run.train_epochs())
    if strategy_name == "one_device":
        rows[-1]["near_threshold"] = near_threshold(run)
    rows[-1]["apart"] = apart(run)
    np.savez(run.own / "weights.npz", **{v.path: v.numpy() for v in run.model.weights})
    (run.own / "rows.json").write_text(json.dumps(rows))


def apart(run):
    """The largest difference of a variable between two replicas of this process."""
    copies = [run.strategy.experimental_local_results(v.value) for v in run.model.weights]
    return max(float(np.abs(c.numpy() - group[0].numpy()).max()) for group in copies for c in group)


def near_threshold(run):
    """Number of test images of which an open edge is within 1e-4 of the threshold."""
    import dgnet_keras as dg

    images = run.model.preprocessing(run.data.test.images)
    near = np.zeros(len(images), bool)
    for adjacency in dg.adjacency(run.model, images).values():
        margin = adjacency - run.recipe.threshold
        near |= ((adjacency > 0) & (margin < 1e-4)).any(axis=(1, 2))
    return int(near.sum())


main(*sys.argv[1:])
