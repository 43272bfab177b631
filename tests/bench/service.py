"""A server under load: durable submits, a thousand workers that synchronise, watchers that never read. One real longspan-server, one
process (longspan-service-load) that is all workers and users: the real Supervisor of each worker, a connection each, ranks that are no
processes.

    tests/bench/service.py [--bin build/release/bin] [--rounds 5] [--workers 1000] [--seconds 10] [--out FILE]

Each round is a new server with a new database. Where two kinds of load are compared, their order alternates from round to round. Writes
results/service.json, and the tables of server/README.md from it. --quick is for the test of this script.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "server/README.md"
RESULTS = pathlib.Path(__file__).resolve().parent / "results/service.json"
TICKS = os.sysconf("SC_CLK_TCK")
SLOTS = 8
SIZES = [1, 2, 4, 8]  # of gangs, in turn: 15 slots for 4 jobs
MODEL = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Server:
    """longspan-server with a database in `folder`; what it used, as the kernel and its own metrics tell."""

    def __init__(self, program, folder):
        self.folder = folder
        port_file = folder / "ports.json"
        self.log = open(folder / "server.log", "w")
        self.process = subprocess.Popen(
            [program, "--data-dir", folder / "data", "--storage", folder / "storage", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
             "--port-file", port_file, "--log-level", "warn"], stderr=self.log)  # fmt: skip
        while not port_file.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended with {self.process.returncode}: {(folder / 'server.log').read_text()}")
            time.sleep(0.02)
        ports = json.loads(port_file.read_text())
        self.address = f"127.0.0.1:{ports['grpc_port']}"
        self.http = f"http://127.0.0.1:{ports['http_port']}"

    def metrics(self):
        text = urllib.request.urlopen(self.http + "/metrics", timeout=30).read().decode()

        def total(name):
            return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

        return {"commits": total("longspan_store_commit_seconds_count"), "commit_seconds": total("longspan_store_commit_seconds_sum"),
                "passes": total("longspan_scheduler_pass_seconds_count"), "pass_seconds": total("longspan_scheduler_pass_seconds_sum")}  # fmt: skip

    def threads(self):
        """Processor seconds so far, by thread name."""
        seconds = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                text = (task / "stat").read_text()
                fields = text.rpartition(")")[2].split()
                name = text[text.index("(") + 1 : text.rindex(")")]
                seconds[name] = seconds.get(name, 0) + (int(fields[11]) + int(fields[12])) / TICKS
        return seconds

    def usage(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return {"cpu_seconds": processor_seconds(self.process.pid), "coordinator_seconds": self.threads().get("coordinator", 0),
                "resident_bytes": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024, **self.metrics()}  # fmt: skip

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        self.log.close()
        if code != 0:
            raise SystemExit(f"the server ended with {code}: {(self.folder / 'server.log').read_text()[-4000:]}")


class Load:
    """longspan-service-load; a call is one of its commands."""

    def __init__(self, program, server):
        self.server = server
        self.process = subprocess.Popen([program, server.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, what, **arguments):
        """Its answer, and under "server" what the server used for it."""
        before, own, start = self.server.usage(), processor_seconds(self.process.pid), time.monotonic()
        self.process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"longspan-service-load ended with {self.process.wait()}"}
        if "error" in answer:
            raise SystemExit(f"{what}: {answer['error']}")
        after, took = self.server.usage(), time.monotonic() - start
        used = {key: after[key] - before[key] for key in after if key != "resident_bytes"}
        used |= {"resident_bytes": after["resident_bytes"], "wall_seconds": took}
        return answer | {"server": used, "load_cpu_seconds": processor_seconds(self.process.pid) - own}

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def spec(folder, model, steps):
    data = folder / "corpus"
    return {"name": "load", "model": {"path": str(model)}, "data": {"sources": [str(data)]}, "context_length": 8192,
            "method": {"kind": "longlora"}, "training": {"steps": steps}, "limits": {"max_run_time": "1h"}}  # fmt: skip


def fsyncs_per_second(folder):
    """What the disk gives: 4 KiB appended and made durable, one after the other."""
    file = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    start, count = time.monotonic(), 0
    while time.monotonic() - start < 1:
        os.write(file, b"x" * 4096)
        os.fdatasync(file)
        count += 1
    os.close(file)
    return count / (time.monotonic() - start)


def run_round(flags, number):
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = pathlib.Path(name)
        seen, unseen = folder / "model", folder / "elsewhere"
        seen.mkdir()
        (seen / "config.json").write_text(json.dumps(MODEL))
        row = {"round": number, "fsyncs_per_second": fsyncs_per_second(folder)}
        server = Server(flags.bin / "longspan-server", folder)
        try:
            load = Load(flags.bin / "longspan-service-load", server)
            row |= phases(flags, number, load, spec(folder, seen, 1_000_000), spec(folder, unseen, 1_000_000))
            load.stop()
        finally:
            server.stop()
        return row


def phases(flags, number, load, planned, unplanned):
    row = {}
    ranks = flags.workers * SLOTS
    row["register"] = load("workers", count=flags.workers, slots=SLOTS)
    row["idle"] = load("observe", seconds=flags.seconds)
    row["fill"] = load("submit", count=4 * (ranks // sum(SIZES)), clients=64, spec=unplanned, slots=SIZES, prefix="fill")
    jobs = row["fill"].pop("job_ids")
    row["start"] = load("wait_running", ranks=ranks - ranks % sum(SIZES), seconds=120)
    load("steps", every_seconds=1)
    row["steady"] = load("observe", seconds=flags.seconds)

    variants = [("planned", planned), ("unplanned", unplanned)]
    for variant, job in variants if number % 2 else reversed(variants):
        row[f"submit, {variant}"] = load("submit", count=flags.submits, clients=64, spec=job, slots=SIZES, prefix=variant)
    for key in [key for key in row if key.startswith("submit, ")]:
        row[key].pop("job_ids")
    rate = load("submit", count=500 * flags.seconds, clients=64, per_second=500, spec=planned, slots=SIZES, prefix="rate")
    rate.pop("job_ids")
    row["submit at 500/s"] = rate
    row["steady, jobs wait"] = load("observe", seconds=flags.seconds)

    load("steps", every_seconds=0.25)
    load("observe", seconds=flags.settle_seconds)
    row["four times"] = load("observe", seconds=flags.seconds)
    watched = jobs[: flags.watched]
    load("steps", every_seconds=1, eager_jobs=watched, eager_steps=100)  # a history that fills the connection of who does not read
    load("observe", seconds=flags.history_seconds)
    load("steps", every_seconds=1)
    row["before watchers"] = load("observe", seconds=flags.settle_seconds)
    load("watch", jobs=watched, readers=flags.readers, silent=flags.silent)
    row["catching up"] = load("observe", seconds=3 * flags.settle_seconds)
    row["watched"] = load("observe", seconds=flags.watch_seconds)
    load("let_silent_read")
    row["watched, end"] = load("observe", seconds=flags.settle_seconds)
    return row


def med(rows, value):
    return statistics.median(value(row) for row in rows)


def spread(rows, value, digits=0):
    numbers = [value(row) for row in rows]
    return f"{statistics.median(numbers):,.{digits}f} ({min(numbers):,.{digits}f} – {max(numbers):,.{digits}f})"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def submit_line(rows, key, name):
    def part(value, digits=0):
        return spread(rows, lambda row: value(row[key]), digits)

    return [name, part(lambda p: p["per_second"]), part(lambda p: p["latency_ms"]["p50"]), part(lambda p: p["latency_ms"]["p99"]),
            part(lambda p: p["server"]["commits"] / p["latency_ms"]["count"], 3),
            part(lambda p: 1e3 * p["server"]["cpu_seconds"] / p["latency_ms"]["count"], 2),
            part(lambda p: 1e3 * p["server"]["coordinator_seconds"] / p["latency_ms"]["count"], 2)]  # fmt: skip


def workers_line(rows, key, name):
    def part(value, digits=0):
        return spread(rows, lambda row: value(row[key], row[key]["seconds"]), digits)

    def latency(which):
        if rows[0][key]["workers"]["news_latency_ms"]["count"] == 0:
            return "–"
        return part(lambda p, s: p["workers"]["news_latency_ms"][which], 1)

    return [name, part(lambda p, s: p["workers"]["calls"] / s), latency("p50"), latency("p99"),
            part(lambda p, s: p["server"]["cpu_seconds"] / p["server"]["wall_seconds"], 2),
            part(lambda p, s: p["server"]["coordinator_seconds"] / p["server"]["wall_seconds"], 2),
            part(lambda p, s: p["load_cpu_seconds"] / p["server"]["wall_seconds"], 2),
            part(lambda p, s: p["server"]["commits"] / p["server"]["wall_seconds"]),
            part(lambda p, s: p["server"]["resident_bytes"] / 1e6),
            max(sum(row[key]["workers"]["failures"].values()) for row in rows)]  # fmt: skip


def report(result):
    rows, flags = result["rows"], result["flags"]
    jobs = med(rows, lambda row: row["fill"]["latency_ms"]["count"])
    text = f"{flags['workers']:,} workers of {SLOTS} slots, each with a connection of its own, {jobs:,.0f} gangs of 1 to 8 ranks on them; "
    text += f"{len(rows)} rounds, median (least – most); {result['machine']}, server and load on the same cores; {result['date']}. "
    text += f"The disk gave {spread(rows, lambda row: row['fsyncs_per_second'])} fdatasyncs a second.\n\n"
    text += table(
        ["submits", "a second", "p50, ms", "p99, ms", "commits a submit", "processor a submit, ms", "of that the coordinator's thread, ms"],
        [submit_line(rows, "submit, unplanned", "64 at once, a model that the server does not see"),
         submit_line(rows, "submit, planned", "64 at once, memory planned"),
         submit_line(rows, "submit at 500/s", "500 a second offered, memory planned")])  # fmt: skip
    text += "\n\n" + table(
        ["workers", "calls a second", "p50, ms", "p99, ms", "processors", "the coordinator's", "the load's", "commits a second", "resident, MB", "failed calls"],
        [workers_line(rows, "idle", "no job"), workers_line(rows, "steady", "a step a second"),
         workers_line(rows, "steady, jobs wait", f"the same, {2 * flags['submits'] + 500 * flags['seconds']:,} jobs wait"),
         workers_line(rows, "four times", "four steps a second, each reported by itself"),
         workers_line(rows, "watched", f"a step a second, {flags['readers'] + flags['silent']} watchers, {flags['silent']} of them never read")])  # fmt: skip
    text += f"\n\nAll ranks ran {spread(rows, lambda row: row['start']['seconds'], 1)} s after the last submit of them. "
    text += f"A sample was with its watchers {spread(rows, lambda row: row['watched']['watchers']['progress_delay_ms']['p50'], 1)} ms after the daemon "
    text += f"had read it (p99 {spread(rows, lambda row: row['watched']['watchers']['progress_delay_ms']['p99'], 1)} ms), "
    text += f"{spread(rows, lambda row: row['watched']['watchers']['messages'] / row['watched']['seconds'])} messages a second. "

    def more(row):
        return (row["watched"]["server"]["resident_bytes"] - row["before watchers"]["server"]["resident_bytes"]) / 1e6

    text += f"They began with all {100 * flags['history_seconds']:,} samples of the past; with them the server took {spread(rows, more)} MB more. "
    closed = [row["watched, end"]["watchers"]["ended"].get("8 READER_TOO_SLOW", 0) for row in rows]
    text += f"Of the {flags['silent']} that never read at most {max(closed)} were sent away for it: a connection takes some MB before it is full, and what "
    text += "a job keeps of its past is less."
    return text


def machine():
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return f"{name[1].strip() if name else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores"


def check(flags, rows):
    """What must hold, however fast the machine is."""
    wrong = []
    for row in rows:
        for key, phase in row.items():
            if not isinstance(phase, dict):
                continue
            if phase.get("failures"):
                wrong.append(f"round {row['round']}, {key}: submits failed: {phase['failures']}")
        ended = row["watched, end"]["watchers"]["ended"]
        if set(ended) - {"8 READER_TOO_SLOW"}:
            wrong.append(f"round {row['round']}: watchers ended with {ended}")
        open_now = row["watched, end"]["watchers"]["open"]
        if open_now < flags.readers:
            wrong.append(f"round {row['round']}: {open_now} of {flags.readers} readers are left")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=10, help="of each phase")
    parser.add_argument("--submits", type=int, default=3000, help="of each kind in the closed loop")
    parser.add_argument("--readers", type=int, default=180)
    parser.add_argument("--silent", type=int, default=20)
    parser.add_argument("--watched", type=int, default=20, help="jobs that are watched")
    parser.add_argument("--settle-seconds", type=int, default=4, help="between phases")
    parser.add_argument("--history-seconds", type=int, default=15, help="at 100 samples a second, before they are watched")
    parser.add_argument("--watch-seconds", type=int, default=45, help="above the 30 s that a reader may take nothing")
    parser.add_argument("--folder", type=pathlib.Path, help="on a local disk, for the databases; default: the temporary folder")
    parser.add_argument("--quick", action="store_true", help="a small cluster, a second for each phase")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default: results/service.json, and the README is written from it")
    flags = parser.parse_args()
    if flags.quick:
        flags.rounds, flags.workers, flags.seconds, flags.submits = 1, 15, 1, 100
        flags.readers, flags.silent, flags.watched = 4, 2, 2
        flags.settle_seconds = flags.history_seconds = flags.watch_seconds = 1
    rows = []
    for number in range(flags.rounds):
        rows.append(run_round(flags, number))
        print(f"round {number + 1} of {flags.rounds}", file=sys.stderr)
    said = {key: value for key, value in vars(flags).items() if isinstance(value, int) and not isinstance(value, bool)}
    result = {"date": datetime.date.today().isoformat(), "machine": machine(), "flags": said, "rows": rows}
    (flags.out or RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    text = report(result)
    print(text)
    if flags.out is None:
        begin, end = "<!-- service: begin -->", "<!-- service: end -->"
        before, rest = README.read_text().split(begin)
        README.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
    wrong = check(flags, rows)
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
