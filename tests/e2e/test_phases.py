"""Pause with resume, and cancel, in every phase of a job: the fake trainer makes each phase last. All cases run at once, as jobs
of one cluster; each is a test of its own."""

import concurrent.futures
import json

import pytest
from cluster import Cluster, wait_until
from jobs import fake_job

STEPS = 10
LONG_MS = 3000

# phase: the labels that make it last
PHASES = {
    "prepare": {"fake.prepare_ms": str(LONG_MS)},
    "starting": {"fake.start_ms": str(LONG_MS)},
    "train": {"fake.step_ms": "300"},
    "checkpoint": {"fake.slow_checkpoint_ms": str(LONG_MS)},
    "evaluate": {"fake.evaluate_ms": str(LONG_MS // 6)},
    "export": {"fake.export_ms": str(LONG_MS // 2)},
}
CASES = [(action, phase) for action in ("pause", "cancel") for phase in PHASES]


def is_in(phase, cluster, job_id):
    """The job's view when it is in this phase, and None otherwise."""
    job = cluster.job(job_id)
    assert job["state"] not in ("SUCCEEDED", "FAILED"), f"{job['state']} before {phase} was seen: {job['status_message']}"
    if phase == "starting":
        return job if job["state"] == "STARTING" and int(job["attempt"]) == 2 else None
    if job["state"] != "RUNNING":
        return None
    step = int((job.get("progress") or {}).get("step", 0))
    if phase == "train":
        return job if 1 <= step < 5 else None
    if phase == "checkpoint":
        # It saves every five steps, and tells of the checkpoint only when it is whole.
        saved = list((cluster.storage / "jobs" / job_id / "checkpoints").glob("step-*"))
        return job if step == 5 and not saved else None
    return job if job["phase"] == phase.upper() else None


def losses(cluster, job_id):
    lines = [json.loads(line) for line in (cluster.storage / "jobs" / job_id / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "each step once"
    return [line["loss"] for line in lines]


def play(cluster, action, phase):
    """Returns what is compared with an undisturbed run; None for a cancelled job."""
    job_id = cluster.submit(fake_job(f"{action}-{phase}", steps=STEPS, slots=2, **{"fake.step_ms": "20", **PHASES[phase]}))
    before = wait_until(lambda: is_in(phase, cluster, job_id), f"{job_id} to be in {phase}")
    cluster.cli(action, job_id)
    if action == "cancel":
        cluster.wait_for_state(job_id, "CANCELLED")
        wait_until(lambda: not [key for key in cluster.rank_processes() if key[0] == job_id], "its ranks to end")
        return None
    paused = cluster.wait_for_state(job_id, "PAUSED")
    assert paused["attempt"] == before["attempt"]
    wait_until(lambda: not [key for key in cluster.rank_processes() if key[0] == job_id], "a paused job to hold no rank")
    cluster.cli("resume", job_id)
    job = cluster.wait_for_state(job_id, "SUCCEEDED")
    assert not [a for a in job["attempts"] if a["failure_class"] != "UNSPECIFIED"], "a pause is no failure"
    return {"losses": losses(cluster, job_id), "evaluations": job["evaluations"],
            "artifacts": sorted(artifact["kind"] for artifact in job["artifacts"])}


@pytest.fixture(scope="module")
def played(bin_dir, tmp_path_factory):
    """By (action, phase): a future of play()."""
    folder = tmp_path_factory.mktemp("phases") / "cluster"
    with Cluster(bin_dir, folder, workers=3, slots=8, trainer="longspan-fake-trainer") as cluster:
        with concurrent.futures.ThreadPoolExecutor(len(CASES) + 1) as threads:
            futures = {case: threads.submit(play, cluster, *case) for case in CASES}
            undisturbed = cluster.submit(fake_job("undisturbed", steps=STEPS, slots=2))
            job = cluster.wait_for_state(undisturbed, "SUCCEEDED")
            futures["undisturbed"] = {"losses": losses(cluster, undisturbed), "evaluations": job["evaluations"],
                                      "artifacts": sorted(artifact["kind"] for artifact in job["artifacts"])}
            concurrent.futures.wait([future for future in futures.values() if not isinstance(future, dict)])
        yield futures


@pytest.mark.parametrize("phase", PHASES)
def test_pause_and_resume_end_as_if_nothing_had_happened(played, phase):
    assert played["pause", phase].result() == played["undisturbed"]


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_ends_the_job_and_its_ranks(played, phase):
    assert played["cancel", phase].result() is None
