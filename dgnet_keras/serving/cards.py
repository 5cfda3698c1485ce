"""Model cards: what an export says of itself."""

import dataclasses
import datetime
import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from dgnet_keras.cascading import Cascade
from dgnet_keras.complexity import count_macs
from dgnet_keras.preprocessing import Preprocessing
from dgnet_keras.serving.signatures import MAX_PIXELS
from dgnet_keras.serving.versions import LABELS
from dgnet_keras.version import __version__


def training_record(config: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What a model card says of the training.

    Args:
        config: the content of a run's `config.json`: its recipe and data.
        results: the content of its `results.json`, or the part that is known.

    Returns:
        Dict: `recipe`, `data`, `metrics`.
    """
    recipe = {k: v for k, v in config.items() if k not in ("data", "fingerprints")}
    data = {k: v for k, v in config.get("data", {}).items() if k != "class_names"}
    return {"recipe": recipe, "data": data, "metrics": results}


def model_card(
    model: keras.Model,
    preprocessing: Preprocessing,
    signatures: Mapping[str, tf.types.experimental.PolymorphicFunction],
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A description of an exported model, JSON-compatible.

    Args:
        model: a `Classifier`.
        preprocessing: the `Preprocessing` of the export.
        signatures: dict of name to the `tf.function` of each signature.
        training: see `training_record`.
    """
    both = isinstance(model, Cascade)
    card = {"model": _network_card(model.first if both else model, preprocessing.image_size)}
    if both:
        second = _network_card(model.second, preprocessing.image_size)
        card["cascade"] = {"confidence": float(model.confidence.numpy()), "second": second}
    return {
        **card,
        "preprocessing": preprocessing.to_config(),
        "labels": f"assets/{LABELS}",
        "signatures": {
            name: [{"name": s.name, "dtype": s.dtype.name, "shape": _shape(s)} for s in specs]
            for name, function in signatures.items()
            for specs in [function.input_signature]
        },
        "max_pixels_of_an_image": MAX_PIXELS,
        "training": training,
        "made_with": {
            "dgnet_keras": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _network_card(model, image_size):
    """What a card says of one classifier."""
    backbone = model.backbone
    counted = count_macs(model, image_size=image_size)
    gates = [layer for layer in model._flatten_layers() if hasattr(layer, "current_threshold")]
    thresholds = {gate.path: float(gate.current_threshold()) for gate in gates}
    in_force = {str(value) if math.isinf(value) else value for value in thresholds.values()}
    learned = [gate.path for gate in gates if getattr(gate, "learn_threshold", False)]
    return {
        "variant": backbone.name,
        "family": backbone.family,
        "spec": dataclasses.asdict(backbone.spec),
        **backbone.graph_options.keywords(),
        **({"threshold": in_force.pop()} if len(in_force) == 1 else {}),  # as calibrated, say
        "edge_scale": backbone.graph_options.resolved_edge_scale,
        "seed": backbone.seed,
        "learned_thresholds": {path: thresholds[path] for path in learned},
        "num_classes": model.num_classes,
        "parameters": counted["parameters"],
        "macs": counted["macs"],
    }


def _shape(spec):
    return None if spec.shape.rank is None else spec.shape.as_list()
