"""Which job holds which device: evidence gathered on the node, weighed, and kept over time.

Evidence comes from ``cgroup`` and ``processes`` (who uses a device), ``hooks``, ``kubelet`` and ``mapping`` (whom a device was
given to); ``ledger`` turns it into allocations and ``source`` composes all of it. Nothing here asks a scheduler's controller:
ten thousand nodes that ask one daemon are an outage.
"""
