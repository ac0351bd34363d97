"""What ``benchmarks/simulation.py`` compares: the same federation in several simulators, one small file each.

Each contestant is a program that is started in its own process tree, often in a virtual environment of its
own, does the work that :mod:`contestants.workload` describes, and leaves marks (:mod:`contestants.marks`).
Everything here is written for this benchmark; of the peers only their public interfaces are used.
"""
