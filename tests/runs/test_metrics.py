"""metrics.jsonl."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from splatgen.runs.metrics import Metrics, read_metrics, rewind_metrics


def test_metrics_round_trip(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        metrics.write({"step": 1, "loss": math.nan, "reward/é": -math.inf, "list": [1.5, math.inf]})
        assert len(path.read_bytes().splitlines()) == 1  # flushed at once
        metrics.write({"step": 2, "loss": np.float64(0.1), "count": torch.tensor(5), "text": "a\nb"})
    with Metrics(path) as metrics:
        metrics.write({"step": 3})
    assert read_metrics(path) == [
        {"step": 1, "loss": None, "reward/é": None, "list": [1.5, None]},
        {"step": 2, "loss": 0.1, "count": 5, "text": "a\nb"},
        {"step": 3},
    ]


@pytest.mark.parametrize("tail", [b'{"st', b"\x00\x00\x00", b'{"step": 9}', b"\xff\xfe", b"\x00\x00\n"])
def test_metrics_after_a_crash(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(path) == [{"step": 1}]
    if not tail.endswith(b"\n"):
        with Metrics(path) as metrics:
            metrics.write({"step": 2})
        assert read_metrics(path) == [{"step": 1}, {"step": 2}]


def test_damaged_metrics_name_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_metrics(path)
    path.write_bytes(b"[1]\n{}\n")
    with pytest.raises(ValueError, match="line 1 is no JSON object"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "none")


def test_rewind_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"note": "no step"}\n{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    rewind_metrics(path, 2)
    assert path.read_text() == '{"note": "no step"}\n{"step": 1}\n{"step": 2}\n'
