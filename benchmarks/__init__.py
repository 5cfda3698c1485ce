"""Measurements: ratios against the static twin, alternating in one run. Runs from a checkout."""
