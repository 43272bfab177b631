"""The benchmarks of tests/bench run, in small: exit code 0, and the keys of the JSON that the tables are made of."""

import json
import os
import subprocess
import sys

import pytest

SECONDS_MAX = 300


@pytest.fixture
def measured(source_dir, bin_dir, tmp_path):
    """measured("growth", ...) gives the rows that the script wrote; README.md and results/ stay as they are."""

    def run(name, *flags):
        readme = source_dir / "tests" / "bench" / "README.md"
        before, out = readme.read_bytes(), tmp_path / f"{name}.json"
        done = subprocess.run(
            [sys.executable, "-B", source_dir / "tests" / "bench" / f"{name}.py", "--model", "small", "--out", out, *flags],
            env={**os.environ, "LONGSPAN_BIN_DIR": str(bin_dir)}, capture_output=True, text=True, timeout=SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert "| tokens |" in done.stdout and readme.read_bytes() == before
        result = json.loads(out.read_text())
        assert {"machine", "model", "rounds", "rows"} <= result.keys()
        return result["rows"]

    return run


def test_against_transformers(measured):
    [row] = measured("against_transformers", "--contexts", "256", "--rounds", "1", "--threads", "1")
    assert row["sides"].keys() == {"their_checkpointing", "their_plain", "our_full", "our_s2", "our_full_lean", "our_s2_lean"}
    for side in row["sides"].values():
        assert len(side["steps"]) == 2
        assert min(side[key] for key in ("seconds", "processor_seconds", "activation_bytes", "resident_peak_bytes")) > 0
    for base in ("their_checkpointing", "their_plain"):
        assert row[f"processor_ratio_to_{base}"]["our_full"]["median"] > 0
    assert row["worst_loss_difference"] < 1e-5
    assert row["sides"]["our_full_lean"]["activation_bytes"] < row["sides"]["their_plain"]["activation_bytes"]


def test_growth(measured):
    rows = measured("growth", "--contexts", "256", "512", "1024", "--rounds", "1", "--threads", "1")
    assert [(row["series"], row["context"]) for row in rows] == [(series, n) for series in ("lean", "free") for n in (256, 512, 1024)]
    for row in rows:
        assert min(row[key] for key in ("tokens_per_second", "peak_bytes", "planned_peak_bytes", "bytes_per_token")) > 0
        assert 0 <= row["host_wait_share"] <= 1 and ("growth_bytes_per_token" in row) == (row["context"] > 256)
    assert all(row["host_bytes"] > 0 for row in rows if row["series"] == "lean")


def test_scaling(measured):
    rows = measured("scaling", "--contexts", "256", "--ranks", "1", "2", "--rounds", "1", "--global-batch", "2")
    assert [(row["method"], row["ranks"]) for row in rows] == [("longlora", 1), ("longlora", 2), ("full", 1), ("full", 2)]
    for row in rows:
        assert (row["allreduce_bytes"] > 0) == (row["seconds_allreduce_busy"] > 0) == (row["ranks"] > 1)
        assert row["overlap_share"] is None if row["ranks"] == 1 else 0 <= row["overlap_share"] <= 1


def test_memory_policies(measured):
    rows = measured("memory_policies", "--contexts", "256", "--threads", "1", "--keep", "input", "residual")
    assert len({(row["keep"], row["checkpoint_every"], row["place"]) for row in rows}) == len(rows) == 12


def test_gpu_on_a_cpu(measured):
    """What of it does not need a GPU, and that rows that are there stay."""
    flags = ("--device", "cpu", "--rounds", "1", "--threads", "1", "--contexts", "256")
    row = measured("gpu", *flags)["s2-256"]
    assert min(row[side][key] for side in ("ours", "theirs") for key in ("seconds", "tokens_per_second")) > 0
    assert measured("gpu", *flags, "512").keys() == {"s2-256", "s2-512"}
    assert measured("gpu", *flags)["s2-256"] == row


def test_service(source_dir, bin_dir, tmp_path):
    readme, out = source_dir / "server" / "README.md", tmp_path / "service.json"
    before = readme.read_bytes()
    done = subprocess.run(
        [sys.executable, "-B", source_dir / "tests/bench/service.py", "--bin", bin_dir, "--quick", "--out", out],
        capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "| submits |" in done.stdout and readme.read_bytes() == before
    [row] = json.loads(out.read_text())["rows"]
    assert row["fill"]["latency_ms"]["count"] == row["submit, planned"]["latency_ms"]["count"] - 68 == 32
    assert row["steady"]["workers"]["news"] > 0 and row["steady"]["workers"]["failures"] == {}
    assert row["watched, end"]["watchers"]["progress_delay_ms"]["count"] > 0
