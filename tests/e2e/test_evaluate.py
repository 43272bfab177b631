"""A model folder is measured through the service: `longspan evaluate`, real processes, no training."""

import json
import pathlib


def write_text(source_dir, folder):
    """Some kilobytes of the example corpus."""
    import gzip

    lines = gzip.open(source_dir / "deploy/examples/corpus/king-james-bible.jsonl.gz", "rt").readlines()
    text = json.loads(lines[0])["text"]
    path = folder / "text.txt"
    path.write_text(text[:6000])
    return path


def test_a_model_folder_is_measured_and_its_tables_are_shown(make_cluster, source_dir, tmp_path):
    text = write_text(source_dir, tmp_path)
    folder = tmp_path / "longbench"
    folder.mkdir()
    example = {"input": "Who?", "context": "In the beginning", "answers": ["God"], "all_classes": None, "_id": "1"}
    (folder / "hotpotqa.jsonl").write_text(json.dumps(example) + "\n")
    with make_cluster(workers=1) as cluster:
        shown = cluster.cli(
            "evaluate", source_dir / "deploy/examples/tiny-base", "--data", text, "--lengths", "128,256",
            "--passkey", "256", "--longbench", folder, "--set", "evaluation.passkey.depths=2",
            "--set", "evaluation.passkey.trials=2", "--name", "measure-tiny",
        )  # fmt: skip
        assert "Perplexity by length" in shown.stdout and "Scores (0 to 100" in shown.stdout, shown.stdout
        assert "passkey" in shown.stdout and "longbench/hotpotqa" in shown.stdout
        job = cluster.items("describe", "measure-tiny")[0]
        assert job["state"] == "SUCCEEDED"
        assert {row["protocol"] for row in job["evaluations"]} == {"windows", "passkey", "longbench/hotpotqa"}
        assert {row["model"] for row in job["evaluations"]} == {"base"}
        work = pathlib.Path(job["folder"])
        assert (work / "evaluation.json").exists() and (work / "passkey-base.svg").exists()
        assert not any((work / name).exists() for name in ("checkpoints", "adapter", "merged"))
        cluster.cli("download", "measure-tiny", "--to", tmp_path / "got")
        assert (tmp_path / "got" / "evaluation.md").read_text() == (work / "evaluation.md").read_text()
        assert (tmp_path / "got" / "evaluation" / "base" / "longbench" / "hotpotqa.jsonl").exists()


def test_an_evaluation_without_text_needs_no_data(make_cluster, source_dir):
    with make_cluster(workers=1) as cluster:
        shown = cluster.cli(
            "evaluate", source_dir / "deploy/examples/tiny-base", "--passkey", "200",
            "--set", "evaluation.passkey.depths=1", "--set", "evaluation.passkey.trials=1",
        )  # fmt: skip
        assert "Scores (0 to 100" in shown.stdout and "Perplexity" not in shown.stdout
        assert cluster.items("describe", "evaluate-tiny-base")[0]["state"] == "SUCCEEDED"


def test_a_killed_trainer_goes_on_with_the_task_that_was_not_whole(make_cluster, source_dir):
    with make_cluster(workers=1) as cluster:
        cluster.cli(
            "evaluate", source_dir / "deploy/examples/tiny-base", "--passkey", "200,1200,1300", "--no-wait",
            "--set", "evaluation.passkey.depths=3", "--set", "evaluation.passkey.trials=4", "--name", "killed",
        )  # fmt: skip
        from cluster import wait_until
        import os
        import signal

        job = cluster.items("describe", "killed")[0]
        first = pathlib.Path(job["folder"]) / "evaluation" / "base" / "passkey-200.json"
        wait_until(first.exists, "the first task to be whole")
        pids = cluster.trainer_pids()
        written = first.stat().st_mtime_ns
        if 0 in pids:
            os.kill(pids[0], signal.SIGKILL)
        job = cluster.wait_for_state("killed", "SUCCEEDED")
        assert first.stat().st_mtime_ns == written
        assert len(job["evaluations"]) == 3
