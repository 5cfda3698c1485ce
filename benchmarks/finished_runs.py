"""Commands that measure finished runs of `benchmarks.accuracy`, from the weights in its workdir."""

import argparse
import pathlib
import sys

from benchmarks.accuracy_runs import images_file
from benchmarks.accuracy_studies import STUDIES, WEIGHTS, missing, plan
from benchmarks.accuracy_table import append_row, fill_in, read_rows


def make_parser(name, doc, output):
    """The command line of a measurement of finished runs."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", default="cifar10", choices=STUDIES)
    parser.add_argument("--seed", action="append", type=int, help="only this seed (repeatable)")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/accuracy"))
    parser.add_argument("--output", type=pathlib.Path, default=output, help="JSON lines")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file to write into")
    return parser


def run(name, args, wiring, measure, table):
    """Measures what is missing, prints the table, and writes it into a document at its mark.

    Args:
        name: of the benchmark, and of the mark.
        args: of `make_parser`.
        wiring: of the runs.
        measure: see `rows_of`.
        table: function of rows to the table's lines.
    """
    try:
        rows = rows_of(args, wiring, measure)
        if not rows:
            return
        print("\n".join(table(rows)))
        if args.document is not None:
            text = args.document.read_text()
            args.document.write_text(fill_in(text, {name: table(rows)}))
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.{name}: {error}")


def rows_of(args, wiring, measure):
    """Measures the finished runs of a study that have not been; the rows of all that have.

    Args:
        args: of `make_parser`.
        wiring: of the runs.
        measure: function of an `accuracy_studies.Job` and of the file of its images to a dict.

    Returns:
        List of rows, as they are in the file `args.output`.
    """
    jobs = plan(args.study, workdir=args.workdir)
    jobs = [job for job in jobs if job.recipe.wiring == wiring]
    for job in missing(jobs, read_rows(args.output)):
        if args.seed and job.recipe.seed not in args.seed:
            continue
        images = images_file(args.workdir, job.identity["dataset"])
        for needed in (job.workdir / WEIGHTS, images):
            if not needed.exists():
                print(f"not finished: no {needed}", file=sys.stderr)
                break
        else:
            append_row(args.output, measure(job, images))
    rows = read_rows(args.output)
    unmeasured = missing(jobs, rows)
    print(f"{len(jobs) - len(unmeasured)} of {len(jobs)} {wiring} runs of {args.study}\n")
    wanted = {(job.identity["recipe_hash"], wiring) for job in jobs}
    return [row for row in rows if (row["recipe_hash"], row["wiring"]) in wanted]
