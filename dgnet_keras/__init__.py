"""Dynamic Graph Networks for Keras: every image gets its own wiring."""

import os
import sys

if [os.path.basename(name) for name in sys.argv[:1]] in (["-m"], ["dgnet_keras"]):
    # Python is about to run a command, `python -m dgnet_keras` or `dgnet_keras`, and imports this
    # file first: the last moment to keep TensorFlow's start-up messages out of its output.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        "dgnet_keras runs on Keras's TensorFlow backend: set KERAS_BACKEND=tensorflow before Keras "
        f"is imported. Received: the backend {keras.config.backend()!r}"
    )

from dgnet_keras import connectivity, layers, optimizers
from dgnet_keras.adjacencies import adjacency, with_adjacency
from dgnet_keras.backbones import DGMobileNetV2, DGRegNet, DGResNet, DGResNeXt
from dgnet_keras.backbones.base import Backbone
from dgnet_keras.calibrate import calibrate
from dgnet_keras.callbacks import BudgetSchedule, ConnectivityMonitor, RouterHealthWarning
from dgnet_keras.cascading import Cascade, cascade
from dgnet_keras.classifier import Classifier
from dgnet_keras.complexity import count_macs
from dgnet_keras.convert import copy_weights, load_timm
from dgnet_keras.freeze import freeze
from dgnet_keras.preprocessing import Preprocessing
from dgnet_keras.pretrained import list_pretrained
from dgnet_keras.serving.export import export_saved_model
from dgnet_keras.variants import create, list_variants
from dgnet_keras.version import __version__

__all__ = [
    "Backbone",
    "BudgetSchedule",
    "Cascade",
    "Classifier",
    "ConnectivityMonitor",
    "DGMobileNetV2",
    "DGRegNet",
    "DGResNeXt",
    "DGResNet",
    "Preprocessing",
    "RouterHealthWarning",
    "__version__",
    "adjacency",
    "calibrate",
    "cascade",
    "connectivity",
    "copy_weights",
    "count_macs",
    "create",
    "export_saved_model",
    "freeze",
    "layers",
    "list_pretrained",
    "list_variants",
    "load_timm",
    "optimizers",
    "with_adjacency",
]
