"""Files for other runtimes: their size, how fast they answer one image, and how exactly.

python -m benchmarks.exports [--networks resnet56_cifar ...] [--repeats N] [--output FILE]
    [--table] [--document FILE]

A row is a network. Its static twin, the same with paths at half of the multiply-adds, and those
paths frozen are each written as a SavedModel, as ONNX, as LiteRT, and as LiteRT with 8-bit weights.
All files answer the same image in turns in one process, with as many threads as there are cores.
The base of the ratios is the static twin's SavedModel. Weights are random, and routers set as by
`benchmarks.paths`. A row that is there already is not measured again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure
from benchmarks.accuracy_table import fill_in
from train.turns import in_turns

NETWORKS = {"resnet56_cifar": 32, "mobilenetv2_100": 224, "resnet50": 224}
SHARE = 0.5
WIRINGS = {"chain": "static", "path": "paths", "frozen": "frozen"}
FORMATS = {
    "saved_model": "SavedModel",
    "onnx": "ONNX",
    "litert": "LiteRT",
    "litert_int8": "LiteRT, 8 bits",
}
BASE = "chain/saved_model"


def write(model, kind, folder):
    """Writes a model in a format of `FORMATS` and returns where."""
    import tensorflow as tf

    if kind == "saved_model":
        path, options = folder, {"format": "tf_saved_model"}
    elif kind == "onnx":
        path, options = folder.with_suffix(".onnx"), {"format": "onnx"}
    else:
        path, options = folder.with_suffix(".tflite"), {"format": "litert"}
        if kind == "litert_int8":
            options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    model.export(path, verbose=False, **options)
    return path


def reader(path, kind):
    """A function of a batch of one image that gives the logits as the file's runtime does."""
    threads = os.cpu_count()
    if kind == "saved_model":
        import tensorflow as tf

        loaded = tf.saved_model.load(str(path))
        return lambda x: loaded.serve(x).numpy()
    if kind == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    given, answer = (
        d()[0] for d in (interpreter.get_input_details, interpreter.get_output_details)
    )
    interpreter.resize_tensor_input(given["index"], (1, *given["shape_signature"][1:]))
    interpreter.allocate_tensors()

    def run(x):
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return run


def size(path):
    """Bytes of a file, or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def build(settings):
    """The networks by wiring, the images to time, a batch each, and the share of the paths."""
    import numpy as np

    import dgnet_keras as dg
    from benchmarks import paths

    asked = {**settings, "mode": "inference", "batch": 1, "share": SHARE}
    models, batches, share = paths.build(asked)
    images = [batch.numpy() for batch in batches]
    models["frozen"] = dg.freeze(models["path"], np.concatenate(images), verbose=False)
    return models, images, share


def measure_here(settings, repeats):
    """Measures in this process; dict of a row's fields."""
    import numpy as np

    from dgnet_keras.complexity import model_costs

    models, images, share = build(settings)
    static = model_costs(models["chain"]).total
    steps, sizes, differences = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for wiring, model in models.items():
            expected = np.concatenate([model(x, training=False) for x in images])
            for kind in FORMATS:
                name = f"{wiring}/{kind}"
                path = write(model, kind, pathlib.Path(folder) / f"{wiring}_{kind}")
                run, sizes[name] = reader(path, kind), size(path)
                found = np.concatenate([run(x) for x in images])
                differences[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
                steps[name] = lambda run=run: [run(x) for x in images]
        times = in_turns(steps, repeats)
    return {
        "shares": {
            "chain": 1.0,
            "path": share,
            "frozen": model_costs(models["frozen"]).total / static,
        },
        "bytes": sizes,
        "differences": {name: measure.rounded(value) for name, value in differences.items()},
        **measure.fields_of(times, [(name, BASE) for name in steps]),
        "environment": measure.environment(),
    }


def table(rows):
    """The lines of a Markdown table, a line for each network and wiring."""
    titles = [f"{title}: MB" for title in FORMATS.values()] + [*FORMATS.values()]
    lines = ["| network | share | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    for row in rows:
        for wiring, title in WIRINGS.items():
            sizes = [f"{row['bytes'][f'{wiring}/{kind}'] / 1e6:.1f}" for kind in FORMATS]
            times = [
                f"{row['ratios'][f'{wiring}/{kind}/{BASE}']['median']:.2f}" for kind in FORMATS
            ]
            cells = [f"`{row['settings']['model']}`, {title}", f"{row['shares'][wiring]:.2f}"]
            lines.append("| " + " | ".join([*cells, *sizes, *times]) + " |")
    return lines


def main(argv=None):
    """Prints the new rows as JSON lines and the table, and writes them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exports",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (15)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="of rows, .json")
    parser.add_argument("--table", action="store_true", help="measure nothing, show the rows")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        print(json.dumps(measure_here(**args.job)))
        return
    output = args.output or measure.ROOT / "benchmarks" / "results" / "exports.json"
    rows = measure.RowFile(output)
    repeats = {f"{w}/{k}": args.repeats for w in WIRINGS for k in FORMATS}
    networks = [] if args.table else args.networks
    jobs = [measure.Job({"model": n, "size": NETWORKS[n]}, repeats) for n in networks]

    def measure_row(job):
        asked = dataclasses.asdict(job)
        return {**asked, **measure.elsewhere(["benchmarks.exports"], asked)}

    measure.fill(jobs, rows, measure_row)
    lines = table(rows.rows)
    print("\n".join(lines))
    if args.document:
        args.document.write_text(fill_in(args.document.read_text(), {"exports": lines}))


if __name__ == "__main__":
    main()
