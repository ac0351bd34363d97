"""Gives every node of a trial the data of its own hospital and of no other."""

import shutil
from pathlib import Path

from fl_plugins.errors import DataError

from .files import make_folder
from .layout import Layout

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
"""As the task ``heart_disease`` numbers them; a test compares the two."""


def deal_hospitals(layout: Layout, source: Path) -> None:
    """Copy hospital i's file into node i's own ``data/`` folder.

    Raises
    ------
    DataError
        If there is no such file, or more nodes than hospitals.
    """
    if layout.settings.num_nodes > len(HOSPITALS):
        raise DataError(
            f"deploy: {layout.settings.num_nodes} nodes, but there are {len(HOSPITALS)} hospitals; make so "
            "many nodes, or use the task breast_cancer."
        )
    for node, hospital in zip(layout.nodes, HOSPITALS, strict=False):
        file = source / f"processed.{hospital}.data"
        if not file.exists():
            raise DataError(f"deploy: there is no {file}; use the task breast_cancer, which needs no files.")
        shutil.copyfile(file, make_folder(node.folder / "data" / "heart_disease") / file.name)
