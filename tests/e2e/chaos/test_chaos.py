"""A cluster under load, and everything that may happen to its processes and connections happens at random.

The short form runs with the other tests. The long one: LONGSPAN_CHAOS_SECONDS=600. LONGSPAN_CHAOS_SEED chooses the schedule,
LONGSPAN_CHAOS_REPORT a file for what was done. README.md says more.
"""

import collections
import os
import pathlib
import socket
import time

import checks
import faults
from chaos_cluster import ChaosCluster
from cluster import wait_until
from load import STEPS_MAX, Load, chaos_job

SHORT_SECONDS = 12
SETTLE_SECONDS = 120


def test_every_job_ends_as_if_nothing_had_happened(bin_dir, tmp_path):
    seed = int(os.environ.get("LONGSPAN_CHAOS_SEED", "1"))
    seconds = float(os.environ.get("LONGSPAN_CHAOS_SECONDS", SHORT_SECONDS))
    short = seconds <= SHORT_SECONDS
    begin = time.monotonic()
    with ChaosCluster(bin_dir, tmp_path / "cluster", workers=4, slots=2, trainer="longspan-fake-trainer",
                      worker_flags=["--leave-grace-seconds", "2"]) as cluster:
        reference = undisturbed_losses(cluster)
        open_files = checks.open_file_counts(cluster)
        load = Load(cluster, seed, jobs_at_once=4 if short else 6, jobs_max=6 if short else 100_000)
        chaos = faults.Chaos(cluster)
        load.start()
        try:
            chaos.run(faults.schedule(seed, seconds, mean_distance=0.8 if short else 1.2), load.check)
        finally:
            load.stop()
            cluster.heal()
            print("\n".join(chaos.log))
        settle(cluster, chaos, load)
        jobs = {job_id: cluster.job(job_id) for job_id in load.steps}
        check_jobs(cluster, load, jobs, reference)
        wait_until(lambda: not checks.rank_folders(cluster), "the daemons to have uploaded every log", 30)
        wait_until(lambda: not checks.leaked_files(cluster, open_files) or print(checks.leaked_files(cluster, open_files)),
                   "descriptors of server and daemons to be back at their level", 60)
    check_nothing_is_left(cluster)
    failed_attempts = checks.check_database(cluster.folder / "server" / "longspan.db")
    report(seed, seconds, time.monotonic() - begin, chaos, load, jobs, failed_attempts)


def undisturbed_losses(cluster):
    job_id = cluster.submit(chaos_job("undisturbed", STEPS_MAX, slots=2))
    cluster.wait_for_state(job_id, "SUCCEEDED")
    reference = checks.losses(cluster.storage / "jobs" / job_id)
    assert len(reference) == STEPS_MAX and len(set(reference)) == STEPS_MAX
    wait_until(lambda: not cluster.rank_processes() and not checks.rank_folders(cluster), "the ranks to be forgotten", 30)
    return reference


def settle(cluster, chaos, load):
    """No faults any more: every job ends, and every rank with it."""
    def ended():
        chaos.check_processes()
        return load.finish()

    try:
        wait_until(ended, "every job to end", SETTLE_SECONDS)
    except AssertionError:
        print(cluster.cli("list", "--limit", "100000").stdout)
        raise
    wait_until(lambda: not cluster.rank_processes(), "the last ranks to end", 30)


def check_jobs(cluster, load, jobs, reference):
    for job_id, job in jobs.items():
        folder = cluster.storage / "jobs" / job_id
        checks.check_attempts_do_not_overlap(folder)
        if job_id in load.cancelled or (job_id in load.perhaps_cancelled and job["state"] == "CANCELLED"):
            assert job["state"] == "CANCELLED", f"{job_id} was cancelled and is {job['state']}"
            continue
        assert job["state"] == "SUCCEEDED", f"{job_id} is {job['state']}: {job['status_message']}\n{job['attempts']}"
        checks.check_succeeded_job(job, folder, load.steps[job_id], reference)


def check_nothing_is_left(cluster):
    wait_until(lambda: not checks.processes_of(cluster), f"no process to be left: {checks.processes_of(cluster)}", 10)
    for port in (cluster.grpc_port, cluster.http_port):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))


def report(seed, seconds, took, chaos, load, jobs, failed_attempts):
    states = collections.Counter(job["state"] for job in jobs.values())
    attempts = sum(int(job["attempt"]) for job in jobs.values())
    rows = sorted(chaos.done.items(), key=lambda row: -row[1]) + sorted(load.done.items(), key=lambda row: -row[1])
    text = "\n".join([
        f"seed {seed}, {seconds:.0f} s of faults, {took:.0f} s in all: {sum(chaos.done.values())} faults; {len(jobs)} jobs "
        f"({', '.join(f'{count} {state}' for state, count in states.items())}) in {attempts} attempts; attempts by failure "
        f"class (0: none): {failed_attempts}",
        "", "| what | times |", "| --- | --- |", *(f"| {kind} | {count} |" for kind, count in rows)])
    print(text)
    if path := os.environ.get("LONGSPAN_CHAOS_REPORT"):
        pathlib.Path(path).write_text(text + "\n")
