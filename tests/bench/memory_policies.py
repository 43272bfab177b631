"""What each memory policy takes and costs: every `keep` x `checkpoint_every` x placement, at one length, S2 attention.

    .venv/bin/python tests/bench/memory_policies.py [--contexts 8192] [--rounds 1] [--threads 2] [--out FILE]

Exit code 1 where a counted peak exceeds the prediction by more than 5 %, or where policies disagree about the first loss.
"""

import argparse
import itertools
import pathlib
import sys
import tempfile

import measured_model
import report
import steppers

KEEP = ("input", "attention_output", "query_key_value", "residual", "gate_up")
CHECKPOINT_EVERY = (1, 2, 4)
PLACES = {"device": {"host_layers": 0}, "host": {"host_layers": 1000, "host_bytes": 8_000_000_000}}  # 1000: as many as can
OVER_PREDICTION_MAX = 1.05
LOSS_TOLERANCE = 1e-5


def measure(flags, model, context, policy, folder):
    keep, every, place = policy
    memory = {"keep": keep, "checkpoint_every": every, "tile_tokens": 1024, "loss_tile_tokens": 512, **PLACES[place]}
    job = measured_model.job(model, context, "s2", memory=memory, threads=flags.threads)
    with steppers.ours("-".join(map(str, (context, *policy))), job, folder, flags.threads) as side:
        steps = [side.step() for _ in range(1 + flags.rounds)]
    timed = steps[1:]
    return {
        "context": context, "keep": keep, "checkpoint_every": every, "place": place,
        "policy": side.hello["policy"],
        "seconds": report.median(timed, "seconds"),
        "processor_seconds": report.median(timed, "processor_seconds"),
        "seconds_host_wait": report.median(timed, "seconds_host_wait"),
        "peak_bytes": max(step["memory_peak_bytes"] for step in steps),
        "planned_peak_bytes": side.hello["planned_device_bytes"],
        "host_bytes": steps[-1]["memory_host_bytes"],
        "loss": steps[0]["loss"],
        "steps": steps,
    }  # fmt: skip


def tables(result):
    header = ["tokens", "keep", "checkpoint every", "kept in", "peak, MB", "planned, MB", "peak by planned", "host, MB", "seconds (processor)"]
    header += ["waits for copies, s"]
    body = [
        [f"{row['context']:,}", f"`{row['keep']}`", row["checkpoint_every"], row["place"], report.megabytes(row["peak_bytes"]),
         report.megabytes(row["planned_peak_bytes"]), f"{row['peak_bytes'] / row['planned_peak_bytes']:.4f}",
         report.megabytes(row["host_bytes"]), f"{report.seconds(row['seconds'])} ({report.seconds(row['processor_seconds'])})",
         report.seconds(row["seconds_host_wait"])]
        for row in result["rows"]
    ]  # fmt: skip
    return report.table(header, body)


def mistakes(rows):
    wrong = []
    for row in rows:
        what = f"{row['context']} tokens, {row['keep']}, every {row['checkpoint_every']}, {row['place']}"
        if row["peak_bytes"] > OVER_PREDICTION_MAX * row["planned_peak_bytes"]:
            wrong.append(f"{what}: {row['peak_bytes']} bytes at the peak, {row['planned_peak_bytes']} planned")
        first = next(other for other in rows if other["context"] == row["context"])
        if abs(row["loss"] - first["loss"]) > LOSS_TOLERANCE * abs(first["loss"]):
            wrong.append(f"{what}: loss {row['loss']}, {first['loss']} under another policy")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_flags(parser, "memory_policies", [8192])
    parser.add_argument("--keep", nargs="+", choices=KEEP, default=KEEP)
    parser.add_argument("--rounds", type=int, default=1, help="after one that warms up")
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = measured_model.write(flags.model, folder)
        for context, *policy in itertools.product(flags.contexts, flags.keep, CHECKPOINT_EVERY, PLACES):
            rows.append(measure(flags, model, context, policy, folder))
            print(" ".join(map(str, (context, *policy, rows[-1]["seconds"]))), file=sys.stderr, flush=True)
    result = {"machine": report.machine(), "model": flags.model, "threads": flags.threads, "rounds": flags.rounds, "rows": rows}
    report.publish("memory_policies", result, tables(result), flags.out)
    wrong = mistakes(rows)
    for mistake in wrong:
        print(mistake, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
