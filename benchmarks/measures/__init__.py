"""How each workload is measured: from a peer to figures, each run in a process of its own."""
