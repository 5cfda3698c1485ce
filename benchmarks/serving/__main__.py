"""An export in TensorFlow's C API: latency and throughput against its static twin and Keras.

python -m benchmarks.serving [--models resnet50 mobilenetv2_100] [--repeats 15] [--output FILE]

Raw 256 x 256 images through `serving_default` (resized, cropped to 224 x 224 and normalised in the
graph); `predict` is Keras's `model.predict` of the preprocessed images, preprocessing included.
Random weights, every edge open. Times are medians of requests that alternate between the three in
one process. Warm-up: the requests after a load and the replay of the export's warm-up requests, in
a process of its own.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.serving import c_api

WIRINGS = ("chain", "dynamic")
SIZE = 256
LAST_REQUEST = 10


def raw_images(batch):
    """uint8 (batch, 256, 256, 3)."""
    return np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), "uint8")


def warmup_requests(directory):
    """The export's warm-up requests: list of (signature, inputs)."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = str(directory / "assets.extra" / "tf_serving_warmup_requests")
    requests = []
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def first_requests(directory, replay):
    """Seconds of the first ten requests of one image after a load, and of load and replay."""
    tensors, requests = c_api.signature_tensors(directory), warmup_requests(directory)
    start = time.perf_counter()
    model = c_api.SavedModel(directory, tensors)
    for request in requests if replay else ():
        model(*request)
    loaded = time.perf_counter() - start
    return [
        _seconds(lambda: model("serving_default", _image())) for _ in range(LAST_REQUEST)
    ], loaded


def _image():
    return {"images": raw_images(1)}


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_times(model, directories, batch, repeats):
    """Seconds of a request of `batch` images: a list for each wiring and for `predict`."""
    images = raw_images(batch)
    runs = {}
    for wiring, directory in directories.items():
        served = c_api.SavedModel(directory, c_api.signature_tensors(directory))
        runs[wiring] = lambda served=served: served("serving_default", {"images": images})
    runs["predict"] = lambda: model.predict(
        model.preprocessing(images), batch_size=batch, verbose=0
    )
    times = {name: [] for name in runs}
    for i in range(2 + repeats):
        for name, run in runs.items():
            seconds = _seconds(run)
            if i >= 2:
                times[name].append(seconds)
    return times


def measure(name, repeats):
    """A row of medians, quartiles and ratios for a variant."""
    import dgnet_keras as dg

    with tempfile.TemporaryDirectory() as folder:
        directories = {}
        for wiring in WIRINGS:
            model = dg.create(name, wiring=wiring)
            directories[wiring] = dg.export_saved_model(model, pathlib.Path(folder) / wiring)
        row = {"model": name}
        for batch in (1, 32):
            times = measure_times(model, directories, batch, repeats)
            medians = {key: statistics.median(values) for key, values in times.items()}
            row[f"batch_{batch}"] = {
                "seconds": {k: round(v, 4) for k, v in medians.items()},
                "quartiles": {
                    k: [round(q, 4) for q in statistics.quantiles(v, n=4)[::2]]
                    for k, v in times.items()
                },
                "images_per_second": {k: round(batch / v, 2) for k, v in medians.items()},
                "dynamic_to_chain": round(medians["dynamic"] / medians["chain"], 3),
                "dynamic_to_predict": round(medians["dynamic"] / medians["predict"], 3),
            }
        for label in ("with_warmup", "without_warmup"):
            row[label] = _warmup_elsewhere(directories["dynamic"], label)
    return row


def _warmup_elsewhere(directory, label):
    line = [sys.executable, "-m", "benchmarks.serving", "--first-requests", str(directory), label]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _first_requests_row(directory, label):
    seconds, loaded = first_requests(pathlib.Path(directory), label == "with_warmup")
    first, last = seconds[0], seconds[-1]
    return {
        "load_seconds": round(loaded, 3),
        "first_request": round(first, 4),
        "tenth_request": round(last, 4),
        "first_to_tenth": round(first / last, 2),
    }


def main(argv=None):
    """Prints a JSON line a variant, and writes them where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenetv2_100"])
    parser.add_argument("--repeats", type=int, default=15, help="timed requests of each")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--first-requests", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.first_requests:
        print(json.dumps(_first_requests_row(*args.first_requests)))
        return
    rows = []
    for name in args.models:
        rows.append(measure(name, args.repeats))
        print(json.dumps(rows[-1]), flush=True)
        if args.output:
            args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
