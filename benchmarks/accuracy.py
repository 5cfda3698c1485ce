"""Does instance-aware connectivity help? The same network under every wiring, paired by seed.

python -m benchmarks.accuracy [--study cifar10] --data-dir DIR [--jobs 2] [--workdir DIR]
python -m benchmarks.accuracy --table [--plot FILE]

Trains what is missing of a study (`benchmarks/accuracy_studies.py` lists them) and adds a row to
`--rows` for each run that finishes; the same command again goes on where it was stopped, within a
run too. Runs of one seed start from the same weights and see the same images in the same order with
the same augmentation; they differ in their wiring alone. A run has a core of its own (`--jobs` runs
at a time): on one core it repeats bit for bit, and two at a time take less than two after another
on both cores.
The test images are used once a run, after its last epoch; `--validation` evaluates a fifth of the
training images instead (and trains on the others), to choose settings with.

The table gives means over seeds and the paired differences of `dynamic` with their 95 % intervals
(Student's t). `test_accuracy` in a row is the accuracy on the images of its `split`.
"""

import argparse
import concurrent.futures
import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.accuracy_runs import images_file, run_jobs, save_images
from benchmarks.accuracy_studies import STUDIES, missing, plan, studies_of
from benchmarks.accuracy_table import WIRINGS, fill_in, markdown, plot, read_rows, summarize
from benchmarks.measure import ROOT

ROWS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", default="cifar10", choices=STUDIES)
    parser.add_argument("--data-dir", help="the data set's folder, see python -m train.imagenet")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/accuracy"))
    parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="JSON lines, one a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument("--validation", action="store_true", help="see above")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe"
    )
    parser.add_argument(
        "--wiring", action="append", choices=WIRINGS, help="only this wiring (repeatable)"
    )
    parser.add_argument("--seed", action="append", type=int, help="only this seed (repeatable)")
    parser.add_argument("--table", action="store_true", help="train nothing, show the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture (PNG)")
    parser.add_argument(
        "--document",
        type=pathlib.Path,
        help="Markdown file to write the tables into (not with --set or --validation)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Trains what is missing; shows the table."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        if not args.table:
            _train_missing(args)
        _show(args)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on.")
    except (ValueError, OSError, concurrent.futures.BrokenExecutor) as error:
        sys.exit(f"benchmarks.accuracy: {error}")


def _show(args):
    split = "validation" if args.validation else "test"
    groups = studies_of(read_rows(args.rows), overrides=args.set, split=split)
    tables = {name: markdown(summarize(rows)) for name, rows in groups.items()}
    for name, rows in groups.items():
        print(f"\n{name}: {rows[0]['model']}, {rows[0]['epochs']} epochs\n")
        print("\n".join(tables[name]))
    if not groups:
        print(f"No rows on {split} images with these settings in {args.rows}")
    if args.plot and groups:
        plot(groups).savefig(args.plot, dpi=130)
    if args.document and not args.set and not args.validation:
        args.document.write_text(fill_in(args.document.read_text(), tables))


def _train_missing(args):
    jobs = plan(args.study, validation=args.validation, overrides=args.set, workdir=args.workdir)
    jobs = [job for job in jobs if not args.wiring or job.recipe.wiring in args.wiring]
    jobs = [job for job in jobs if not args.seed or job.recipe.seed in args.seed]
    if not jobs:
        raise ValueError(f"{args.study} has no run of --wiring {args.wiring} --seed {args.seed}")
    todo = missing(jobs, read_rows(args.rows))
    print(f"{args.study}: {len(jobs)} runs, {len(todo)} to do", flush=True)
    if not todo:
        return
    for job in todo:
        if job.init_from is not None and not job.init_from.exists():
            raise FileNotFoundError(
                f"No weights at {job.init_from}: run the study "
                f"{STUDIES[args.study].init_from!r} with the same --workdir first"
            )
    images = images_file(args.workdir, STUDIES[args.study].dataset)
    save_images(todo[0].recipe, args.data_dir, images)
    for row in run_jobs(todo, images, args.rows, args.jobs):
        print(
            f"{row['wiring']:<9}seed {row['seed']}  {100 * row['test_accuracy']:.2f} %  "
            f"{row['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
