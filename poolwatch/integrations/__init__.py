"""Poolwatch as a part of other programs: each package here needs an extra of its own."""
