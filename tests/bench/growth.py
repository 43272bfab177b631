"""Speed and memory of the trainer from 1,024 to 65,536 tokens, S2 attention, beside what the planner said.

    .venv/bin/python tests/bench/growth.py [--contexts 1024 65536] [--rounds 1] [--threads 2] [--out FILE]

Two series: `lean` keeps the inputs of one layer in device memory (and those of another that is on its way) and all others in host
memory; `free` is the planner's choice for a device of 4 GB. Exit code 1 where a counted peak, or its growth under one policy, exceeds
the prediction by more than 5 %, where bytes per token grow under one policy, or where a lean step takes 4 GB or more in all.
"""

import argparse
import pathlib
import sys
import tempfile

import measured_model
import report
import steppers

DEVICE_BYTES = 4_000_000_000
WHOLE_BYTES_MAX = 4_000_000_000  # of a lean step, resident, host memory with it
OVER_PREDICTION_MAX = 1.05
GROWTH_MAX = 1.005  # of bytes per token from one length to the next: they are rounded up to whole cache lines
MEMORY = {
    "lean": {
        "keep": "input", "checkpoint_every": 1, "host_layers": 1000, "tile_tokens": 1024, "loss_tile_tokens": 512,
        "device_bytes": DEVICE_BYTES, "host_bytes": DEVICE_BYTES,
    },
    "free": {"device_bytes": DEVICE_BYTES},
}  # fmt: skip
STANDING = ("weights", "gradients", "optimizer", "collectives")


def measure(flags, model, series, context, folder):
    job = measured_model.job(model, context, "s2", memory=MEMORY[series], threads=flags.threads)
    with steppers.ours(f"{series}-{context}", job, folder, flags.threads) as side:
        steps = [side.step() for _ in range(1 + flags.rounds)]
    timed, planned = steps[1:], side.hello["planned"]
    standing = sum(planned[kind] for kind in STANDING)
    peak = max(step["memory_peak_bytes"] for step in steps)
    seconds = report.median(timed, "seconds")
    return {
        "series": series,
        "context": context,
        "policy": side.hello["policy"],
        "seconds": seconds,
        "processor_seconds": report.median(timed, "processor_seconds"),
        "tokens_per_second": context / seconds,
        "peak_bytes": peak,
        "planned_peak_bytes": side.hello["planned_device_bytes"],
        "host_bytes": steps[-1]["memory_host_bytes"],
        "planned_host_bytes": side.hello["planned_host_bytes"],
        "resident_peak_bytes": max(step["resident_peak_bytes"] for step in steps),
        "bytes_per_token": (peak - standing) / context,
        "host_wait_share": report.median(timed, "seconds_host_wait") / seconds,
        "hello": side.hello,
        "steps": steps,
    }


def policy_without_tiles(row):
    """Tiles are as long as the context where that is shorter."""
    return row["policy"].split("; tiles")[0]


def compare_lengths(rows):
    """Adds to each row what a token more took, as counted and as planned, from the length before."""
    for before, row in zip(rows, rows[1:], strict=False):
        if before["series"] != row["series"]:
            continue
        tokens = row["context"] - before["context"]
        row["growth_bytes_per_token"] = (row["peak_bytes"] - before["peak_bytes"]) / tokens
        row["planned_growth_bytes_per_token"] = (row["planned_peak_bytes"] - before["planned_peak_bytes"]) / tokens
        row["bytes_per_token_ratio"] = row["bytes_per_token"] / before["bytes_per_token"]
        row["same_policy_as_before"] = policy_without_tiles(row) == policy_without_tiles(before)


def mistakes(rows):
    wrong = []
    for row in rows:
        what = f"{row['series']}, {row['context']} tokens"
        if row["peak_bytes"] > OVER_PREDICTION_MAX * row["planned_peak_bytes"]:
            wrong.append(f"{what}: {row['peak_bytes']} bytes at the peak, {row['planned_peak_bytes']} planned")
        if row.get("same_policy_as_before") and row["bytes_per_token_ratio"] > GROWTH_MAX:
            wrong.append(f"{what}: {row['bytes_per_token']:.0f} bytes per token, {row['bytes_per_token_ratio']:.3f} times as many as before")
        if row.get("same_policy_as_before") and row["growth_bytes_per_token"] > OVER_PREDICTION_MAX * row["planned_growth_bytes_per_token"]:
            wrong.append(f"{what}: grows by {row['growth_bytes_per_token']:.0f} bytes a token, planned {row['planned_growth_bytes_per_token']:.0f}")
        if row["series"] == "lean" and row["resident_peak_bytes"] >= WHOLE_BYTES_MAX:
            wrong.append(f"{what}: {row['resident_peak_bytes']} bytes resident")
    return wrong


def growth_cell(row):
    if "growth_bytes_per_token" not in row:
        return "–"
    return f"{row['growth_bytes_per_token']:,.0f} / {row['planned_growth_bytes_per_token']:,.0f}"


def series_table(rows):
    header = ["tokens", "tokens/s", "seconds (processor)", "peak, MB", "planned, MB", "peak by planned", "host, MB", "resident peak, MB"]
    header += ["bytes per token", "growth: counted / planned", "waits for copies", "policy"]
    body = [
        [f"{row['context']:,}", f"{row['tokens_per_second']:,.0f}",
         f"{report.seconds(row['seconds'])} ({report.seconds(row['processor_seconds'])})",
         report.megabytes(row["peak_bytes"]), report.megabytes(row["planned_peak_bytes"]),
         f"{row['peak_bytes'] / row['planned_peak_bytes']:.4f}", report.megabytes(row["host_bytes"]),
         report.megabytes(row["resident_peak_bytes"]), f"{row['bytes_per_token']:,.0f}", growth_cell(row),
         f"{100 * row['host_wait_share']:.1f} %", row["policy"]]
        for row in rows
    ]  # fmt: skip
    return report.table(header, body)


def tables(result):
    captions = {
        "lean": "`lean`: layer inputs in host memory.",
        "free": f"`free`: the planner's choice for a device of {DEVICE_BYTES / 1e9:.0f} GB.",
    }
    return "\n\n".join(
        f"{caption}\n\n{series_table([row for row in result['rows'] if row['series'] == series])}" for series, caption in captions.items()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_flags(parser, "growth", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--rounds", type=int, default=2, help="after one that warms up")
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = measured_model.write(flags.model, folder)
        for series in MEMORY:
            for context in sorted(flags.contexts):
                rows.append(measure(flags, model, series, context, folder))
                print(series_table(rows[-1:]), file=sys.stderr, flush=True)
    compare_lengths(rows)
    result = {"machine": report.machine(), "model": flags.model, "threads": flags.threads, "rounds": flags.rounds, "rows": rows}
    report.publish("growth", result, tables(result), flags.out)
    wrong = mistakes(rows)
    for mistake in wrong:
        print(mistake, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
