"""One command for an accelerator: is it right there, and what does it cost?

python -m benchmarks.accelerator --output FILE [--minutes 9] [--small | --cpu]

Runs, on the GPUs that TensorFlow sees, or on the CPU without one:

- the tests of what can differ between devices: layers, gradients, 16 bits, XLA, exact warm start,
  skipping against dense, `MirroredStrategy` (on GPUs where there are some), SavedModel;
- a variant of each family, dynamic, with paths and as static twin: training step and inference at
  batch 1, 32 and 256, in mixed precision and float32, with and without XLA; peak memory;
- paths at shares of 1.0 to 0.3 of the multiply-adds;
- images/s of the input pipeline, beside those of training.

The most wanted comes first, and each row is written to FILE, JSON, as it is there. When the minutes
are over, the same command goes on with what is left, and tries again what failed. Each network is a
process of its own, so a fault costs no more than that. Ends with a report; exit code 1 where
something failed. What the processes say is in FILE with the suffix .log.

`--small` does a little of each part on a tiny network, in a minute or two; its times mean nothing.
`--cpu` times networks in float32 at batch 8, that of CIFAR at 128, and needs a few calls.
The tests need the extras `train`, `serving` and `test`, and a checkout.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.accelerator import plan, report, workers
from benchmarks.accelerator.pytest_rows import DONE
from benchmarks.accuracy_table import fill_in
from benchmarks.measure import RowFile, commit

# All processes of the tests share a GPU, and there products must be as exact as on a CPU.
ENVIRONMENT = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
EXACT = {**ENVIRONMENT, "NVIDIA_TF32_OVERRIDE": "0"}
TEST_PROCESSES = 6
PYTEST = {"part": "tests", "test": "pytest"}
FAILED, CODES_OF_PYTEST = 1, (0, 5)  # some failed; all passed, nothing left to run


class Rows(RowFile):
    """Rows of one commit, which each of them names.

    Raises:
        ValueError: if those that are there are of another.
    """

    def __init__(self, path):
        super().__init__(path)
        self._commit = commit()
        others = {str(row.get("commit")) for row in self.rows} - {str(self._commit)}
        if others:
            raise ValueError(
                f"{path} was measured at commit {', '.join(sorted(others))}, and this is "
                f"{self._commit}: name another file"
            )

    def add(self, row):
        """Adds a row, or replaces that of the same settings."""
        super().add({**row, "commit": self._commit})


def missing(settings, rows):
    """Those of the settings that have no row, or one that failed."""
    rows = [(row, rows.find(row)) for row in settings]
    return [wanted for wanted, found in rows if found is None or "error" in found]


def last_line(log):
    """The last line that says something of a file, or a word for none."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")[:500]


def run(command, rows, log, until, environment):
    """Adds the rows of a command as they come.

    Returns:
        Tuple of its exit code, None where the time was over, and the settings of the rows.
    """
    sent = []
    with open(log, "ab") as file, workers.Worker(command, file, until, environment) as worker:
        for row in worker.rows():
            rows.add(row)
            sent.append(row["settings"])
            print(report.name(row["settings"]), row.get("error", ""), flush=True)
        return worker.exit_code(), sent


def measure(command, settings, rows, log, until):
    """The rows of some settings; the one at which a process ends has failed, the next go on."""
    left = missing(settings, rows)
    while left and time.monotonic() < until:
        code, sent = run([*command, json.dumps(left)], rows, log, until, ENVIRONMENT)
        left = [settings for settings in left if settings not in sent]
        if code is None:
            return
        if left:
            error = f"its process ended with exit code {code}: {last_line(log)}"
            rows.add({"settings": left.pop(0), "repeats": {}, "error": error})


def run_tests(files, rows, log, until):
    """A row for each test of some files that has not passed before; whether all have ended."""
    ended = rows.find(PYTEST)
    if ended and ended.get("files") == files and not report.of_part(rows.rows, "tests", True):
        return True
    passed = [
        row["settings"]["test"]
        for row in report.of_part(rows.rows, "tests")
        if row["settings"]["test"].partition("::")[0] in files
    ]
    processes = min(TEST_PROCESSES, max(os.cpu_count() // 2, 1))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as done:
        done.write("\n".join(passed))
        done.flush()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.accelerator.pytest_rows"]
        command += ["-p", "no:cacheprovider", "-n", str(processes), "--dist", "loadgroup"]
        code, sent = run([*command, *files], rows, log, until, {**EXACT, DONE: done.name})
    if code is None:
        return False
    row = {"settings": PYTEST, "repeats": {}, "files": files}
    # Python itself ends with the code of failed tests where there is no pytest.
    is_told = code in CODES_OF_PYTEST or (code == FAILED and sent)
    if not is_told or not (passed or sent):
        row["error"] = f"it ended with exit code {code}: {last_line(log)}"
    rows.add(row)
    return True


def main(argv=None):
    """Measures what FILE lacks, and prints the report; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it ends (9)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--small", action="store_true", help="a little of each part")
    kinds.add_argument("--cpu", action="store_true", help="what a CPU can do")
    parser.add_argument(
        "--document", type=pathlib.Path, help="measure nothing, show the rows in this Markdown file"
    )
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"--minutes must be more than 0. Received: {args.minutes}")
    end = time.monotonic() + 60 * args.minutes
    try:
        rows = (RowFile if args.document else Rows)(args.output)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.document:
        lines = report.networks_table(report.of_part(rows.rows, "networks"))
        args.document.write_text(fill_in(args.document.read_text(), {"clock": lines}))
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    log = args.output.with_suffix(".log")
    left = []
    groups = plan.small_plan() if args.small else plan.cpu_plan() if args.cpu else plan.plan()
    for group in groups:
        until = min(end, time.monotonic() + group.limit_s)
        if group.kind == "tests":
            finished = time.monotonic() < end and run_tests(group.settings, rows, log, until)
            left += [] if finished else ["some of the tests"]
        else:
            command = [sys.executable, "-m", f"benchmarks.accelerator.{group.kind}"]
            measure(command, group.settings, rows, log, until)
            left += [report.name(s) for s in group.settings if rows.find(s) is None]
    print("\n".join(report.report(rows.rows, left)))
    return int(bool(report.failures(rows.rows)))


if __name__ == "__main__":
    sys.exit(main())
