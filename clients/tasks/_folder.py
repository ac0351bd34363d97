"""Where data lie that no package brings: ``$FL_PLUGINS_DATA``, or a path that the user gives."""

import os
from pathlib import Path

from fl_plugins.errors import DataError

DATA_VARIABLE = "FL_PLUGINS_DATA"


def data_path(given: str | None, default: str, *, task: str) -> Path:
    """Return ``given``, or ``default`` inside ``$FL_PLUGINS_DATA``.

    Raises
    ------
    DataError
        If nothing is there, or neither is set.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if given is None and folder is None:
        raise DataError(f"{task}: path is not given and ${DATA_VARIABLE} is not set; set one of the two.")
    path = Path(given).expanduser() if given is not None else Path(folder or "").expanduser() / default
    if not path.exists():
        raise DataError(f"{task}: there is nothing at {path}; give path= or set ${DATA_VARIABLE}.")
    return path
