"""Layers of a Dynamic Graph Network, each usable on its own in any Keras 3 model."""

from dgnet_keras.layers.gate import ThresholdGate
from dgnet_keras.layers.gates import register_gate
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.normalization import BatchNormalization
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.layers.path_router import PathGate, PathRouter
from dgnet_keras.layers.router import Router
from dgnet_keras.layers.wiring import register_wiring

__all__ = [
    "BatchNormalization",
    "GraphOptions",
    "GraphStage",
    "PathGate",
    "PathRouter",
    "Router",
    "ThresholdGate",
    "register_gate",
    "register_wiring",
]
