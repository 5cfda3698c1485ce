"""The table of docs/performance.md on skipping, from the rows of `benchmarks.skipping`.

python -m benchmarks.skipping_markdown benchmarks/results/skipping.json
"""

import argparse
import json
import pathlib

from benchmarks.speed_markdown import ratio_cell

HEAD = ("network", "batch", "mode", "share", "skip/chain", "never/chain", "peer/chain")


def lines(rows):
    """Markdown table of rows, sorted: medians of ratios, quartiles in brackets; shares measured."""
    found = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    networks = [row["settings"]["model"] for row in rows]

    def order(row):
        settings = row["settings"]
        network = networks.index(settings["model"])
        return network, settings["mode"], settings["batch"], -settings["share"]

    for row in sorted(rows, key=order):
        settings = row["settings"]
        cells = [f"`{settings['model']}`", str(settings["batch"]), settings["mode"]]
        cells.append(f"{row['shares']['skip']:.2f}")
        cells += [ratio_cell(row, pair) for pair in HEAD[4:]]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main(argv=None):
    """Prints the table of a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skipping_markdown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=pathlib.Path, help="skipping*.json")
    for line in lines(json.loads(parser.parse_args(argv).file.read_text())):
        print(line)


if __name__ == "__main__":
    main()
