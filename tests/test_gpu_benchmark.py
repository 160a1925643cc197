"""The accelerator benchmark runs on a CPU, on a tiny model."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks import gpu


def test_gpu_benchmark_on_the_cpu(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        gpu.main(["--device", "cpu", "--small", "--out", str(tmp_path / "report.json")])
    finally:
        torch.set_num_threads(before)
    report = json.loads((tmp_path / "report.json").read_text())
    for entry in report["agreement"].values():
        assert entry["shares_prefix"]
    assert report["agreement"]["float32"]["in place against copied"] < 1e-4
    assert report["agreement"]["bfloat16"]["device against cpu float32"] < 0.1
    grid = report["grid 3 x 20"]
    assert grid["ideal"] == pytest.approx(20 * 64 / (32 + 20 * 32))
    assert grid["plain / oracle"] > 0
    assert report["large grid"]["n"] == 8
    assert report["large grid"]["sigma_1"] > 0
