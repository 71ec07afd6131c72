"""Bytes between the parent and one worker: streams, frames, bulk payloads, the ledger.

Nothing here is shared between workers. Both sides of the pool import this package.
"""
