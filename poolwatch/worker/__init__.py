"""What runs in a worker process, and nothing else does.

This package imports only ``transport`` and the errors, so that a child never loads the parent's
side of the pool.
"""
