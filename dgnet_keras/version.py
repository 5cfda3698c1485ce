"""The package's version, in a module of its own so that packaging can read it without TensorFlow."""

__version__ = "0.1.0"
