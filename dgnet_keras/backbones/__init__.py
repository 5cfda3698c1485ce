"""The backbone families. A new family is a new file, and a line in `FAMILIES`."""

from dgnet_keras.backbones.resnet import DGResNet

FAMILIES = (DGResNet,)

__all__ = ["FAMILIES", "DGResNet"]
