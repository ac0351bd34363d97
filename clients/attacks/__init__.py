"""Hostile clients, for benchmarks and tests; each module is one and is imported only when it is asked for."""
