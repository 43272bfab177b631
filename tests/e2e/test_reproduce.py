"""The reproduction of the paper's tables (deploy/examples/reproduce) runs through the service, and a second start runs nothing again."""

import csv
import os
import shutil
import subprocess
import sys


def test_the_small_reproduction_writes_its_tables_and_can_be_started_again(make_cluster, bin_dir, source_dir, tmp_path):
    folder = source_dir / "deploy/examples/reproduce"
    shutil.copy(folder / "README.md", tmp_path / "README.md")
    with make_cluster(workers=2) as cluster:
        def reproduce():
            environment = {**os.environ, "LONGSPAN_ADDRESS": f"127.0.0.1:{cluster.grpc_port}", "PATH": f"{bin_dir}:{os.environ['PATH']}"}
            command = [sys.executable, "-B", folder / "reproduce.py", "--smoke", "--to", tmp_path]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
            return (tmp_path / "README.md").read_text(), (tmp_path / "results.csv").read_text()

        readme, results = reproduce()
        rows = list(csv.DictReader(results.splitlines()))
        settings = {(row["method"], row["attention"]) for row in rows}
        assert len(rows) == 2 * len(settings) and {row["seed"] for row in rows} == {"1", "2"}
        # At one length: full and LongLoRA with three attentions each, and three forms of LoRA with S2.
        assert len(settings) == 9, settings
        assert all(float(row["perplexity"]) < float(row["perplexity_rescaled_untrained"]) for row in rows), results
        for setting in ("full fine-tuning", "LoRA rank 8 + norms", "LongLoRA: LoRA rank 8 + norms + embedding"):
            values = [float(row["perplexity"]) for row in rows if (row["method"], row["attention"]) == (setting, "s2")]
            cell = f"{sum(values) / 2:.2f} ({min(values):.2f} – {max(values):.2f})"
            assert any(line.startswith(f"| {setting} |") and line.endswith(f"| {cell} |") for line in readme.splitlines()), (cell, readme)

        jobs = len(cluster.items("list"))
        assert reproduce() == (readme, results)
        assert len(cluster.items("list")) == jobs
