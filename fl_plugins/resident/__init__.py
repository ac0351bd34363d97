"""A trainer that stays: one warm process per deployed node, which the short-lived ClientApp processes ask.

Flower serves every message of a deployed SuperNode from a fresh ``flwr-clientapp`` process, which would
import JAX, load its data and compile anew each time. Instead, that process asks this node's *worker*, which
keeps all of it, and which the first process that finds none has started. Nothing depends on it: whatever goes
wrong with the worker is logged, and the message is served in the short-lived process as before.

===============  ============================================================================
``lifetime``     which process the node is, and whether it is still there
``address``      where the worker of this node, code and configuration listens
``protocol``     frames on the socket: JSON and bytes; no pickle
``launch``       start a process that listens there, once
``client``       ask the worker
``worker``       the process itself
``settings``     what the node's operator says about it
``errors_wire``  an exception of the worker's is raised again, with the same words, in the client
``starter``      forks ClientApp processes with Flower already imported, where the operator wants that
``command``      the ``flwr-clientapp`` that asks it
``guard``        which app bundles it may run: the node's policy says
===============  ============================================================================
"""
