"""Moving weights: between wirings, and from files, all or nothing."""

import os

import keras

WIRING_LAYERS = ("router_", "gate_")
WIRING_WEIGHTS = ("edge_logits", "adjacency")


def is_wiring_weight(path):
    """Whether the weight at `path` belongs to the wiring, and not to a block, stem or head."""
    parts = path.split("/")
    return any(p.startswith(WIRING_LAYERS) for p in parts[:-1]) or parts[-1].startswith(
        WIRING_WEIGHTS
    )


def copy_weights(source, target):
    """Copies weights by `Variable.path` between two models of one variant, in any wirings.

    Weights of the wiring (routers, gates, edge logits) that only one of the two has are left as
    they are. Nothing is changed unless everything fits.

    Args:
        source: model to copy from.
        target: model to copy into.

    Returns:
        List of the paths copied.

    Raises:
        ValueError: if a weight outside the wiring is missing on either side, or shapes differ.
    """
    return assign_weights(target, {v.path: v for v in source.weights})


def assign_weights(model, values):
    """Assigns `values`, a dict of path to array, to the model's weights; all or nothing.

    Returns:
        List of the paths assigned.

    Raises:
        ValueError: as `copy_weights`.
    """
    variables = {v.path: v for v in model.weights}
    problems = [
        f"{path}: only in the {side}"
        for side, here, there in (("source", values, variables), ("model", variables, values))
        for path in here
        if path not in there and not is_wiring_weight(path)
    ]
    common = [path for path in variables if path in values]
    problems += [
        f"{path}: expected {tuple(variables[path].shape)}, received {tuple(values[path].shape)}"
        for path in common
        if tuple(variables[path].shape) != tuple(values[path].shape)
    ]
    if problems:
        shown = "\n  ".join(problems[:20])
        raise ValueError(
            f"Weights do not fit the model {model.name!r}, which was left as it was. "
            f"{len(problems)} differences:\n  {shown}"
        )
    for path in common:
        variables[path].assign(values[path])
    return common


def load_weights(model, path):
    """Loads a `.weights.h5` file into a model of the same architecture, all or nothing.

    Args:
        model: a model of this package.
        path: file written by `model.save_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the name does not end in `.weights.h5`, or the file does not fit; the
            model is then as it was.
    """
    path = os.fspath(path)
    if not path.endswith(".weights.h5"):
        raise ValueError(f"`weights` must be a file that ends in .weights.h5. Received: {path}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"No weights file at {path}")
    # Keras's own loader assigns as it goes, and leaves a model half changed when it fails.
    scratch = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    try:
        scratch.load_weights(path)
    except Exception as error:
        raise ValueError(
            f"{path} does not fit the model {model.name!r}, which was left as it was: {error}"
        ) from error
    copy_weights(scratch, model)
