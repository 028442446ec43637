from __future__ import annotations

import re
from pathlib import Path

import pytest

from speechquant.core.data_sets.source import Source
from speechquant.core.data_sets.splits import refuse_splits
from speechquant.core.errors import ManifestError


@pytest.mark.parametrize(
    ("names", "splits", "pattern"),
    [
        (["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"], "test, train", "train*"),
        (["test-000.tar", "train-000.tar", "train-001.tar"], "test, train", "train*.tar"),
        (["test.parquet", "train.parquet"], "test, train", "train*.parquet"),
        (["test-clean.tar", "test-other.tar"], "test-clean, test-other", "test-other*.tar"),
        (["cuts_dev.jsonl.gz", "cuts_train.jsonl.gz"], "dev, train", "cuts_train*.gz"),
        (["cuts_dev-clean-2.jsonl", "cuts_train-clean-5.jsonl"], "dev-clean, train-clean", "cuts_"),
    ],
)
def test_one_of_several_splits_must_be_named(names: list[str], splits: str, pattern: str) -> None:
    message = f"set: holds the splits {splits}; .*{re.escape(pattern)}"
    with pytest.raises(ManifestError, match=message):
        refuse_splits(Source("set", Path("set")), [Path("set") / name for name in names])


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["000.tar", "001.tar"],
        ["a.tar", "b.tar"],
        ["train_a.tar", "train_b.tar"],
        ["cuts.000000.jsonl.gz", "cuts.000001.jsonl.gz"],
        ["notes.parquet", "train.parquet"],
        ["cuts.jsonl"],
    ],
)
def test_files_of_one_set_are_read(names: list[str]) -> None:
    refuse_splits(Source("set", Path("set")), [Path("set") / name for name in names])
