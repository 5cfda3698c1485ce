"""python -m dgnet_keras plot MODEL IMAGES: pictures of the connectivity that images take."""

import json
import os

from dgnet_keras.commands.images import labelled_files, read_images
from dgnet_keras.commands.models import load_model, run_record
from dgnet_keras.commands.page import CAPTIONS, page
from dgnet_keras.commands.paths import output_folder
from dgnet_keras.layers.wiring import BY_IMAGE, PATHS
from dgnet_keras.paths import readable
from dgnet_keras.user_warnings import warn

REPORT = "connectivity.json"


def add_parsers(commands):
    """Adds the parser of `plot`, with the function `run`."""
    plot = commands.add_parser(
        "plot",
        help="pictures of the connectivity that images take",
        description="Draws, for one image or those of a folder, the cheapest and dearest images "
        "with their paths, blocks by class, adjacency by class and by image, the graphs, path "
        "diversity, nearest images, MACs by image, and for a run with a budget accuracy against "
        "MACs: as PNG files, and all together on one page, index.html. Writes the figures behind "
        "them, with the open edges and MACs of each image, to connectivity.json. Says so if the "
        "routers are not in order.",
        epilog="Example: python -m dgnet_keras plot runs/cifar10 cifar10/test --output pictures",
    )
    plot.add_argument("model", help="a .keras file, or the folder of a run")
    plot.add_argument("images", help="an image, a folder of images, or of class folders of images")
    plot.add_argument("--output", default="connectivity", help="folder for the pictures")
    plot.add_argument(
        "--limit", type=int, default=1000, help="at most so many images, of all classes (1000)"
    )
    plot.set_defaults(run=plot_command)


def plot_command(args):
    """Draws the connectivity of a model on the images of a folder."""
    import numpy as np

    import dgnet_keras as dg
    from dgnet_keras.adjacencies import check_network
    from dgnet_keras.complexity import model_costs

    output = output_folder(args.output, [args.images])
    paths, labels, class_names = labelled_files(args.images, args.limit)
    model = load_model(args.model)
    check_network(model, "adjacency_outputs")
    if not model.adjacency_outputs:
        raise ValueError(f"The model of {args.model} has no edges to draw.")
    inputs, kept = read_images(paths, model.preprocessing, model.input_shape[-1])
    paths = [paths[k] for k in kept]
    labels = None if labels is None else np.array([labels[k] for k in kept])
    adjacency = dg.adjacency(model, inputs)
    counted = dg.count_macs(model, inputs)
    if labels is None:
        titles = [readable(path.name) for path in paths]
    else:
        titles = [class_names[label] for label in labels]
    pictures = model.preprocessing.denormalize(inputs).numpy()
    figures = connectivity_figures(adjacency, pictures, titles, labels, class_names, counted)
    shares = model_costs(model, inputs.shape[1:3]).shares(adjacency, len(inputs))
    figures = macs_figures(adjacency, pictures, shares, labels, class_names) | figures
    figures |= dial_figure(run_record(args.model)[1])
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=130)
        print(output / f"{name}.png")
    report, summary = _report(model, paths, labels, adjacency, counted)
    if (output / REPORT).exists():  # of this command, perhaps on another model
        for name in CAPTIONS.keys() - figures.keys():
            (output / f"{name}.png").unlink(missing_ok=True)
    text = json.dumps(report, indent=2, default=np.ndarray.tolist) + "\n"
    messages = [summary, *report["router_health"]]
    write_whole(output / REPORT, text)
    write_whole(output / "index.html", page(readable(args.model), messages, figures))
    print(summary)
    for message in report["router_health"]:
        warn(message)


def _report(model, paths, labels, adjacency, counted):
    """The figures of `connectivity.json`, a dict, and the line that sums them up."""
    from dgnet_keras import connectivity

    found = connectivity.path_diversity(adjacency, labels)
    findings = []
    if model.wiring in BY_IMAGE and len(paths) > 1:
        findings = connectivity.router_health(adjacency, is_path=model.wiring in PATHS)
    mean_macs = float(counted["per_instance"]["macs"].mean())
    report = {
        **found,
        "macs": {"whole_graph": counted["macs"], "mean_of_images": mean_macs},
        "router_health": [finding.message for finding in findings],
        "each_image": each_image(paths, adjacency, counted),
    }
    return report, (
        f"{found['images']} images, {found['distinct_paths']} distinct paths, "
        f"{found['path_entropy']:.2f} bits of path entropy; MACs of an image, on average, "
        f"{mean_macs:,.0f} of {counted['macs']:,}"
    )


def write_whole(path, text):
    """Writes a file that appears whole or not at all, and prints its name."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
    print(path)


def each_image(paths, adjacency, counted):
    """List of dicts, one an image: its file, its MACs, and by stage its open edges j -> i."""
    import numpy as np

    return [
        {
            "file": str(path),
            "macs": int(counted["per_instance"]["macs"][k]),
            "open_edges": {
                name: np.argwhere(matrix[k] > 0).tolist() for name, matrix in adjacency.items()
            },
        }
        for k, path in enumerate(paths)
    ]


def connectivity_figures(adjacency, pictures, titles, labels, class_names, counted):
    """Every picture of `visualize`, a dict of name to `Figure`.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        pictures: uint8 (images, height, width, channels).
        titles: a string for each image.
        labels: int (images,), or None where there are no classes.
        class_names: their names, or None.
        counted: of `count_macs` with these images.
    """
    import numpy as np

    from dgnet_keras import visualize

    shown = np.linspace(0, len(titles) - 1, min(8, len(titles))).astype(int)
    some = {name: matrix[shown] for name, matrix in adjacency.items()}
    names = class_names or ["all"]
    by_class = np.zeros(len(titles), int) if labels is None else labels
    return {
        "adjacency_by_class": visualize.plot_adjacency_by_class(
            adjacency, by_class, class_names=names
        ),
        "adjacency_by_image": visualize.plot_adjacency_by_image(
            some, pictures[shown], titles=[titles[k] for k in shown]
        ),
        "graph": visualize.plot_graph(
            adjacency, title=f"Connectivity of {titles[0]}" if len(titles) == 1 else None
        ),
        "path_diversity": visualize.plot_path_diversity(adjacency, labels, class_names=names),
        "nearest_images": visualize.plot_nearest_images(
            adjacency, pictures, queries=shown[:5], titles=titles
        ),
        "macs": visualize.plot_macs(
            counted["per_instance"]["macs"], counted["macs"], labels, class_names=names
        ),
    }


def macs_figures(adjacency, pictures, shares, labels, class_names):
    """The pictures of what images compute: a dict of name to `Figure`.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        pictures: uint8 (images, height, width, channels).
        shares: multiply-adds of each image over the static twin's, (images,).
        labels: int (images,), or None where there are no classes.
        class_names: their names, or None.
    """
    from dgnet_keras import visualize

    figures = {}
    if len(set(shares)) > 1:  # else no image is cheap or dear
        figures["cheap_and_dear"] = visualize.plot_cheap_and_dear(
            pictures, shares, labels, adjacency=adjacency, class_names=class_names
        )
    figures["blocks_by_class"] = visualize.plot_blocks_by_class(
        adjacency, labels, class_names=class_names
    )
    return figures


def dial_figure(results):
    """Dict of the picture of the dial of a run by its `results.json`; empty without a budget."""
    from dgnet_keras import visualize

    curve = results.get("calibration", {}).get("curve")
    if not curve:
        return {}
    columns = ([point[key] for point in curve] for key in ("share_of_macs", "accuracy"))
    chosen = results["share_of_macs"], results["test_accuracy"]
    return {"dial": visualize.plot_dial(*columns, chosen=chosen)}
