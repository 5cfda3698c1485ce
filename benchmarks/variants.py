"""Markdown table of every variant: parameters, MACs, what routers and edges add.

python -m benchmarks.variants [--reference ../shared/reference/static_models.json]

With the reference (parameters and MACs that timm's models have), two columns say by how much the
static twin differs from it.
"""

import argparse
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def row(name, reference):
    """The cells of one variant."""
    from dgnet_keras.commands.listing import count_variant, overhead, wiring_parameters

    model, counted = count_variant(name, None)
    added = overhead(counted, model)
    parameters = counted["parameters"] - wiring_parameters(model)
    macs = counted["by_kind"]["convolution"] + counted["by_kind"]["dense"]
    cells = [f"`{name}`", f"{parameters:,}", f"{macs:,}"]
    if reference is not None:
        known = reference.get(name)
        cells.append("" if known is None else str(parameters - known["params"]))
        share = None if known is None else 100 * (macs / known["conv_linear_macs_224"] - 1)
        cells.append("" if share is None else f"{share:.4f}")
    edges = sum(edges for stage in model.backbone.stages for _, _, edges in stage.describe())
    return [*cells, str(edges), *(f"{value:.4f}" for value in added.values())]


def main(argv=None):
    """Prints the table, a row at a time."""
    import keras

    import dgnet_keras as dg

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reference", type=pathlib.Path, help="JSON file with known counts")
    args = parser.parse_args(argv)
    reference = json.loads(args.reference.read_text())["models"] if args.reference else None
    head = ["variant", "parameters", "MACs"]
    if reference is not None:
        head += ["parameters: difference", "MACs: difference, %"]
    head += ["edges", "parameters: + %", "router MACs: + %", "edge MACs: + %"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for name in dg.list_variants():
        print(f"| {' | '.join(row(name, reference))} |", flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
