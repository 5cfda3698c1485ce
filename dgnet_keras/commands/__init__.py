"""The commands of `python -m dgnet_keras`: a module a group, each with `add_parsers`.

`models`, `images` and `paths` read what commands are given, `page` writes what they draw. All
import what they need when they run.
"""
