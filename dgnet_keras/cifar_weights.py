"""Trained CIFAR ResNets in PyTorch's names, whose shortcuts have no weights (option A)."""

import os

import keras
import numpy as np

from dgnet_keras.timm import from_timm, timm_name
from dgnet_keras.weights import HEAD, assign_with_head, is_wiring_weight, reading

# Their classifier is called otherwise than timm's.
_HEAD = {"fc.weight": "linear.weight", "fc.bias": "linear.bias"}


def load_cifar_resnet(model: keras.Model, path: str | os.PathLike[str]) -> list[str]:
    """Loads one of the CIFAR ResNets in an `.npz` file, all or nothing.

    Such a file has the arrays of one or several networks, as `akamaster/pytorch_resnet_cifar10`
    and `chenyaofo/pytorch-cifar-models` name them: `layer1.0.conv1.weight`, or before it the
    variant and a slash, `resnet56/layer1.0.conv1.weight`. A shortcut into a stage of more channels
    takes every second pixel and pads with zeros (option A of arXiv 1512.03385, section 4.2); here
    that is a 1x1 convolution of stride 2, of zeros and ones, and a normalisation that changes
    nothing.

    Args:
        model: a classifier or backbone of a CIFAR ResNet.
        path: of the file.

    Returns:
        List of the paths of the weights loaded, shown as by `copy_weights`.

    Raises:
        ValueError: if the file is no whole `.npz`, or has no such network; the message lists names
            and shapes, and the model is as it was.
    """
    backbone = getattr(model, "backbone", model)
    with reading(path, "npz"), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    prefix = f"{backbone.name.removesuffix('_cifar')}/"
    own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    if not own:
        if there := sorted({name.partition("/")[0] for name in arrays if "/" in name}):
            fitting = ", ".join(f"{name}_cifar" for name in there)
            raise ValueError(
                f"{path} must have arrays whose names begin with {prefix!r}. It has those of "
                f"{fitting}"
            )
        own = arrays
    values: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for variable in model.weights:
        if is_wiring_weight(variable.path):
            continue
        name = timm_name(variable.path, backbone.timm_names) or variable.path
        name = _HEAD.get(name, name)
        names[variable.path] = name
        if "/shortcut/" in variable.path and name not in own:
            values[variable.path] = _option_a(variable.path, tuple(variable.shape))
        elif name in own:
            values[variable.path] = from_timm(own.pop(name), len(variable.shape))
    head = [own.pop(name, None) for name in _HEAD.values()]  # of a backbone
    classes = values.get(HEAD[1], head[1])
    values |= {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    return assign_with_head(model, values, path, None if classes is None else len(classes), names)


def _option_a(path, shape):
    """What a shortcut's convolution and normalisation are where the source has none."""
    if len(shape) == 4:
        _, _, inputs, outputs = shape
        kernel = np.zeros(shape, "float32")
        channels = np.arange(inputs)
        kernel[0, 0, channels, channels + (outputs - inputs) // 2] = 1
        return kernel
    # So that the epsilon under the root makes the variance 1.
    fill = {"gamma": 1.0, "moving_variance": 1.0 - 1e-5}.get(path.rpartition("/")[2], 0.0)
    return np.full(shape, fill, "float32")
