"""What users and operators see of the scheduler, with the fake trainer: jobs give way and come back, grow and shrink, wait
for their queue's quota, and move off a worker; no step is lost or taken twice."""

import re

from cluster import wait_until
from jobs import fake_job

# Nobody is protected, and elastic jobs grow as soon as there is room. A job that is expected to end within the checkpoint
# grace is waited for instead of stopped, so those that shall give way take three times as long.
FLAGS = ["--min-run-time-seconds", "0", "--resize-interval-seconds", "0.5", "--schedule-interval-seconds", "1",
         "--checkpoint-grace-seconds", "6", "--reservation-seconds", "20"]


def scheduled_cluster(make_cluster, **options):
    return make_cluster(trainer="longspan-fake-trainer", server_flags=FLAGS, **options)


def job_file(name, steps, slots, step_ms=10, resources=(), **keys):
    spec = fake_job(name, steps=steps, step_ms=step_ms, slots=slots)
    spec["resources"].update(dict(resources))
    spec.update(keys)
    return spec


def run_attempts(job):
    """Those that train, oldest first."""
    return [attempt for attempt in job["attempts"] if attempt["phase"] != "PREPARE"]


def steps_of(cluster, job):
    """Every step that rank 0 of any attempt has taken, in order."""
    steps = []
    for attempt in run_attempts(job):
        log = cluster.cli("logs", job["job_id"], "--attempt", attempt["number"], "--rank", "0").stdout
        steps += [int(step) for step in re.findall(r"^rank 0: step (\d+) of", log, re.MULTILINE)]
    return steps


def wait_for_gang(cluster, job_id, size):
    """Until it trains with this many ranks; the step it then is at."""
    def trains():
        job = cluster.job(job_id)
        assert job["state"] not in ("FAILED", "CANCELLED", "SUCCEEDED"), job["status_message"]
        return job["state"] == "RUNNING" and len(run_attempts(job)[-1:]) == 1 and \
            len(run_attempts(job)[-1]["ranks"]) == size and job
    return wait_until(trains, f"{job_id} to train with {size} ranks")


def test_a_job_of_low_priority_gives_way_and_comes_back(make_cluster):
    with scheduled_cluster(make_cluster, workers=1, slots=2) as cluster:
        low = cluster.submit(job_file("low", 900, slots=2, step_ms=20, priority=20))
        cluster.wait_for_step(low, 7)
        urgent = cluster.submit(job_file("urgent", 30, slots=2, priority=80))
        ended = cluster.wait_for_state(urgent, "SUCCEEDED")
        job = cluster.wait_for_state(low, "SUCCEEDED")
        assert steps_of(cluster, job) == list(range(1, 901))
        assert int(job["preemptions"]) == 1 and int(ended["preemptions"]) == 0
        before, after = run_attempts(job)
        assert before["end_time"] <= run_attempts(ended)[0]["start_time"] < after["start_time"]
        assert before["failure_class"] in ("UNSPECIFIED", "PREEMPTED") and after["resumed_from"]
        assert "Preempted     once" in cluster.cli("describe", low).stdout


def test_an_elastic_job_shrinks_for_another_and_grows_again(make_cluster):
    with scheduled_cluster(make_cluster, workers=1, slots=4) as cluster:
        wide = cluster.submit(job_file("wide", 1200, slots=4, step_ms=20, resources={"slots_min": 1}))
        wait_for_gang(cluster, wide, 4)
        assert "1-4, now 4" in cluster.cli("describe", wide).stdout
        other = cluster.submit(job_file("other", 100, slots=2))
        wait_for_gang(cluster, other, 2)
        wait_for_gang(cluster, wide, 2)
        cluster.wait_for_state(other, "SUCCEEDED")
        wait_for_gang(cluster, wide, 4)
        job = cluster.wait_for_state(wide, "SUCCEEDED")
        assert steps_of(cluster, job) == list(range(1, 1201))
        # Slots of the other come back rank by rank: it takes them in one step all the same.
        assert [len(attempt["ranks"]) for attempt in run_attempts(job)] == [4, 2, 4]
        # Every rank knew how many there were.
        for attempt in run_attempts(job):
            last = len(attempt["ranks"]) - 1
            log = cluster.cli("logs", wide, "--attempt", attempt["number"], "--rank", last).stdout
            assert f"rank {last} of {last + 1}" in log


def test_an_elastic_job_starts_with_what_is_there(make_cluster):
    with scheduled_cluster(make_cluster, workers=1, slots=2) as cluster:
        job = cluster.wait_for_state(cluster.submit(job_file("small", 20, slots=8, resources={"slots_min": 1})), "SUCCEEDED")
        assert {len(attempt["ranks"]) for attempt in run_attempts(job)} == {2}


def test_a_queue_holds_no_more_than_its_quota(make_cluster):
    with scheduled_cluster(make_cluster, workers=1, slots=3) as cluster:
        cluster.cli("queues", "set", "small", "--slots-max", "1", "--waiting-max", "2", "--run-time-default", "2h")
        first = cluster.submit(job_file("first", 100000, slots=1, queue="small"))
        cluster.wait_for_step(first, 1)
        second = cluster.submit(job_file("second", 100000, slots=1, queue="small"))
        job = wait_until(lambda: (j := cluster.job(second))["reason"] == "QUEUE_AT_QUOTA" and j, "the quota as the reason")
        assert int(job["queue_position"]) == 1
        free = cluster.submit(job_file("free", 20, slots=2))
        cluster.wait_for_state(free, "SUCCEEDED")
        small, = [queue for queue in cluster.items("queues") if queue["name"] == "small"]
        assert (int(small["slots_in_use"]), int(small["queued"])) == (1, 1)
        assert "1 of 1" in cluster.cli("queues").stdout

        third = cluster.submit(job_file("third", 10, slots=1, queue="small"))
        wait_until(lambda: cluster.job(third)["reason"] == "QUEUE_AT_QUOTA", "the third to wait")
        path = cluster.folder / "third.job.json"
        refused = cluster.cli("submit", path, check=False)
        assert refused.returncode == 6 and "queue small has 2 waiting jobs" in refused.stderr

        cluster.cli("queues", "set", "small", "--slots-max", "2")
        cluster.wait_for_step(second, 1)
        assert cluster.job(first)["state"] == "RUNNING"
        assert cluster.job(third)["state"] == "QUEUED"

        large = cluster.submit(job_file("large", 10, slots=3))
        job = wait_until(lambda: (j := cluster.job(large))["reason"] == "GANG_DOES_NOT_FIT" and j, "the large one to wait")
        assert job["expected_start_time"] > job["submit_time"], "when the others end, as they get on"
        assert re.search(r"large +QUEUED +3 .* in \d+m ", cluster.cli("list").stdout), cluster.cli("list").stdout


def test_a_drained_worker_gives_its_ranks_away_when_told(make_cluster):
    with scheduled_cluster(make_cluster, workers=2, slots=1) as cluster:
        job_id = cluster.submit(job_file("moved", 300, slots=1))
        job = cluster.wait_for_step(job_id, 7)
        old = run_attempts(job)[-1]["ranks"][0]["worker_id"]
        worker, = cluster.items("drain", old, "--move")
        assert worker["draining"]
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert steps_of(cluster, job) == list(range(1, 301))
        assert [attempt["ranks"][0]["worker_id"] == old for attempt in run_attempts(job)] == [True, False]
        assert int(job["preemptions"]) == 0, "that is for jobs of higher priority"


def test_a_waiting_job_changes_its_place(make_cluster):
    with scheduled_cluster(make_cluster, workers=0) as cluster:
        first, second = (cluster.submit(job_file(name, 10, slots=1)) for name in ("first", "second"))

        def positions(*expected):
            wait_until(lambda: [int(cluster.job(job)["queue_position"]) for job in (first, second)] == list(expected),
                       f"positions {expected}")

        positions(1, 2)
        answer = cluster.cli("update", second, "--priority", "90", "--label", "team=red").stdout
        assert "priority 90" in answer and "team=red" in answer
        positions(2, 1)
        listed = cluster.items("list", "--label", "team=red")
        assert [job["job_id"] for job in listed] == [second]
        assert listed[0]["spec"]["priority"] == 90
        cluster.start_worker("worker-0")
        assert cluster.wait_for_state(second, "SUCCEEDED")["end_time"] < cluster.wait_for_state(first, "SUCCEEDED")["end_time"]


def test_a_job_goes_where_its_requirements_are_met(make_cluster):
    with scheduled_cluster(make_cluster, workers=1) as cluster:
        job_id = cluster.submit(job_file("picky", 10, slots=1, resources={"require": {"zone": "b"}}))
        job = wait_until(lambda: (j := cluster.job(job_id))["reason"] == "REQUIREMENTS_NOT_MET" and j, "the reason")
        assert "zone: b" in job["status_message"]
        cluster.start_worker("worker-b", ["--label", "zone=b"])
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert run_attempts(job)[-1]["ranks"][0]["worker_id"] == "worker-b"


def test_timers_that_contradict_each_other_are_refused(make_cluster, bin_dir, tmp_path):
    import subprocess

    def start(*flags):
        return subprocess.run([str(bin_dir / "longspan-server"), "--data-dir", str(tmp_path / "data"), "--storage",
                               str(tmp_path), "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", *flags],
                              capture_output=True, text=True, timeout=30)

    for flags, words in ((("--reservation-seconds", "60"), "above --checkpoint-grace-seconds (120)"),
                         (("--usage-half-life-seconds", "5"), "--usage-half-life-seconds is 5; it must be at least 60"),
                         (("--schedule-interval-seconds", "0.5"), "--schedule-interval-seconds is 0.5; it must be at least 1")):
        result = start(*flags)
        assert result.returncode == 1 and words in result.stderr, result.stderr
    assert start("--min-run-time-seconds", "-1").returncode == 2
