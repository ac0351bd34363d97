"""A plugin that fake distributions bring, and how its entry point is written."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RULE = """
    from fl_plugins.registry import Kind, register

    @register(Kind.CODEC, "shrink", paper="Nobody 2020")
    def shrink(level: int = 1):
        '''Make it smaller.'''
        return ("shrink", level)
"""
ONE_CODEC = "[fl_plugins.codecs]\nshrink = {}:shrink\n"
