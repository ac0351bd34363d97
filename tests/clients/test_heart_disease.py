"""The task of four hospitals, on files written here and, where they are, on the real ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from clients.tasks.heart_disease import HOSPITALS, NUM_FEATURES, encode, heart_disease, read_patients
from fl_plugins.errors import ConfigError, DataError

DATA = Path(os.environ.get("FL_PLUGINS_DATA", Path(__file__).parents[3] / "shared" / "data"))
KNOWN = "55,1,4,130,230,0,1,140,1,1,2,1,7,2"
GAPS = "55,?,4,0,0,?,1,?,1,1,?,?,?,0"


def write(folder, hospital, *lines):
    (folder / f"processed.{hospital}.data").write_text("\n".join(lines) + "\n")


def test_a_missing_value_is_zeros_and_a_known_one_is_not(tmp_path):
    write(tmp_path, "va", KNOWN, GAPS)
    data = encode(read_patients(tmp_path / "processed.va.data"))
    assert data.x.shape == (2, NUM_FEATURES)
    assert list(data.y) == [1, 0]
    known, gaps = data.x
    # At the centre of every scale: values 0, six "known" flags, one category of each of seven.
    assert known.sum() == 6 + 7
    # Known: age, ST depression; chest pain, ECG, angina.
    assert gaps.sum() == 2 + 3
    assert np.isfinite(data.x).all()


def test_a_hospital_reads_its_own_file_only_and_no_other_changes_its_features(tmp_path):
    write(tmp_path, "hungarian", *[KNOWN, GAPS] * 5)
    task = heart_disease(path=str(tmp_path))
    alone = task.load_partition(1, 4)
    assert (len(alone.train), len(alone.validation)) == (8, 2)
    write(tmp_path, "cleveland", *["90,0,1,200,500,1,2,60,0,6,3,3,3,0"] * 9)
    again = heart_disease(path=str(tmp_path)).load_partition(1, 4)
    assert again.train.x.tobytes() == alone.train.x.tobytes()
    with pytest.raises(DataError, match=r"processed\.va\.data.*breast_cancer"):
        task.load_partition(3, 4)


def test_building_the_task_needs_no_data_and_training_says_what_to_use_instead(monkeypatch):
    monkeypatch.delenv("FL_PLUGINS_DATA", raising=False)
    task = heart_disease()
    assert task.load_test is None
    with pytest.raises(DataError, match="breast_cancer"):
        task.load_partition(0, 4)
    with pytest.raises(DataError, match="5 partitions, but there are 4 hospitals"):
        task.load_partition(0, 5)


@pytest.mark.parametrize(
    "line", ["1,2,3", KNOWN.replace("55", "x"), KNOWN[:-1] + "?", "", KNOWN.replace(",4,", ",9,")]
)
def test_a_file_of_another_kind_is_refused(tmp_path, line):
    write(tmp_path, "va", line)
    with pytest.raises(DataError, match="UCI's processed files"):
        heart_disease(path=str(tmp_path)).load_partition(3, 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "cnn"}, "one of logistic, mlp"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "together must be below 1"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_parameters_are_refused_at_construction(parameters, message):
    with pytest.raises(ConfigError, match=message):
        heart_disease(**parameters)


@pytest.mark.skipif(not (DATA / "heart_disease").is_dir(), reason=f"no heart_disease in {DATA}")
def test_the_four_hospitals_have_their_920_patients_once_each(monkeypatch):
    monkeypatch.setenv("FL_PLUGINS_DATA", str(DATA))
    task = heart_disease(test_fraction=0.2)
    parts = [task.load_partition(i, 4) for i in range(len(HOSPITALS))]
    sizes = [len(part.train) + len(part.validation) for part in parts]
    assert sum(sizes) + len(task.load_test()) == 920
    assert [round(size / 0.8) for size in sizes] == pytest.approx([303, 294, 123, 200], abs=2)
