"""Layers of a Dynamic Graph Network, each usable on its own in any Keras 3 model."""

from dgnet_keras.layers.gate import ThresholdGate
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.router import Router
from dgnet_keras.layers.wiring import register_wiring

__all__ = ["GraphStage", "Router", "ThresholdGate", "register_wiring"]
