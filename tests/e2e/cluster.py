"""A whole cluster of real processes on this machine: one coordinator, some workers, and the command line client.

Every process gets port 0, its own folder and its own process group; leaving the `with` block ends them all. Waiting means
polling a condition up to a deadline: nothing here depends on how long something takes.
"""

import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import time

DEADLINE_SECONDS = 120


def wait_until(condition, what, seconds=DEADLINE_SECONDS):
    """The first true value of condition(); fails with `what` when the deadline passes."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for: {what}")
        time.sleep(0.02)


class Process:
    """A program with its log; killed with its whole group."""

    def __init__(self, name, command, log, environment=None):
        self.name, self.command, self.log = name, [str(word) for word in command], log
        with open(log, "ab") as output:
            self.popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, env=environment)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def kill(self):
        """kill -9 of this process alone: what it leaves behind is for the system under test to clean up."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self, seconds=20):
        """SIGTERM, then SIGKILL; returns the exit status of the SIGTERM, or None when that was not enough."""
        if self.alive():
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None


class Cluster:
    """`with Cluster(bin_folder, folder, workers=2) as cluster: cluster.submit(...)`."""

    # Short timers, so that a dead machine is noticed in seconds; the order lease < slot reuse stays.
    SERVER_TIMERS = ["--lease-seconds", "4", "--slot-reuse-seconds", "6", "--restart-grace-seconds", "15",
                     "--kill-grace-seconds", "2", "--retry-backoff-seconds", "0.2"]

    WORKER_KILL_GRACE_SECONDS = "2"

    def __init__(self, bin_folder, folder, workers=2, slots=1, trainer="longspan-trainer", machines=None,
                 server_flags=(), worker_flags=(), client_flags=()):
        """`machines` places worker i on a host of its own: {"worker-0": (command prefix, its address, the coordinator's
        address seen from there)}; the coordinator then listens on every address. Flags are added to each command."""
        self.bin, self.folder = pathlib.Path(bin_folder), pathlib.Path(folder)
        self.machines = machines or {}
        self.server_flags, self.worker_flags, self.client_flags = server_flags, worker_flags, client_flags
        self.storage = self.folder / "storage"
        self.worker_count, self.slots, self.trainer = workers, slots, trainer
        self.server = None
        self.workers = {}
        self.grpc_port = self.http_port = 0

    def __enter__(self):
        self.storage.mkdir(parents=True)
        try:
            self.start_server()
            for index in range(self.worker_count):
                self.start_worker(f"worker-{index}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        for process in [*self.workers.values(), self.server]:
            if process is not None:
                process.stop()

    # ---- processes ----

    def start_server(self, program=None):
        """The first start takes any free ports; a restart takes the same ones, as a real one would."""
        port_file = self.folder / "server.ports.json"
        port_file.unlink(missing_ok=True)
        self.server = Process("server", [
            program or self.bin / "longspan-server", "--data-dir", self.folder / "server", "--storage", self.storage,
            "--listen", f"{'0.0.0.0' if self.machines else '127.0.0.1'}:{self.grpc_port}", "--http-listen", f"127.0.0.1:{self.http_port}",
            "--port-file", port_file, *self.SERVER_TIMERS, *(["--insecure"] if self.machines else []),
            *self.server_flags], self.folder / "server.log")
        ports = self._ports(self.server, port_file)
        self.grpc_port, self.http_port = ports["grpc_port"], ports["http_port"]

    def start_worker(self, name, flags=None):
        """`flags` in the place of those of every worker."""
        port_file = self.folder / f"{name}.ports.json"
        port_file.unlink(missing_ok=True)
        prefix, address, server = [], "127.0.0.1", "127.0.0.1"
        if name in self.machines:
            prefix, address, server = self.machines[name]
        self.workers[name] = Process(name, [
            *prefix, self.bin / "longspan-worker", "--server", self.server_address(name, server), "--storage", self.storage,
            "--state-dir", self.folder / name, "--name", name, "--slots", self.slots,
            "--trainer", self.bin / self.trainer, "--advertise-address", address, *(["--insecure"] if prefix else []),
            "--http-listen", f"{address}:0", "--port-file", port_file, "--kill-grace-seconds", self.WORKER_KILL_GRACE_SECONDS,
            *(self.worker_flags if flags is None else flags)],
            self.folder / f"{name}.log")
        self._ports(self.workers[name], port_file)

    def server_address(self, caller, host="127.0.0.1"):
        """Where a worker, or the "client", reaches the coordinator."""
        return f"{host}:{self.grpc_port}"

    def _ports(self, process, port_file):
        def read():
            if not process.alive():
                raise AssertionError(f"{process.name} ended at its start:\n{pathlib.Path(process.log).read_text()[-2000:]}")
            return json.loads(port_file.read_text()) if port_file.exists() else None
        return wait_until(read, f"{process.name} to be ready", 30)

    def trainer_pids(self):
        """Pids of trainer processes below this cluster's workers, by rank."""
        return {rank: pid for (_, _, rank), pid in self.rank_processes().items()}

    def rank_processes(self):
        """The same by (job, attempt, rank); a process that has ended and waits for its daemon is none."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[0].endswith(self.trainer) and any(str(self.storage) in word for word in words) and "--rank" in words:
                job, attempt, rank = (words[words.index(flag) + 1] for flag in ("--job", "--attempt", "--rank"))
                found[job, int(attempt), int(rank)] = int(entry.name)
        return found

    # ---- the client ----

    def cli(self, *arguments, check=True, seconds=DEADLINE_SECONDS, flags=None):
        """`flags` in the place of those of every command."""
        flags = self.client_flags if flags is None else flags
        result = subprocess.run(
            [str(self.bin / "longspan"), *map(str, [*flags, *arguments])], capture_output=True, text=True, timeout=seconds,
            stdin=subprocess.DEVNULL, env={**os.environ, "LONGSPAN_ADDRESS": self.server_address("client")})
        if check and result.returncode != 0:
            raise AssertionError(f"longspan {' '.join(map(str, arguments))} exited {result.returncode}:\n"
                                 f"{result.stdout}{result.stderr}")
        return result

    def items(self, *arguments):
        return json.loads(self.cli(*arguments, "--output", "json").stdout)["items"]

    def submit(self, spec):
        """Submits a job file given as a dictionary; returns the job's id."""
        path = self.folder / f"{spec['name']}.job.json"
        path.write_text(json.dumps(spec))
        return self.items("submit", path)[0]["job_id"]

    def job(self, job_id):
        return self.items("describe", job_id)[0]

    def events(self, job_id):
        """(reason, message) of everything that happened to a job, oldest first; as stored."""
        path = self.folder / "server" / "longspan.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute("SELECT reason, message FROM events WHERE job_id = ? ORDER BY sequence", (job_id,)).fetchall()

    def wait_for_state(self, job_id, *states):
        def reached():
            job = self.job(job_id)
            if job["state"] in states:
                return job
            if job["state"] in ("FAILED", "CANCELLED", "SUCCEEDED"):
                raise AssertionError(f"{job_id} is {job['state']}: {job.get('status_message')}")
            return None
        return wait_until(reached, f"{job_id} to be {' or '.join(states)}")

    def wait_for_step(self, job_id, step):
        """Until the running attempt has told of this many optimizer steps."""
        def reached():
            job = self.job(job_id)
            if job["state"] in ("FAILED", "CANCELLED", "SUCCEEDED"):
                raise AssertionError(f"{job_id} is {job['state']} before step {step}: {job.get('status_message')}")
            progress = job.get("progress") or {}
            return progress.get("phase") == "TRAIN" and int(progress.get("step", 0)) >= step and job
        return wait_until(reached, f"step {step} of {job_id}")
