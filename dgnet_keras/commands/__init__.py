"""The commands of `python -m dgnet_keras`: a module a group, each with `add_parsers`.

They import what they need when they run.
"""
