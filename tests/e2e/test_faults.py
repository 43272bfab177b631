"""kill -9 of a rank, a worker and the coordinator, with the real trainer: the job ends SUCCEEDED with the same weights and the
same loss, bit for bit, as a run that nobody disturbed."""

import json
import os
import signal

import pytest
from cluster import wait_until
from jobs import tiny_job

STEPS = 30


def outcome(cluster, job_id):
    """What must not depend on faults: the losses of the last steps and the bytes of the adapter."""
    job = cluster.wait_for_state(job_id, "SUCCEEDED")
    folder = cluster.storage / "jobs" / job_id
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line.get("phase") == "train" and "loss" in line}
    return {
        "losses": [losses[step] for step in sorted(losses)][-5:],
        "last_step": max(losses),
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "evaluation": [(row["model"], row["length"], row["loss"]) for row in job["evaluations"]],
    }, job


@pytest.fixture(scope="module")
def undisturbed(source_dir, bin_dir, tmp_path_factory):
    from cluster import Cluster

    with Cluster(bin_dir, tmp_path_factory.mktemp("undisturbed") / "cluster") as cluster:
        result, job = outcome(cluster, cluster.submit(tiny_job(source_dir, "undisturbed", STEPS)))
        assert result["last_step"] == STEPS
        assert len(result["losses"]) == 5
        return result


def test_killed_rank(make_cluster, source_dir, undisturbed):
    with make_cluster() as cluster:
        job_id = cluster.submit(tiny_job(source_dir, "killed-rank", STEPS))
        cluster.wait_for_step(job_id, 12)
        os.kill(cluster.trainer_pids()[1], signal.SIGKILL)
        result, job = outcome(cluster, job_id)
        assert result == undisturbed
        assert [a["failure_class"] for a in job["attempts"]].count("INFRASTRUCTURE") == 1


def test_killed_worker_comes_back(make_cluster, source_dir, undisturbed):
    with make_cluster() as cluster:
        job_id = cluster.submit(tiny_job(source_dir, "killed-worker", STEPS))
        cluster.wait_for_step(job_id, 12)
        ranks = cluster.trainer_pids()
        cluster.workers["worker-1"].kill()
        wait_until(lambda: not set(ranks.values()) & set(cluster.trainer_pids().values()),
                   "the ranks of the attempt to end: one with its daemon, the other with its peer")
        cluster.start_worker("worker-1")
        result, _ = outcome(cluster, job_id)
        assert result == undisturbed


def test_killed_coordinator_keeps_the_attempt_running(make_cluster, source_dir, undisturbed):
    with make_cluster() as cluster:
        job_id = cluster.submit(tiny_job(source_dir, "killed-coordinator", STEPS))
        attempt = cluster.wait_for_step(job_id, 8)["attempt"]
        ranks = cluster.trainer_pids()
        cluster.server.kill()
        cluster.start_server()
        assert cluster.trainer_pids() == ranks, "the ranks must survive the coordinator"
        result, job = outcome(cluster, job_id)
        assert result == undisturbed
        assert job["attempt"] == attempt, "the running attempt must be adopted, not started again"


def test_acknowledged_job_survives_the_coordinator(make_cluster, source_dir):
    with make_cluster(workers=0) as cluster:
        job_id = cluster.submit(tiny_job(source_dir, "kept", STEPS))
        cluster.server.kill()
        cluster.start_server()
        assert cluster.job(job_id)["state"] == "QUEUED"
