"""Serving measured, and the stand-in for TensorFlow Serving that tests ask."""
