"""The tables of docs/performance.md, from the rows that `benchmarks.speed` measured.

python -m benchmarks.speed_markdown benchmarks/results/speed_models.json [--overview]

Prints Markdown rows of the tables `models` (networks against their static twins, then static twins
against their peers), `memory`, `nodes`, `sizes` and `batches`; with `--overview` its first table.
"""

import argparse
import json
import pathlib


def lines(rows):
    """Markdown table rows of a file of `benchmarks.speed`; none of `aggregation`."""
    table = rows[0]["settings"]["table"] if rows else None
    if table in ("sizes", "batches"):
        key = "size" if table == "sizes" else "batch"
        return [_of_grid(key, x, rows) for x in dict.fromkeys(r["settings"][key] for r in rows)]
    if table == "models":
        names = dict.fromkeys(row["settings"]["model"] for row in rows)
        found = [_against_twin(name, rows) for name in names]
        return found + [line for name in names for line in _against_peers(name, rows)]
    if table == "memory":
        return [
            _of_memory(name, rows) for name in dict.fromkeys(r["settings"]["model"] for r in rows)
        ]
    if table == "nodes":
        return [_of_nodes(n, rows) for n in dict.fromkeys(r["settings"]["nodes"] for r in rows)]
    return []


def overview(rows):
    """Markdown table rows of a file of `models`: medians of dynamic networks' ratios.

    Training step, inference and peak memory in training against the static twin, and training step
    and inference against the network of `keras.applications`.
    """
    return [_overview(name, rows) for name in dict.fromkeys(r["settings"]["model"] for r in rows)]


def _overview(name, rows):
    batch = _batch(name, rows)
    times = [
        _find(rows, model=name, mode=mode, measure="time", batch=batch)
        for mode in ("train", "inference")
    ]
    memory = _find(rows, model=name, mode="train", measure="cost")
    pair, peer = "dynamic/chain", "dynamic/keras_applications"
    cells = [f"`{name}`", str(batch), *(_median(row, pair) for row in times)]
    cells += [_cost(memory, pair), *(_median(row, peer) for row in times)]
    return f"| {' | '.join(cells)} |"


def _median(row, pair):
    return (
        "-" if row is None or pair not in row["ratios"] else f"{row['ratios'][pair]['median']:.2f}"
    )


def _find(rows, **settings):
    """The last of the rows with these settings: the one with the peers, if there are two."""
    found = [r for r in rows if settings.items() <= r["settings"].items()]
    return found[-1] if found else None


def _batch(name, rows):
    return _find(rows, model=name, mode="train", measure="time")["settings"]["batch"]


def ratio_cell(row, pair):
    """Median and quartiles of a ratio of a row, as a cell."""
    if row is None or pair not in row["ratios"]:
        return "-"
    ratio = row["ratios"][pair]
    first, third = ratio["quartiles"]
    return f"{ratio['median']:.2f} ({first:.2f} to {third:.2f})"


def _cost(row, pair, key="peak_ratios"):
    return "-" if row is None or pair not in row[key] else f"{row[key][pair]:.2f}"


def _against_twin(name, rows):
    pair, batch = "dynamic/chain", _batch(name, rows)
    train = _find(rows, model=name, mode="train", measure="time")
    inference = [
        _find(rows, model=name, mode="inference", measure="time", batch=b) for b in (batch, 1, 32)
    ]
    memory = [_find(rows, model=name, mode=m, measure="cost") for m in ("train", "inference")]
    cells = [
        f"`{name}`",
        str(batch),
        ratio_cell(train, pair),
        *(ratio_cell(row, pair) for row in inference),
        *(_cost(row, pair) for row in memory),
        _cost(memory[0], pair, "compile_ratios"),
    ]
    return f"| {' | '.join(cells)} |"


def _inverse(value):
    return f"{1 / value:.2f}"


def _against_peers(name, rows):
    batch = _batch(name, rows)
    for peer in ("keras_applications", "keras_groups"):
        pair = f"{peer}/chain"
        train = _find(rows, model=name, mode="train", measure="time")
        if pair not in train["ratios"]:
            continue
        infer = _find(rows, model=name, mode="inference", measure="time", batch=batch)
        cells = [f"`{name}`", f"`{peer}`"]
        for row in (train, infer):
            cells += [
                _inverse(row["ratios"][pair]["median"]),
                _inverse(row["ratios_per_mac"][pair]),
            ]
        for mode in ("train", "inference"):
            cost = _find(rows, model=name, mode=mode, measure="cost")
            known = cost is not None and pair in cost["peak_ratios"]
            cells.append(_inverse(cost["peak_ratios"][pair]) if known else "-")
        yield f"| {' | '.join(cells)} |"


def _of_memory(name, rows):
    costs = [_find(rows, model=name, mode=mode) for mode in ("train", "inference")]
    cells = [f"`{name}`", str(costs[0]["settings"]["batch"])]
    for pair in ("dynamic/chain", "path/chain"):
        cells += [_cost(row, pair) for row in costs]
    return f"| {' | '.join(cells)} |"


def _of_nodes(nodes, rows):
    cells = [str(nodes)]
    for pair in ("dynamic/chain", "dynamic_max6/chain"):
        for mode in ("train", "inference"):
            row = _find(rows, nodes=nodes, mode=mode, measure="time")
            cells.append(_median(row, pair))
        cells.append(_cost(_find(rows, nodes=nodes, measure="cost"), pair))
    return f"| {' | '.join(cells)} |"


def _of_grid(key, value, rows):
    modes = ("train", "inference")
    cells = [ratio_cell(_find(rows, **{key: value}, mode=mode), "dynamic/chain") for mode in modes]
    return f"| {' | '.join([str(value), *cells])} |"


def main(argv=None):
    """Prints the Markdown rows of a file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_markdown",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=pathlib.Path, help="speed_TABLE*.json")
    parser.add_argument("--overview", action="store_true", help="the first table, of models")
    args = parser.parse_args(argv)
    rows = json.loads(args.file.read_text())
    for line in overview(rows) if args.overview else lines(rows):
        print(line)


if __name__ == "__main__":
    main()
