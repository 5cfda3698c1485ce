"""The backbone families. A new family is a new file, and a line in `FAMILIES`."""

from dgnet_keras.backbones.mobilenet_v2 import DGMobileNetV2
from dgnet_keras.backbones.regnet import DGRegNet
from dgnet_keras.backbones.resnet import DGResNet
from dgnet_keras.backbones.resnext import DGResNeXt

FAMILIES = (DGMobileNetV2, DGResNet, DGResNeXt, DGRegNet)

__all__ = ["FAMILIES", "DGMobileNetV2", "DGRegNet", "DGResNeXt", "DGResNet"]
