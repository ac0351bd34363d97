"""Heart disease from 13 clinical measurements: 920 patients of four hospitals, which are the four clients.

Janosi, Steinbrunn, Pfisterer and Detrano 1988 (UCI, CC BY 4.0): Cleveland, Hungary, Switzerland and VA Long
Beach. The split is the real one, and so are its differences: other shares of sick patients, and whole columns
that a hospital did not record.
"""

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError, DataError
from fl_plugins.registry import Kind, register
from fl_plugins.seeds import derive_rng
from fl_plugins.training import ClientData, Dataset, Task

from ..losses import accuracy, softmax_cross_entropy
from ..models import nnx_model
from ..networks import MLP
from ..partition import check_partition_id
from ._folder import data_path

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
"""Partition i is hospital i."""

NUM_COLUMNS = 14
"""13 measurements and the diagnosis: 0 is healthy, 1 to 4 are degrees of disease."""

NUMERIC = {0: (55, 10), 3: (130, 20), 4: (230, 60), 7: (140, 25), 9: (1, 1), 11: (1, 1)}
"""Column to a round centre and spread: age, blood pressure, cholesterol, heart rate, ST depression, vessels.

They are constants, not estimates: nothing of any hospital's data is in another hospital's features.
"""

ZERO_IS_MISSING = (3, 4)
"""Nobody has a blood pressure or a cholesterol of 0: some hospitals wrote 0 for a value not measured."""

CATEGORIES = {1: (0, 1), 2: (1, 2, 3, 4), 5: (0, 1), 6: (0, 1, 2), 8: (0, 1), 10: (1, 2, 3), 12: (3, 6, 7)}
"""Column to values: sex, chest pain, blood sugar, resting ECG, exercise angina, ST slope, thallium scan."""

NUM_FEATURES = 2 * len(NUMERIC) + sum(map(len, CATEGORIES.values()))
NUM_CLASSES = 2


@register(Kind.TASK, "heart_disease", paper="Janosi, Steinbrunn, Pfisterer and Detrano 1988")
def heart_disease(
    *,
    path: str | None = None,
    model: Literal["logistic", "mlp"] = "logistic",
    test_fraction: float = 0.0,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> Task:
    """Return the task of telling sick (1) from healthy (0) patients; a client is a hospital.

    ``x`` is ``(n, 31)`` float32, ``y`` is ``(n,)`` int32. Missing values follow one rule that looks at nobody
    else's data: a numeric measurement becomes two features, its value on a fixed scale (0 if it is missing)
    and whether it is known; a category becomes one feature per value, all 0 if it is missing.

    A hospital's data are read when its partition is: the server needs none, unless ``test_fraction`` asks for
    a common test set, which only a simulation can have.

    Parameters
    ----------
    path : str, optional
        Folder with ``processed.<hospital>.data``; by default ``heart_disease`` inside ``$FL_PLUGINS_DATA``. A
        hospital needs its own file only.
    model : {"logistic", "mlp"}
        Logistic regression, or one hidden layer of 16.
    test_fraction : float
        Share of every hospital's patients that the server evaluates on, in [0, 1), rounded down.
    validation_fraction : float
        Share that the hospital itself evaluates on, in [0, 1), rounded down; together below 1.
    seed : int
        Seed of these splits, >= 0.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    DataError
        When data are read: if there are none, or a file is not as it should be.
    """
    if model not in ("logistic", "mlp"):
        raise ConfigError(f"heart_disease: model={model!r} must be one of logistic, mlp; choose one.")
    check_int("heart_disease", "seed", seed, minimum=0)
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    for name, value in fractions.items():
        check_number("heart_disease", name, value, minimum=0, maximum=1)
    if sum(fractions.values()) >= 1:
        raise ConfigError(
            f"heart_disease: test_fraction={test_fraction!r} and validation_fraction={validation_fraction!r} "
            "together must be below 1, to leave something to train on; try 0.2 each."
        )

    @cache
    def split(hospital: str) -> tuple[Dataset, Dataset, Dataset]:
        patients = encode(read_patients(_file(path, hospital)))
        order = derive_rng(seed, "heart_disease", "split", hospital).permutation(len(patients))
        num_test = int(test_fraction * len(patients))
        num_validation = int(validation_fraction * len(patients))
        test, validation, train = np.split(order, [num_test, num_test + num_validation])
        return patients.take(train), patients.take(validation), patients.take(test)

    def load_partition(partition_id: int, num_partitions: int) -> ClientData:
        check_partition_id(partition_id, num_partitions, task="heart_disease")
        if num_partitions > len(HOSPITALS):
            raise DataError(
                f"heart_disease: {num_partitions} partitions, but there are {len(HOSPITALS)} hospitals; use "
                f"{len(HOSPITALS)} nodes, or the task breast_cancer, which deals one data set to any number."
            )
        train, validation, _ = split(HOSPITALS[partition_id])
        return ClientData(train=train, validation=validation)

    def load_test() -> Dataset:
        tests = [split(hospital)[2] for hospital in HOSPITALS]
        return Dataset(np.concatenate([t.x for t in tests]), np.concatenate([t.y for t in tests]))

    hidden = (16,) if model == "mlp" else ()
    return Task(
        name="heart_disease",
        model=nnx_model(lambda rngs: MLP(NUM_FEATURES, NUM_CLASSES, hidden=hidden, rngs=rngs)),
        loss=softmax_cross_entropy,
        metrics={"accuracy": accuracy},
        load_partition=load_partition,
        load_test=load_test if test_fraction > 0 else None,
        num_classes=NUM_CLASSES,
    )


def read_patients(file: Path) -> NDArray[np.float64]:
    """Return ``(n, 14)``, NaN where a value is missing (``?``; a blood pressure or cholesterol of 0).

    Raises
    ------
    DataError
        If the file does not read, or has a row of another length or without a diagnosis.
    """
    try:
        lines = file.read_text(encoding="ascii").split()
        rows = [[np.nan if cell == "?" else float(cell) for cell in line.split(",")] for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(
            f"heart_disease: {file} cannot be read ({error}); give UCI's processed files."
        ) from None
    if not rows or any(len(row) != NUM_COLUMNS or not row[-1] >= 0 for row in rows):
        raise DataError(
            f"heart_disease: {file} has a row without {NUM_COLUMNS} columns and a diagnosis, or none at all; "
            "give UCI's processed files."
        )
    patients = np.array(rows)
    for column in ZERO_IS_MISSING:
        patients[patients[:, column] == 0, column] = np.nan
    return patients


def encode(patients: NDArray[np.float64]) -> Dataset:
    """Return features ``(n, 31)`` and labels of patients ``(n, 14)``; a row depends on nothing but itself.

    Raises
    ------
    DataError
        If a category has a value that is none of its own.
    """
    features = []
    for column, (centre, spread) in NUMERIC.items():
        known = np.isfinite(patients[:, column])
        features += [np.where(known, (patients[:, column] - centre) / spread, 0.0), known]
    for column, values in CATEGORIES.items():
        cells = patients[:, column]
        strange = cells[np.isfinite(cells) & ~np.isin(cells, values)]
        if len(strange):
            raise DataError(
                f"heart_disease: column {column + 1} has the value {strange[0]:g}, but it is one of "
                f"{values}; give UCI's processed files."
            )
        features += [cells == value for value in values]
    return Dataset(np.stack(features, axis=1).astype(np.float32), (patients[:, -1] > 0).astype(np.int32))


def _file(path: str | None, hospital: str) -> Path:
    """Return a hospital's file.

    Raises
    ------
    DataError
        If it is not there; the message names a task that needs no files.
    """
    try:
        folder = data_path(path, "heart_disease", task="heart_disease")
    except DataError as error:
        raise DataError(f"{error} The task breast_cancer needs no files.") from None
    file = folder / f"processed.{hospital}.data"
    if not file.exists():
        raise DataError(
            f"heart_disease: there is no {file}, the data of {hospital}; give path= or set "
            "$FL_PLUGINS_DATA, or use the task breast_cancer, which needs no files."
        )
    return file
