"""Recovery with the fake trainer: what is adopted, what is started again and from where, who is named, and how long it takes.

LONGSPAN_RECOVERY_REPORT names a file for the measured seconds.
"""

import contextlib
import json
import os
import signal
import stat
import time

import pytest
from cluster import wait_until
from jobs import fake_job

LEASE_SECONDS = 4  # of Cluster.SERVER_TIMERS
PROGRESS_FLAGS = ["--progress-deadline-seconds", "8", "--first-progress-deadline-seconds", "8"]


@pytest.fixture(scope="module")
def measured():
    """measured("what", seconds); the rows of all tests together go to a file."""
    rows = []
    yield lambda what, seconds: rows.append((what, seconds))
    if path := os.environ.get("LONGSPAN_RECOVERY_REPORT"):
        with open(path, "a") as report:
            report.writelines(f"{what}\t{seconds:.2f}\n" for what, seconds in rows)


@pytest.fixture
def fake_cluster(make_cluster):
    return lambda **options: make_cluster(trainer="longspan-fake-trainer", **options)


def folder_of(cluster, job_id):
    return cluster.storage / "jobs" / job_id


def losses(cluster, job_id):
    lines = [json.loads(line) for line in (folder_of(cluster, job_id) / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step once"
    return [line["loss"] for line in lines]


def steps_done(cluster, job_id):
    """(attempt, rank, step) in the order in which they were done."""
    text = (folder_of(cluster, job_id) / "steps.log").read_text()
    return [tuple(map(int, line.split())) for line in text.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(bin_dir, tmp_path_factory):
    """Losses of a run that nothing happened to; its first n are those of any run of n steps."""
    from cluster import Cluster

    with Cluster(bin_dir, tmp_path_factory.mktemp("undisturbed") / "cluster", trainer="longspan-fake-trainer") as cluster:
        job_id = cluster.submit(fake_job("undisturbed", steps=600, step_ms=0))
        cluster.wait_for_state(job_id, "SUCCEEDED")
        return losses(cluster, job_id)


def wait_for_attempt_running(cluster, job_id, attempt):
    def running():
        job = cluster.job(job_id)
        return int(job["attempt"]) >= attempt and job["state"] in ("RUNNING", "SUCCEEDED") and job
    return wait_until(running, f"attempt {attempt} of {job_id} to run")


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pass_seconds(seconds):
    """For what a test is about itself: that time passes."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, "time to pass")


# ---- the coordinator ----


def other_version_of(program, folder):
    """The program at another path, and telling another version."""
    folder.mkdir()
    code = program.read_bytes()
    assert b"0.1.0\0" in code
    copy = folder / program.name
    copy.write_bytes(code.replace(b"0.1.0\0", b"0.1.9\0"))
    copy.chmod(copy.stat().st_mode | stat.S_IXUSR)
    return copy


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM", "another version"])
def test_running_attempts_outlive_the_coordinator(fake_cluster, undisturbed, measured, how):
    with fake_cluster() as cluster:
        job_id = cluster.submit(fake_job("adopted", steps=150))
        attempt = cluster.wait_for_step(job_id, 20)["attempt"]
        ranks = cluster.trainer_pids()
        begin = time.monotonic()
        if how == "SIGTERM":
            assert cluster.server.stop() == 0
        else:
            cluster.server.kill()
        if how == "another version":
            upgraded = other_version_of(cluster.bin / "longspan-server", cluster.folder / "upgraded")
            cluster.start_server(program=upgraded)
            assert "longspan-server 0.1.9 serves" in (cluster.folder / "server.log").read_text()
        else:
            cluster.start_server()
        measured(f"coordinator ended by {how}: until it answers again", time.monotonic() - begin)
        assert cluster.trainer_pids() == ranks, "the ranks must survive the coordinator"
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert job["attempt"] == attempt, "adopted, not started again"
        assert losses(cluster, job_id) == undisturbed[:150]
        for rank in (0, 1):
            assert [step for _, r, step in steps_done(cluster, job_id) if r == rank] == list(range(1, 151)), "no step twice"


# ---- daemons ----


def test_restarted_worker_says_at_once_that_its_ranks_are_lost(fake_cluster, undisturbed, measured):
    """Long before its lease runs out."""
    with fake_cluster(workers=1) as cluster:
        job_id = cluster.submit(fake_job("lost", steps=150, slots=1))
        attempt = int(cluster.wait_for_step(job_id, 20)["attempt"])
        begin = time.monotonic()
        cluster.workers["worker-0"].kill()
        cluster.start_worker("worker-0")
        job = wait_for_attempt_running(cluster, job_id, attempt + 1)
        seconds = time.monotonic() - begin
        measured("kill -9 of a worker that comes back: until the next attempt runs", seconds)
        assert seconds < LEASE_SECONDS
        failed = next(a for a in job["attempts"] if int(a["number"]) == attempt)
        assert failed["message"] == "rank 0 was lost: the daemon of worker worker-0 restarted"
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert losses(cluster, job_id) == undisturbed[:150]


def test_lost_worker_is_named_though_its_peers_told_first(fake_cluster, measured):
    """The rank on the other worker loses its connection and says so at once; that is no reason to blame it."""
    with fake_cluster() as cluster:
        job_id = cluster.submit(fake_job("named", steps=400))
        job = cluster.wait_for_step(job_id, 20)
        attempt, worker = int(job["attempt"]), job["attempts"][-1]["ranks"][1]["worker_id"]
        peer = cluster.trainer_pids()[0]
        begin = time.monotonic()
        cluster.workers[worker].kill()
        wait_until(lambda: peer not in cluster.trainer_pids().values(), "the peer of the lost rank to end")
        measured("kill -9 of a worker: until the peers of its rank have ended", time.monotonic() - begin)
        cluster.start_worker(worker)
        job = wait_for_attempt_running(cluster, job_id, attempt + 1)
        failed = next(a for a in job["attempts"] if int(a["number"]) == attempt)
        assert failed["message"] == f"rank 1 was lost: the daemon of worker {worker} restarted"


def test_ranks_of_a_frozen_daemon_end_with_its_lease(fake_cluster, measured):
    with fake_cluster(workers=1) as cluster:
        job_id = cluster.submit(fake_job("frozen", steps=100000, slots=1))
        cluster.wait_for_step(job_id, 5)
        ranks = set(cluster.trainer_pids().values())
        begin = time.monotonic()
        with stopped(cluster.workers["worker-0"].pid):
            # A dead child of a stopped parent stays in the list of processes, but has no command line any more.
            wait_until(lambda: not ranks & set(cluster.trainer_pids().values()), "the rank to end without its daemon", 20)
            seconds = time.monotonic() - begin
        measured("SIGSTOP of a daemon: until its ranks have ended by themselves", seconds)
        assert seconds < LEASE_SECONDS + 1


def test_stopped_rank_wakes_without_its_daemon_and_knows_that_its_lease_is_over(fake_cluster):
    """What the daemon had told it before both were stopped lies unread in its pipe, and must not count from the moment of reading."""
    with fake_cluster(workers=1) as cluster:
        job_id = cluster.submit(fake_job("sleeper", steps=100000, slots=1))
        cluster.wait_for_step(job_id, 5)
        rank = cluster.trainer_pids()[0]
        daemon, rank = cluster.workers["worker-0"].pid, cluster.trainer_pids()[0]
        with contextlib.ExitStack() as daemon_stopped:
            with stopped(rank):
                pass_seconds(2)  # the daemon goes on telling it of its lease
                daemon_stopped.enter_context(stopped(daemon))
                pass_seconds(LEASE_SECONDS)
                done = len(steps_done(cluster, job_id))
            wait_until(lambda: rank not in cluster.trainer_pids().values(), "the rank to end", 5)
            assert len(steps_done(cluster, job_id)) <= done + 1, "it may finish the step it is in, and do no other"


# ---- ranks ----


def test_peers_of_a_dead_rank_end_and_the_gang_starts_again(fake_cluster, undisturbed, measured):
    with fake_cluster(workers=3) as cluster:
        job_id = cluster.submit(fake_job("gang", steps=150, slots=3))
        attempt = int(cluster.wait_for_step(job_id, 20)["attempt"])
        ranks = cluster.trainer_pids()
        begin = time.monotonic()
        os.kill(ranks[2], signal.SIGKILL)
        wait_until(lambda: not set(ranks.values()) & set(cluster.trainer_pids().values()), "every rank of the gang to end")
        ended = time.monotonic() - begin
        job = wait_for_attempt_running(cluster, job_id, attempt + 1)
        measured("kill -9 of a rank: until its peers have ended", ended)
        measured("kill -9 of a rank: until the next attempt runs", time.monotonic() - begin)
        assert ended < 5
        failed = next(a for a in job["attempts"] if int(a["number"]) == attempt)
        assert failed["message"].startswith("rank 2 on ") and "signal 9" in failed["message"]
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert losses(cluster, job_id) == undisturbed[:150]


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_rank_is_found_and_named_and_the_gang_starts_again(fake_cluster, undisturbed, measured, rank):
    with fake_cluster(server_flags=PROGRESS_FLAGS) as cluster:
        job_id = cluster.submit(fake_job("stopped", steps=100, step_ms=100, **{"fake.expect_seconds": "1"}))
        job = cluster.wait_for_step(job_id, 20)
        attempt = int(job["attempt"])
        begin = time.monotonic()
        with stopped(cluster.trainer_pids()[rank]):
            job = wait_for_attempt_running(cluster, job_id, attempt + 1)
        measured(f"SIGSTOP of rank {rank} (progress deadline 8 s): until the next attempt runs", time.monotonic() - begin)
        failed = next(a for a in job["attempts"] if int(a["number"]) == attempt)
        where = next(r["worker_id"] for r in failed["ranks"] if int(r["rank"]) == rank)
        assert failed["message"].startswith("no progress for "), failed
        assert f"; rank {rank} on {where} did not do its part of step" in failed["message"], failed
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert losses(cluster, job_id) == undisturbed[:100]


def test_failing_rank_is_named_with_the_end_of_its_log(fake_cluster):
    with fake_cluster(workers=3) as cluster:
        job_id = cluster.submit(fake_job("named", slots=3, **{
            "fake.fail_at_step": "7", "fake.fail_rank": "2", "fake.exit_code": "10"}))
        job = cluster.wait_for_state(job_id, "FAILED")
        message = job["status_message"]
        assert message.startswith("rank 2 on worker-") and "told to fail at step 7" in message
        assert "The last lines of its log:\n" in message and "rank 2: fails at step 7 with exit code 10" in message


@pytest.mark.parametrize(("exit_code", "attempts_failed", "state", "reason"), [
    (30, 1, "SUCCEEDED", "INFRASTRUCTURE"), (137, 1, "SUCCEEDED", "INFRASTRUCTURE"), (70, 1, "SUCCEEDED", "INTERNAL"),
    (10, 1, "FAILED", "USER"), (20, 1, "FAILED", "RESOURCE")])
def test_failure_class_decides_about_trying_again(fake_cluster, exit_code, attempts_failed, state, reason):
    """The trainer fails in the attempt after prepare, and would go well in the next."""
    with fake_cluster(workers=1) as cluster:
        job_id = cluster.submit(fake_job("class", slots=1, **{
            "fake.fail_at_step": "12", "fake.exit_code": str(exit_code), "fake.fail_attempt": "2"}))
        job = cluster.wait_for_state(job_id, state)
        classes = [a["failure_class"] for a in job["attempts"] if a["failure_class"] != "UNSPECIFIED"]
        assert classes == [reason] * attempts_failed
        if state == "FAILED":
            assert job["reason"] == reason


def test_three_attempts_without_a_new_step_are_the_last(fake_cluster):
    with fake_cluster(workers=1) as cluster:
        job_id = cluster.submit(fake_job("stuck", slots=1, **{"fake.fail_at_step": "7", "fake.exit_code": "30"}))
        job = cluster.wait_for_state(job_id, "FAILED")
        assert job["reason"] == "NO_PROGRESS" and "told to fail at step 7" in job["status_message"]
        # One that prepares, one that came to step 6, and three that came no further.
        assert int(job["attempt"]) == 5


# ---- checkpoints ----


def damage_newest_checkpoint(folder):
    newest = max((folder / "checkpoints").glob("step-*"))
    state = newest / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    return newest.name


def test_damaged_newest_checkpoint_is_passed_over(fake_cluster, undisturbed):
    with fake_cluster() as cluster:
        job_id = cluster.submit(fake_job("damaged", steps=100))
        cluster.wait_for_step(job_id, 30)
        rank = cluster.trainer_pids()[0]
        with stopped(rank):
            damaged = damage_newest_checkpoint(folder_of(cluster, job_id))
            os.kill(rank, signal.SIGKILL)
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert losses(cluster, job_id) == undisturbed[:100]
        warnings = [message for reason, message in cluster.events(job_id) if reason == "TRAINER_WARNING"]
        assert any(damaged in message and "goes on from step-" in message for message in warnings), warnings
