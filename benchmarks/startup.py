"""How long one waits: for a message, an import, the first training step, an export's first answer.

python -m benchmarks.startup [--kinds command ...] [--repeats N] [--output FILE] [--table]
    [--document FILE]

Each time is of a process of its own. The contestants of a row take turns; medians and quartiles in
seconds, and of the ratios turn by turn.

- `command`: until `python -m train.imagenet` has answered `--help`, and has refused a wrong key.
- `import`: `import dgnet_keras`, over `import tensorflow, keras`.
- `first_step`: from the command to the end of the first training step, with recipe and data of the
  digits: dynamic, with paths, and over the static twin.
- `first_answer`: from the load of an export of `resnet50` to its first answer, one raw image of 224
  pixels, without the imports; dynamic, with paths, and over the static twin. The load alone, too.

A row that is there already is not measured again, unless with other repeats.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure
from benchmarks.accuracy_table import fill_in

TRAIN = [sys.executable, "-m", "train.imagenet"]
DIGITS = ["--config", "digits_resnet20"]
WIRINGS = ("chain", "dynamic", "path")
MODEL, SIZE = "resnet50", 224
FIRST_STEP = "step 1/"  # of the line that a run prints after its first step

ANSWER = """
import sys, time
import numpy as np, tensorflow as tf
images = np.zeros((1, {size}, {size}, 3), "uint8")
start = time.perf_counter()
loaded = tf.saved_model.load(sys.argv[1])
load = time.perf_counter() - start
serve = loaded.signatures["serving_default"]
(name,) = serve.structured_input_signature[1]
answer = serve(**{{name: tf.constant(images)}})
[value.numpy() for value in answer.values()]
print(load, time.perf_counter() - start)
"""


def seconds_of(command, expected=0):
    """Seconds until a command has ended.

    Raises:
        RuntimeError: if it ends with another exit code than expected.
    """
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=measure.ROOT)
    seconds = time.perf_counter() - start
    if done.returncode != expected:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-500:]}")
    return seconds


def seconds_to_line(command, text):
    """Seconds until a command prints a line with a text; it is stopped then.

    Raises:
        RuntimeError: if it ends before.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=measure.ROOT
    ) as process:
        try:
            for line in process.stdout:
                if text in line:
                    return time.perf_counter() - start
        finally:
            process.kill()
    raise RuntimeError(f"{command} ended without a line of {text!r}")


def command_times():
    """Functions of nothing to seconds."""
    wrong = [*TRAIN, *DIGITS, "--workdir", "/nowhere", "--set", "wirign=path"]
    return {
        "help": lambda: {"seconds": seconds_of([*TRAIN, "--help"])},
        "wrong_key": lambda: {"seconds": seconds_of(wrong, expected=1)},
    }


def import_times():
    """As `command_times`, of imports."""
    python = [sys.executable, "-c"]
    return {
        "tensorflow_keras": lambda: {"seconds": seconds_of([*python, "import tensorflow, keras"])},
        "dgnet_keras": lambda: {"seconds": seconds_of([*python, "import dgnet_keras"])},
    }


def first_step_times():
    """As `command_times`, of a training command to its first step."""

    def first_step(wiring):
        with tempfile.TemporaryDirectory() as workdir:
            keys = [f"wiring={wiring}", "steps_per_loop=1"]
            words = [word for key in keys for word in ("--set", key)]
            command = [*TRAIN, *DIGITS, "--workdir", workdir, *words]
            return {"seconds": seconds_to_line(command, FIRST_STEP)}

    return {wiring: lambda w=wiring: first_step(w) for wiring in WIRINGS}


def first_answer_times(folder, model=MODEL, size=SIZE):
    """As `command_times`, of exports that are written into a folder first."""
    import keras

    import dgnet_keras as dg

    def first_answer(path):
        code = ANSWER.format(size=size)
        command = [sys.executable, "-c", code, path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        load, answered = map(float, done.stdout.split())
        return {"seconds": answered, "load": load}

    paths = {}
    for wiring in WIRINGS:
        keras.utils.set_random_seed(0)
        network = dg.create(model, input_shape=(size, size, 3), wiring=wiring)
        paths[wiring] = dg.export_saved_model(network, pathlib.Path(folder) / wiring)
    return {wiring: lambda p=path: first_answer(p) for wiring, path in paths.items()}


def measure_row(job):
    """The row of a job: for each contestant its seconds, and ratios to the first."""
    kind = job.settings["startup"]
    with tempfile.TemporaryDirectory() as folder:
        contestants = {
            "command": command_times,
            "import": import_times,
            "first_step": first_step_times,
            "first_answer": lambda: first_answer_times(folder),
        }[kind]()
        found = {name: [] for name in contestants}
        for turn in range(1 + job.repeats["all"]):
            for name, run in contestants.items():
                value = run()
                if turn:  # what is read from the disk is in memory then
                    found[name].append(value)
    row = {**dataclasses.asdict(job), "seconds": {}}
    base, *others = contestants
    for key in found[base][0]:
        times = {name: [value[key] for value in values] for name, values in found.items()}
        row[key] = {name: measure.spread(values) for name, values in times.items()}
        if kind != "command":
            pairs = [(name, base) for name in others]
            row[f"{key}_ratios"] = measure.paired_ratios(times, pairs)
    return {**row, "environment": measure.environment()}


def table(rows):
    """The lines of two Markdown tables: seconds that one waits, and ratios to the static twin."""
    found = {row["settings"]["startup"]: row for row in rows}

    def seconds(kind, name, key="seconds"):
        return f"{found[kind][key][name]['median']:.2f}" if kind in found else "-"

    lines = ["| | seconds |", "|---|---|"]
    for title, kind, name in (
        ("`--help`", "command", "help"),
        ("message of a wrong `--set` key", "command", "wrong_key"),
        ("`import tensorflow, keras`", "import", "tensorflow_keras"),
        ("`import dgnet_keras`", "import", "dgnet_keras"),
    ):
        lines.append(f"| {title} | {seconds(kind, name)} |")
    titles = "seconds | static twin | dynamic | over it | paths | over it"
    lines += ["", f"| {titles} |", "|---" * (titles.count("|") + 1) + "|"]
    for title, kind, key in (
        ("first training step, from the command on", "first_step", "seconds"),
        ("an export of `resnet50`: load", "first_answer", "load"),
        ("load and first answer", "first_answer", "seconds"),
    ):
        cells = [title, seconds(kind, "chain", key)]
        for name in WIRINGS[1:]:
            ratio = found[kind][f"{key}_ratios"][f"{name}/chain"]["median"] if kind in found else 0
            cells += [seconds(kind, name, key), f"{ratio:.2f}" if ratio else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


KINDS = ("command", "import", "first_answer", "first_step")


def main(argv=None):
    """Prints the new rows as JSON lines, and writes them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=5, help="timed turns (5)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="of rows, .json")
    parser.add_argument("--table", action="store_true", help="measure nothing, show the rows")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1. Received: {args.repeats}")
    output = args.output or measure.ROOT / "benchmarks" / "results" / "startup.json"
    kinds, rows = [] if args.table else args.kinds, measure.RowFile(output)
    jobs = [measure.Job({"startup": kind}, {"all": args.repeats}) for kind in kinds]
    measure.fill(jobs, rows, measure_row)
    lines = table(rows.rows)
    print("\n".join(lines))
    if args.document:
        args.document.write_text(fill_in(args.document.read_text(), {"startup": lines}))


if __name__ == "__main__":
    main()
