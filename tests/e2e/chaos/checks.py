"""What must hold when chaos is over. Each check raises AssertionError with what is wrong."""

import collections
import json
import os
import pathlib
import sqlite3

from chaos_cluster import open_files

# gRPC opens and closes descriptors of its own (poll sets, a connection that is being replaced).
OPEN_FILES_SLACK = 4


def losses(folder):
    """The loss of each step, as the job's folder tells it. Every step is there once, and in order."""
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)), f"{folder.name}: steps are repeated or left out: {steps}"
    return [line["loss"] for line in lines]


def check_attempts_do_not_overlap(folder):
    """Every rank appends its steps to one file: once a newer attempt made a step, no older one may."""
    newest, last = 0, {}
    path = folder / "steps.log"
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        attempt, rank, step = map(int, line.split())
        assert attempt >= newest, f"{folder.name}, steps.log line {number}: attempt {attempt} lives beside attempt {newest}"
        newest = attempt
        before = last.get((attempt, rank), step - 1)
        assert step == before + 1, f"{folder.name}, steps.log line {number}: step {step} after {before}"
        last[attempt, rank] = step


def check_succeeded_job(job, folder, steps, reference_losses):
    """`reference_losses` are those of an undisturbed run of at least as many steps."""
    name = f"{job['spec']['name']} ({job['job_id']})"
    assert int(job["progress"]["step"]) == steps, f"{name} ended at step {job['progress']['step']} of {steps}"
    assert losses(folder) == reference_losses[:steps], f"{name}: the losses differ from those of an undisturbed run"
    assert len(job["evaluations"]) == 6, f"{name} has {len(job['evaluations'])} of 6 evaluation rows"
    kinds = sorted(artifact["kind"] for artifact in job["artifacts"])
    assert kinds == ["adapter", "dataset", "merged"], f"{name} published {kinds}"
    leftovers = [str(path) for path in folder.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
    assert not leftovers, f"{name} left temporary files: {leftovers}"


def open_file_counts(cluster):
    return {name: len(open_files(pid)) for name, pid in cluster.pids().items()}


def leaked_files(cluster, before):
    """Descriptors above the level before, by process; empty when there are none."""
    leaks = {}
    for name, pid in cluster.pids().items():
        now = open_files(pid)
        if len(now) > before[name] + OPEN_FILES_SLACK:
            leaks[name] = f"{len(now)} instead of {before[name]}: {collections.Counter(now).most_common(8)}"
    return leaks


def rank_folders(cluster):
    """What daemons keep of ranks: specs and logs that are not uploaded."""
    return [path for name in cluster.workers for path in (cluster.folder / name / "ranks").glob("*")]


def processes_of(cluster):
    """Command lines of all processes that know this cluster's folder, in whatever group or session."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(cluster.folder) in command and "pytest" not in command:
                    found.append(f"{entry.name}: {command}")
        except OSError:
            pass  # it ended meanwhile
    return found


def check_database(path):
    """The server must not run any more."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        for table in ("events", "samples"):
            gaps = database.execute(f"SELECT job_id, COUNT(*), MIN(sequence), MAX(sequence) FROM {table} GROUP BY job_id "
                                    "HAVING COUNT(*) != MAX(sequence) OR MIN(sequence) != 1").fetchall()
            assert not gaps, f"{table} have gaps or doubles (job, rows, first, last): {gaps}"
        held = database.execute("SELECT job_id, attempt, rank FROM ranks WHERE released = 0").fetchall()
        assert not held, f"ranks that hold slots for ever: {held}"
        numbers = database.execute("SELECT job_id, COUNT(*), MAX(number) FROM attempts GROUP BY job_id "
                                   "HAVING COUNT(*) != MAX(number)").fetchall()
        assert not numbers, f"attempt numbers have gaps: {numbers}"
        return dict(database.execute("SELECT failure_class, COUNT(*) FROM attempts GROUP BY failure_class").fetchall())
