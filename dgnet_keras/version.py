"""The package's version, alone in its module: packaging reads it without TensorFlow."""

__version__ = "0.1.0"
