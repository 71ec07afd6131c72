"""Measurements of poolwatch; each module runs by itself: ``python -m benchmarks.recovery``."""
