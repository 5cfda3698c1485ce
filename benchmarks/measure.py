"""What the benchmarks measure with: turns, paired ratios, resident memory, a file of rows.

Imports TensorFlow only where it is asked for, so that a command that starts processes stays small.
"""

import ctypes
import dataclasses
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Job:
    """A row to measure.

    Attributes:
        settings: dict of what the row is of, which no two rows of a file share.
        repeats: dict of contestant to timed steps, or to processes.
    """

    settings: dict
    repeats: dict


def elsewhere(command, job):
    """What a command of the benchmarks prints as its last line, JSON, in a process of its own.

    Args:
        command: list of the module's name and its arguments.
        job: what the command gets as `--job`, as JSON.

    Raises:
        RuntimeError: if that fails; it has said why on stderr.
    """
    job = json.dumps(job)
    command = [sys.executable, "-m", *command, "--job", job]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"Measuring failed with exit code {done.returncode}: {job}")
    return json.loads(done.stdout.splitlines()[-1])


def fill(jobs, rows, measure_row, again=False):
    """Measures the jobs that `rows`, a `RowFile`, lacks, or all; prints and adds them.

    Args:
        jobs: iterable of `Job`; the next is asked for when the row before is there.
        rows: the file.
        measure_row: function of a job to its row.
        again: whether to measure the jobs whose rows are there, too.
    """
    for job in jobs:
        row = rows.find(job.settings, job.repeats)
        if row and not again:
            commit = row["environment"]["commit"]
            print(f"Measured before, at commit {commit}: {job.settings}", file=sys.stderr)
            continue
        row = measure_row(job)
        rows.add(row)
        print(json.dumps(row), flush=True)


def rounded(value):
    """The value to four significant digits."""
    return float(f"{value:.4g}")


def spread(values):
    """Dict of `median` and `quartiles` (first, third) of numbers, to four significant digits."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values
    return {
        "median": rounded(statistics.median(values)),
        "quartiles": [rounded(quartiles[0]), rounded(quartiles[-1])],
    }


def paired_ratios(times, pairs):
    """Spread of the ratios of two functions' times, turn by turn.

    Args:
        times: dict of name to list of seconds, of `in_turns`.
        pairs: (name, name of the base) tuples.

    Returns:
        Dict of `"name/base"` to `spread`, over the turns that both took part in.
    """
    return {
        f"{a}/{b}": spread([x / y for x, y in zip(times[a], times[b], strict=False)])
        for a, b in pairs
    }


def fields_of(times, pairs):
    """Fields of a row: `milliseconds` by contestant, and `ratios` of the pairs turn by turn."""
    return {
        "milliseconds": {
            name: spread([1000 * t for t in values]) for name, values in times.items()
        },
        "ratios": paired_ratios(times, pairs),
    }


def resident(key):
    """MiB of this process's memory: `"VmRSS"` is resident now, `"VmHWM"` was at most."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def peak_growth(step, steps=3):
    """MiB by which the resident set peaks during some steps above what it is now. Linux only.

    Memory that was freed before is given back first, or the steps would use it unseen.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = resident("VmRSS")
    for _ in range(steps):
        step()
    return resident("VmHWM") - before


def environment():
    """Dict of what a time depends on: commit, versions, oneDNN, accelerators, CPU, threads."""
    import keras
    import tensorflow as tf

    cpus = os.cpu_count()
    return {
        "commit": commit(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "onednn": onednn_enabled(),
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "cpu": _cpu_name(),
        "vector": vector_extension(),
        "accelerators": _accelerators(),
        "cpus": cpus,
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cpus,
        # 0 means TensorFlow's default, a thread for each usable CPU.
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
    }


def _accelerators():
    """The names of the GPUs that TensorFlow sees, or of its TPUs."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU") + tf.config.list_physical_devices("TPU")
    details = map(tf.config.experimental.get_device_details, devices)
    return [d.get("device_name", x.name) for d, x in zip(details, devices, strict=True)]


def commit():
    """The commit that is checked out, `+` where code differs from it; None outside of Git."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return None
    # Rows that were measured before, and not committed yet, are no difference.
    changed = [*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"]
    return found.stdout.strip() + "+" * bool(subprocess.run(changed).returncode)


def onednn_enabled():
    """TensorFlow's own decision, from the variable and the CPU; None if it does not tell."""
    try:
        from tensorflow.python.util import _pywrap_util_port

        return bool(_pywrap_util_port.IsMklEnabled())
    except (ImportError, AttributeError):
        return None


def onednn_elsewhere():
    """`onednn_enabled`, asked in a process of its own, so that this one loads no TensorFlow."""
    question = "from benchmarks import measure; print(measure.onednn_enabled())"
    command = [sys.executable, "-c", question]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout
    return answer.split()[-1] == "True"


def machine_suffix():
    """What tells files of rows apart by machine: `"_onednn"`, `"_avx512"`, both, or neither."""
    return "_onednn" * onednn_elsewhere() + "_avx512" * (vector_extension() == "avx512")


def vector_extension():
    """The widest vector extension of the CPU: `"avx512"`, `"avx2"`, or None. Linux on x86 only."""
    flags = _cpu_info("flags").split()
    known = {"avx512f": "avx512", "avx2": "avx2"}
    return next((name for flag, name in known.items() if flag in flags), None)


def _cpu_name():
    return _cpu_info("model name") or platform.processor()


def _cpu_info(key):
    """An entry of the first CPU in /proc/cpuinfo, or an empty string."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
    return found[0] if found else ""


class RowFile:
    """Rows in a JSON file, which is written anew with each row.

    A row has `settings`, what it is of, which no two rows share, and `repeats`, how often it was
    measured.

    Args:
        path: of the file; need not exist.

    Attributes:
        rows: list of dicts, in the order in which they were first measured.

    Raises:
        ValueError: if the file is no such list of rows.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.rows = []
        if self.path.exists():
            try:
                self.rows = json.loads(self.path.read_text())
                for row in self.rows:
                    row["settings"], row["repeats"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self.path} is not a file of rows: {error!r}") from error

    def find(self, settings, repeats=None):
        """The row of the settings, or None; None also if it was measured otherwise often."""
        for row in self.rows:
            if row["settings"] == settings and repeats in (None, row["repeats"]):
                return row
        return None

    def add(self, row):
        """Adds a row, or replaces that of the same settings in its place."""
        row = json.loads(json.dumps(row))  # tuples become lists, as they would in the file
        old = self.find(row["settings"])
        if old is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(old)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Replaced at once: a command that is stopped leaves a whole file.
        scratch = self.path.with_name(self.path.name + ".part")
        scratch.write_text(json.dumps(self.rows, indent=2) + "\n")
        scratch.replace(self.path)
