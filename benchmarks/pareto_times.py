"""Inference time of finished runs of `benchmarks.pareto`, in turns with the static ResNet-56."""

from benchmarks import measure
from benchmarks.accuracy_runs import load_images
from benchmarks.accuracy_studies import WEIGHTS
from benchmarks.pareto_table import BASE

BATCHES = {"1": 48, "128": 2}  # batch to number of batches of test images
REPEATS = 21


def measure_times(job, images, repeats=REPEATS):
    """Times a run's network over the static ResNet-56, on images of the split that judged it.

    Args:
        job: a finished `accuracy_studies.Job`.
        images: file of `accuracy_runs.save_images`.
        repeats: timed turns, each of all batches.

    Returns:
        Dict of `time`: dict of batch, as a string, to the median ratio of a turn; `quartiles`,
        likewise; and `environment`.
    """
    import dataclasses

    import numpy as np
    import tensorflow as tf

    from train.classification.model import create_model

    data = load_images(job.recipe, images)
    classes = len(data.class_names)
    model = create_model(job.recipe, classes)
    model.load_weights(job.workdir / WEIGHTS)
    static = dataclasses.replace(job.recipe, model=BASE, wiring="chain", macs_target=None)
    networks = {"own": model, "static": create_model(static, classes)}
    pixels = data.test.sample(max(int(b) * n for b, n in BATCHES.items())).images
    pixels = np.asarray(model.preprocessing(pixels))
    medians, quartiles = {}, {}
    for batch, count in BATCHES.items():
        size = int(batch)
        batches = [tf.constant(pixels[i * size : (i + 1) * size]) for i in range(count)]
        steps = {name: _step(network, batches) for name, network in networks.items()}
        times = measure.in_turns(steps, dict.fromkeys(steps, repeats))
        found = measure.paired_ratios(times, [("own", "static")])["own/static"]
        medians[batch], quartiles[batch] = found["median"], found["quartiles"]
    return {"time": medians, "quartiles": quartiles, "environment": measure.environment()}


def _step(model, batches):
    import tensorflow as tf

    signature = tf.TensorSpec((None, *batches[0].shape[1:]), tf.float32)
    answer = tf.function(
        lambda x: model(x, training=False), input_signature=[signature], autograph=False
    )

    def step():
        for batch in batches:
            answer(batch).numpy()

    return step
