"""Which faults happen when (a list that one seed makes), and doing them to a ChaosCluster.

A fault has a begin and most have an end: what was killed is started again, what was stopped goes on, the network heals. Which
process it hits follows from the seed and from what runs at that moment.
"""

import collections
import heapq
import itertools
import random
import signal
import time

from chaos_cluster import send_signal

# kind: (weight, shortest and longest duration in seconds). With the timers of ChaosCluster (lease 3 s, slots reused after 5 s,
# restart grace 6 s, progress deadline 4 s) the durations lie on both sides of each limit.
KINDS = {
    "kill -9 a rank": (6, (0, 0)),
    "SIGSTOP a rank": (3, (0.2, 7)),
    "kill -9 a worker": (3, (0, 6)),
    "SIGSTOP a worker": (3, (0.2, 7)),
    "SIGTERM a worker": (1, (0, 2)),
    "kill -9 the server": (2, (0, 4)),
    "SIGSTOP the server": (2, (0.2, 5)),
    "delay a worker's connection": (3, (0.5, 4)),
    "cut a worker's connections": (4, (0, 0)),
    "blackhole a worker": (3, (0.5, 6)),
    "cut the clients' connections": (1, (0, 0)),
    "delay the clients' connections": (1, (0.5, 2)),
}
DELAY_SECONDS_MAX = 0.4
LEAVE_SECONDS_MAX = 30  # a daemon that leaves waits for its ranks, and some seconds for the server to hear of it


class Fault:
    def __init__(self, at, kind, seconds, pick):
        self.at, self.kind, self.seconds = at, kind, seconds
        self.pick = pick  # in [0, 1): which of the possible targets

    def choose(self, targets):
        targets = sorted(targets)
        return targets[int(self.pick * len(targets))] if targets else None


def schedule(seed, seconds, mean_distance):
    """Faults over `seconds`, on the average one each `mean_distance` seconds; the same for the same arguments."""
    chance = random.Random(seed)
    kinds, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    faults, at = [], chance.expovariate(1 / mean_distance)
    while at < seconds:
        kind = chance.choices(kinds, weights)[0]
        faults.append(Fault(at, kind, chance.uniform(*KINDS[kind][1]), chance.random()))
        at += chance.expovariate(1 / mean_distance)
    return faults


class Chaos:
    """Carries a schedule out. `done[kind]` counts the faults that had a target, `log` says what happened when."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.done = collections.Counter()
        self.log = []
        self._killed = set()  # names of processes that are down because of us
        self._ends = []       # (time, number, function)
        self._numbers = itertools.count()

    def run(self, faults, watch):
        """`watch()` is called some times a second; it raises when something is wrong already."""
        begin = time.monotonic()
        for fault in faults:
            self._wait_until(begin + fault.at, watch)
            target = self._begin(fault)
            if target is not None:
                self.done[fault.kind] += 1
                self.log.append(f"{time.monotonic() - begin:7.2f} s: {fault.kind}: {target} ({fault.seconds:.1f} s)")
        while self._ends:
            self._wait_until(self._ends[0][0], watch)
            self._end_due()
        self.cluster.heal()

    def _wait_until(self, end, watch):
        while time.monotonic() < end:
            self._end_due()
            self.check_processes()
            watch()
            next_end = self._ends[0][0] if self._ends else end
            time.sleep(max(0, min(end, next_end, time.monotonic() + 0.1) - time.monotonic()))

    def _end_due(self):
        while self._ends and self._ends[0][0] <= time.monotonic():
            heapq.heappop(self._ends)[2]()

    def _later(self, seconds, function):
        heapq.heappush(self._ends, (time.monotonic() + seconds, next(self._numbers), function))

    def check_processes(self):
        """A server or daemon that is down and was not killed has crashed."""
        for process in [self.cluster.server, *self.cluster.workers.values()]:
            if process.name not in self._killed and not process.alive():
                raise AssertionError(f"{process.name} ended by itself with status {process.popen.returncode}:\n"
                                     f"{open(process.log, errors='replace').read()[-3000:]}")

    # ---- one method a kind of fault ----

    def _begin(self, fault):
        where, what = fault.kind.rsplit(" ", 1)[-1], fault.kind.split(" ", 1)[0]
        if where == "rank":
            return self._signal_rank(fault, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        if where in ("connection", "connections") or what == "blackhole":
            return self._disturb_network(fault, what)
        name = "server" if where == "server" else fault.choose(set(self.cluster.workers) - self._killed)
        if name is None or name in self._killed:
            return None
        process = self.cluster.server if name == "server" else self.cluster.workers[name]
        if what == "SIGSTOP":
            send_signal(process.pid, signal.SIGSTOP)
            self._later(fault.seconds, lambda: process.alive() and send_signal(process.pid, signal.SIGCONT))
            return name
        self._killed.add(name)
        if what == "kill":
            process.kill()
        else:
            send_signal(process.pid, signal.SIGTERM)
        self._later(fault.seconds, lambda: self._restart(name, process))
        return name

    def _restart(self, name, process, patience=LEAVE_SECONDS_MAX):
        if process.alive():  # it was asked to leave, and does
            assert patience > 0, f"{name} was asked to leave {LEAVE_SECONDS_MAX} s ago"
            return self._later(0.2, lambda: self._restart(name, process, patience - 0.2))
        self.cluster.restart(name)
        self._killed.discard(name)

    def _signal_rank(self, fault, number):
        ranks = self.cluster.rank_processes()
        key = fault.choose(ranks)
        if key is None or not send_signal(ranks[key], number):
            return None
        if number == signal.SIGSTOP:
            self._later(fault.seconds, lambda: self._continue_rank(key, ranks[key]))
        return "{} attempt {} rank {}".format(*key)

    def _continue_rank(self, key, pid):
        if self.cluster.rank_processes().get(key) == pid:
            send_signal(pid, signal.SIGCONT)

    def _disturb_network(self, fault, what):
        clients = "clients" in fault.kind
        name = "client" if clients else fault.choose(self.cluster.workers)
        proxy = self.cluster.proxies[name]
        if what == "cut":
            return f"{name}, {proxy.cut()} sockets"
        if what == "delay":
            proxy.delay(DELAY_SECONDS_MAX * fault.pick)
            self._later(fault.seconds, lambda: proxy.delay(0))
        else:
            proxy.blackhole(True)
            self._later(fault.seconds, lambda: proxy.blackhole(False))
        return name
