"""What differs on an accelerator: tests, times, memory; `python -m benchmarks.accelerator`."""
