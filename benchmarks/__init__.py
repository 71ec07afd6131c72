"""Measurements of poolwatch and of other pools: ``python -m benchmarks``, see README.md.

Some modules run by themselves: ``recovery``, ``idle``, ``endurance``, ``deaths`` and ``guard``.
"""
