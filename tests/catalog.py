"""Golden list of tiny models: a row a model, arguments of `dgnet_keras.create`.

Cross-cutting tests take each row, and `CORE` where that takes long; a new family is a row of both.
"""

import numpy as np

import dgnet_keras as dg
from dgnet_keras.adjacencies import connectivity_model

_CIFAR = {"name": "resnet20_cifar", "depths": (2, 3), "widths": (4, 8)}

_MOBILENET = {
    "name": "mobilenetv2_100",
    "widths": (4, 4, 8),
    "strides": (1, 2, 2),
    "expansions": (1, 2, 2),
    "stem_width": 4,
    "head_width": 16,
}
_REGNETY = {"name": "regnety_002", "widths": (8, 16), "group_width": 8, "stem_width": 8}

CATALOG = {
    "resnet_basic": {"name": "resnet18", "depths": (1, 3), "widths": (4, 8)},
    "resnet_bottleneck_static_init": {
        "name": "resnet50",
        "depths": (2, 2),
        "widths": (4, 8),
        "init": "static",
    },
    "resnet_cifar_learned_threshold": {
        **_CIFAR,
        "gate": "surrogate",
        "learn_threshold": True,
        "threshold": 0.3,
    },
    "resnet_cifar_split": {**_CIFAR, "depths": (5, 2), "max_nodes": 3, "gate": "masked"},
    "resnext": {
        "name": "resnext50_32x4d",
        "depths": (1, 3),
        "widths": (16, 32),
        "cardinality": 2,
        "base_width": 16,
    },
    "mobilenet_v2": {**_MOBILENET, "depths": (1, 3, 2)},
    "regnetx_static_init": {
        "name": "regnetx_002",
        "depths": (1, 3),
        "widths": (8, 16),
        "group_width": 4,
        "stem_width": 8,
        "init": "static",
    },
    "regnety": {**_REGNETY, "depths": (2, 2)},
    "resnet_cifar_path": {**_CIFAR, "wiring": "path"},
    "mobilenet_v2_path": {
        **_MOBILENET,
        "depths": (1, 5, 2),
        "wiring": "path",
        "max_nodes": 3,
        "threshold": 0.3,
    },
    "regnety_learned_path": {**_REGNETY, "depths": (2, 3), "wiring": "learned_path"},
    "resnet_cifar_chain": {**_CIFAR, "wiring": "chain"},
    "resnet_cifar_learned": {**_CIFAR, "wiring": "learned"},
    "resnet_cifar_random": {**_CIFAR, "wiring": "random"},
    "resnet_cifar_complete": {**_CIFAR, "wiring": "complete"},
}


# Each block, stem, wiring, gate and init at least once: for what takes long. In the other rows is
# what these have in another combination.
CORE = [
    "resnet_bottleneck_static_init",
    "resnet_cifar_split",
    "resnet_cifar_learned_threshold",
    "resnext",
    "mobilenet_v2_path",
    "regnety_learned_path",
    "resnet_cifar_learned",
    "resnet_cifar_random",
    "resnet_cifar_complete",
    "resnet_cifar_chain",
]


def create(row, **kwargs):
    """The model of a row, 3 classes and images of any size unless `kwargs` say otherwise."""
    return dg.create(**{"num_classes": 3, "input_shape": (None, None, 3), **CATALOG[row], **kwargs})


def adjacency(model, x):
    """As `dg.adjacency`, for which nothing is traced."""
    reader = connectivity_model(model)
    if reader is None:
        return {}
    return {name: found.numpy() for name, found in reader(x, training=False).items()}


def randomize(model, seed=0, scale=2.0):
    """Gives routers and gates weights that open and close edges, and statistics that matter."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.path.split("/")[-1]
        if name in ("adjacency", "noise", "threshold"):
            continue
        if name == "moving_variance":
            variable.assign(rng.uniform(0.5, 1.5, shape))
        elif dg.convert.is_wiring_weight(variable.path):
            variable.assign(rng.normal(0, scale, shape) if name != "threshold_logit" else -1.0)
        elif len(shape) == 1:
            variable.assign(variable.numpy() + rng.normal(0, 0.2, shape))
    return model


def weight(model, ending):
    """The one weight of a model, or of a layer, whose path ends so: `"router_0/kernel"`."""
    (found,) = (v for v in model.weights if v.path.endswith(ending))
    return found


def images(batch=4, size=16, seed=0):
    """Random images, as a model takes them: float32 (batch, size, size, 3)."""
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype("float32")


def write_timm_file(model, path):
    """Writes the model's weights as timm would."""
    from safetensors.numpy import save_file

    arrays = {}
    for variable in model.weights:
        value = variable.numpy()
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        name = dg.convert.timm_name(variable.path, model.backbone.timm_names)
        arrays[name] = np.ascontiguousarray(value)
    save_file(arrays, path)
