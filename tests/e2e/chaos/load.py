"""Jobs under chaos: a user who submits, pauses, resumes and cancels by the command line, and repeats what got no answer."""

import collections
import json
import random
import threading

from jobs import fake_job

REFUSED, UNREACHABLE = 6, 3
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
STEPS_MAX = 120


def chaos_job(name, steps, slots):
    """Every phase takes some time, so that faults hit all of them."""
    job = fake_job(name, steps=steps, step_ms=15, slots=slots, **{
        "fake.prepare_ms": "100", "fake.slow_checkpoint_ms": "30", "fake.expect_seconds": "2",
        "fake.evaluate_ms": "30", "fake.export_ms": "50"})
    job["limits"] = {"max_attempts": 1000}
    return job


class Load(threading.Thread):
    """Keeps some jobs alive until told to stop. `steps[job_id]` is what was asked for; `cancelled` holds the jobs whose cancel was
    acknowledged, `perhaps_cancelled` those whose cancel got no answer."""

    def __init__(self, cluster, seed, jobs_at_once, jobs_max):
        super().__init__(name="load")
        self.cluster, self.jobs_at_once, self.jobs_max = cluster, jobs_at_once, jobs_max
        self.steps, self.cancelled, self.perhaps_cancelled = {}, set(), set()
        self.done = collections.Counter()
        self.error = None
        self._chance = random.Random(seed)
        self._told_to_stop = threading.Event()
        self._pending = None  # (request id, file, steps) of a submission without an answer
        self._submitted = 0

    def stop(self):
        self._told_to_stop.set()
        self.join()
        self.check()

    def check(self):
        if self.error:
            raise AssertionError("the load failed") from self.error

    def run(self):
        try:
            while not self._told_to_stop.wait(self._chance.uniform(0.05, 0.3)):
                self._turn()
            while self._pending:
                self._submit()
        except BaseException as error:  # told to whoever asks
            self.error = error

    def _turn(self):
        states = self.states()
        if states is None:
            return
        missing = [job for job in self.steps if job not in states]
        assert not missing, f"acknowledged jobs are gone: {missing}"
        alive = [job for job in self.steps if states[job] not in ENDED and job not in self.cancelled]
        if self._pending or (len(alive) < self.jobs_at_once and self._submitted < self.jobs_max):
            self._submit()
        for job in alive:
            if states[job] == "PAUSED" and self._chance.random() < 0.3:
                self._command("resume", job)
        if alive and self._chance.random() < 0.15:
            self._command("pause", self._chance.choice(alive))
        if alive and self._chance.random() < 0.02:
            self._cancel(self._chance.choice(alive))

    def states(self):
        """By job; None when the server does not answer."""
        result = self.cluster.cli("list", "--limit", "100000", "--output", "json", check=False)
        if result.returncode == UNREACHABLE:
            return None
        assert result.returncode == 0, result.stderr
        return {job["job_id"]: job["state"] for job in json.loads(result.stdout)["items"]}

    def _submit(self):
        if self._pending is None:
            number, self._submitted = self._submitted, self._submitted + 1
            steps = self._chance.randint(30, STEPS_MAX)
            path = self.cluster.folder / f"chaos-{number}.job.json"
            path.write_text(json.dumps(chaos_job(f"chaos-{number}", steps, self._chance.randint(1, 3))))
            self._pending = (f"request-{number}", path, steps)
        request_id, path, steps = self._pending
        result = self.cluster.cli("submit", path, "--request-id", request_id, "--output", "json", check=False)
        if result.returncode == UNREACHABLE:
            self.done["submit repeated"] += 1
            return
        assert result.returncode == 0, result.stderr
        self.steps[json.loads(result.stdout)["items"][0]["job_id"]] = steps
        self.done["submit"] += 1
        self._pending = None

    def _command(self, verb, job):
        result = self.cluster.cli(verb, job, check=False)
        assert result.returncode in (0, REFUSED, UNREACHABLE), result.stderr
        self.done[verb if result.returncode == 0 else f"{verb} refused or unanswered"] += 1
        return result.returncode

    def _cancel(self, job):
        code = self._command("cancel", job)
        if code == 0:
            self.cancelled.add(job)
        elif code == UNREACHABLE:
            self.perhaps_cancelled.add(job)

    def finish(self):
        """To be polled when the faults are over: resumes what is paused; true when every job has ended."""
        states = self.states()
        if states is None:
            return False
        for job, state in states.items():
            if state == "PAUSED":
                self._command("resume", job)
        return all(state in ENDED for state in states.values())
