"""A cluster whose every connection to the coordinator goes through a proxy of its own, and the faults that are done to it."""

import os
import signal

from cluster import Cluster
from proxy import Proxies


class ChaosCluster(Cluster):
    """`cluster.proxies["worker-1"]`, `cluster.proxies["client"]`. Killed processes are started again by their names."""

    SERVER_TIMERS = ["--lease-seconds", "3", "--slot-reuse-seconds", "5", "--restart-grace-seconds", "6",
                     "--kill-grace-seconds", "1", "--checkpoint-grace-seconds", "5", "--retry-backoff-seconds", "0.2",
                     "--start-deadline-seconds", "8", "--progress-deadline-seconds", "4",
                     "--first-progress-deadline-seconds", "6"]
    WORKER_KILL_GRACE_SECONDS = "1"

    def __enter__(self):
        self._network = Proxies().__enter__()
        try:
            names = ["client", *(f"worker-{index}" for index in range(self.worker_count))]
            self.proxies = {name: self._network.add(lambda: self.grpc_port) for name in names}
            return super().__enter__()
        except BaseException:
            self._network.__exit__()
            raise

    def __exit__(self, *_):
        self.heal()
        super().__exit__(*_)
        self._network.__exit__()

    def server_address(self, caller, host="127.0.0.1"):
        return f"127.0.0.1:{self.proxies[caller].port}"

    def heal(self):
        """The network passes everything, and nothing is stopped any more. What was killed stays so."""
        for proxy in self.proxies.values():
            proxy.delay(0)
            proxy.blackhole(False)
        running = [process.pid for process in [*self.workers.values(), self.server] if process is not None and process.alive()]
        for pid in [*running, *self.rank_processes().values()]:
            send_signal(pid, signal.SIGCONT)

    def restart(self, name):
        """Starts the server or a worker again unless it lives."""
        process = self.server if name == "server" else self.workers[name]
        if not process.alive():
            self.start_server() if name == "server" else self.start_worker(name)

    def pids(self):
        return {"server": self.server.pid, **{name: process.pid for name, process in self.workers.items()}}


def send_signal(pid, number):
    """False when the process is gone already."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def open_files(pid):
    """What each descriptor of a process is, sorted."""
    found = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:
            pass  # of the moment before
    return sorted(found)
