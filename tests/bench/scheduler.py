"""Waits, utilisation and fairness of the scheduler beside FIFO, FIFO with backfill and Slurm's rules, on generated traces.

    tests/bench/scheduler.py [--server build/release/bin/longspan-server] [--seeds 5] [--workers 64] [--days 28] [--load 0.95] [--out FILE]

Every policy replays the same trace of each seed in virtual time (`longspan-server simulate`); the trace is of the shape of Philly and
Helios (`longspan-server generate-trace`). Writes results/scheduler.json, and the tables of server/scheduler/README.md from it.
Exit code 1 where Longspan is worse than FIFO with backfill by more than 5 % on a measure of the plain trace.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "server/scheduler/README.md"
RESULTS = pathlib.Path(__file__).resolve().parent / "results/scheduler.json"
WORSE_MAX = 1.05

# name: flags of simulate. Passes while nothing happens are every 5 min instead of 30 s, to save time.
POLICIES = {
    "FIFO": ["--policy", "fifo"],
    "FIFO, backfill": ["--policy", "fifo-backfill"],
    "FIFO, backfill, limits only": ["--policy", "fifo-backfill", "--estimates", "limits"],
    "Slurm's rules, limits only": ["--policy", "slurm", "--estimates", "limits"],
    "Longspan": ["--schedule-seconds", "300"],
    "Longspan, limits only": ["--schedule-seconds", "300", "--estimates", "limits"],
    "Longspan, no patience": ["--schedule-seconds", "300", "--patience-seconds", "1e9"],
}
BASE = "FIFO, backfill"
# name: (flags of generate-trace, policies).
TRACES = {
    "plain": ([], list(POLICIES)),
    "priorities": (["--high-priority", "0.1", "--low-priority", "0.2"], [BASE, "Longspan"]),
    "elastic": (["--elastic", "0.5"], [BASE, "Longspan"]),
}
# name: (value of a report, unit divisor, smaller is better).
MEASURES = {
    "mean wait, h": (lambda r: r["wait_seconds"]["mean"] / 3600, True),
    "p99 wait, h": (lambda r: r["wait_seconds"]["p99"] / 3600, True),
    "mean wait, 1 slot, h": (lambda r: r["wait_seconds_by_size"]["1"]["mean"] / 3600, True),
    "mean wait, 32+ slots, h": (lambda r: r["wait_seconds_by_size"]["32+"]["mean"] / 3600, True),
    "utilisation, %": (lambda r: 100 * r["utilisation"], False),
    "fairness": (lambda r: r["fairness"], False),
    "slowdown": (lambda r: r["slowdown_mean"], True),
}
EXTRA = {
    "preemptions": lambda r: r["preemptions"],
    "resizes": lambda r: r["resizes"],
    "slot-hours lost": lambda r: r["lost_slot_seconds"] / 3600,
}


def run(server, *flags):
    done = subprocess.run([server, *map(str, flags)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{server} {' '.join(map(str, flags))}: {done.stderr}")
    return done.stdout


def measure(flags, trace_name, seed, policy):
    """A row; from the folder of an earlier run where it is there."""
    name = f"{trace_name}-{seed}-{flags.workers}-{flags.days:g}-{flags.load:g}"
    saved = flags.work / f"{name}-{policy}.json"
    if not saved.exists():
        report = run(flags.server, "simulate", flags.work / f"{name}.jsonl", "--cluster", flags.work / f"{name}.json", "--output", "json",
                     *POLICIES[policy])  # fmt: skip
        saved.write_text(report)
    return {"trace": trace_name, "seed": seed, "policy": policy, "report": json.loads(saved.read_text())}


def generate(flags, trace_name, seed):
    name = f"{trace_name}-{seed}-{flags.workers}-{flags.days:g}-{flags.load:g}"
    run(flags.server, "generate-trace", "--trace", flags.work / f"{name}.jsonl", "--cluster", flags.work / f"{name}.json", "--seed", seed,
        "--days", flags.days, "--load", flags.load, "--workers", flags.workers, *TRACES[trace_name][0])  # fmt: skip


def values(rows, trace, policy, value):
    return [value(row["report"]) for row in rows if row["trace"] == trace and row["policy"] == policy]


def cell(numbers):
    mean = statistics.mean(numbers)
    digits = 0 if mean >= 100 else 1 if mean >= 10 else 2
    return f"{mean:.{digits}f} ({min(numbers):.{digits}f}–{max(numbers):.{digits}f})"


def table(rows, trace, measures):
    policies = TRACES[trace][1]
    lines = ["| | " + " | ".join(measures) + " |", "| " + " | ".join(["---"] * (len(measures) + 1)) + " |"]
    for policy in policies:
        if not values(rows, trace, policy, lambda report: report):
            continue  # --without
        lines.append(f"| {policy} | " + " | ".join(cell(values(rows, trace, policy, value)) for value in measures.values()) + " |")
    return "\n".join(lines)


def ratios(rows):
    """Longspan by FIFO with backfill, of the means over the seeds; above 1 is worse."""
    found = {}
    for name, (value, smaller_is_better) in MEASURES.items():
        ours = statistics.mean(values(rows, "plain", "Longspan", value))
        theirs = statistics.mean(values(rows, "plain", BASE, value))
        found[name] = ours / theirs if smaller_is_better else theirs / ours
    return found


def publish(result, out):
    path = out or RESULTS
    path.write_text(json.dumps(result, indent=1) + "\n")
    rows = result["rows"]
    plain = {name: value for name, (value, _) in MEASURES.items()}
    text = f"{result['seeds']} seeds, mean (smallest–largest); {result['workers']} workers of 8 slots, {result['days']:g} days, load {result['load']}; {result['date']}.\n\n"
    text += table(rows, "plain", plain)
    text += "\n\nLongspan by FIFO with backfill, above 1 is worse: "
    text += ", ".join(f"{name.split(',')[0] if '%' in name else name.removesuffix(', h')} {ratio:.2f}" for name, ratio in result["ratios"].items())
    text += ".\n\nWith priorities (10 % of jobs 80, 20 % of jobs 20, others 50):\n\n" + table(rows, "priorities", plain | EXTRA)
    text += "\n\nElastic (half of the jobs of several slots run with a half or a quarter too):\n\n" + table(rows, "elastic", plain | EXTRA)
    print(text)
    if out is None:
        before, rest = README.read_text().split("<!-- scheduler: begin -->")
        README.write_text(f"{before}<!-- scheduler: begin -->\n{text}\n<!-- scheduler: end -->{rest.split('<!-- scheduler: end -->')[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default=ROOT / "build/release/bin/longspan-server")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=64, help="of 8 slots")
    parser.add_argument("--days", type=float, default=28)
    parser.add_argument("--load", type=float, default=0.95)
    parser.add_argument("--without", nargs="*", default=[], choices=list(POLICIES), help="policies that are not run")
    parser.add_argument("--work", type=pathlib.Path, help="folder that keeps traces and reports, so that a run that was cut off goes on")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; default: results/scheduler.json, and the README is written from it")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        flags.work = flags.work or pathlib.Path(folder)
        flags.work.mkdir(parents=True, exist_ok=True)
        traces = [(trace, seed) for trace in TRACES for seed in range(1, flags.seeds + 1)]
        list(pool.map(lambda task: generate(flags, *task), traces))
        tasks = [(trace, seed, policy) for trace, seed in traces for policy in TRACES[trace][1] if policy not in flags.without]
        tasks.sort(key=lambda task: "Slurm" in task[2])  # it takes twenty times as long as the others
        rows = list(pool.map(lambda task: measure(flags, *task), tasks))
    result = {"date": datetime.date.today().isoformat(), "seeds": flags.seeds, "workers": flags.workers, "days": flags.days, "load": flags.load}
    result |= {"ratios": ratios(rows), "rows": rows}
    publish(result, flags.out)
    wrong = {name: ratio for name, ratio in result["ratios"].items() if ratio > WORSE_MAX}
    for name, ratio in wrong.items():
        print(f"{name}: {ratio:.2f} times FIFO with backfill", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
