"""1, 2 and 4 ranks over Gloo on this machine, one thread each, the same global batch: speed, bytes added up, and how much of that the
backward pass hides.

    .venv/bin/python tests/bench/scaling.py [--contexts 1024] [--ranks 1 2 4] [--rounds 5] [--out FILE]
"""

import argparse
import contextlib
import itertools
import pathlib
import statistics
import sys
import tempfile

import measured_model
import report
import steppers

# Most of what longlora trains is the embedding, whose gradient is the last to be complete; full has most of it in the layers.
METHODS = ("longlora", "full")


def start(flags, model, context, method, ranks, folder, stack):
    """The ranks' children, once all of them have joined."""
    job = measured_model.job(model, context, "s2", method=method, global_batch=flags.global_batch, slots=ranks)

    def rank(number, store):
        return stack.enter_context(steppers.ours(f"rank-{number}-of-{ranks}-{method}-{context}", job, folder, 1, rank=(number, ranks, store)))

    children = [rank(0, "127.0.0.1:0")]
    if ranks > 1:
        store = children[0].wait_for_log(r"the rank store listens at (\S+)")[1]
        children += [rank(number, store) for number in range(1, ranks)]
    for child in children:
        child.hello = child.answer()
    return children


def overlap_share(answer):
    """Of the time that all-reduces were under way, what did not pass in waiting for them at the end of the backward pass."""
    busy = answer["seconds_allreduce_busy"]
    return max(0.0, 1 - answer["seconds_allreduce"] / busy) if busy > 0 else None


def one_step(children):
    for child in children:
        child.send()
    answers = [child.answer() for child in children]
    shares = [share for share in map(overlap_share, answers) if share is not None]
    return {
        "seconds": max(answer["seconds"] for answer in answers),
        "processor_seconds": sum(answer["processor_seconds"] for answer in answers),
        "allreduce_bytes": answers[0]["allreduce_bytes"],
        "seconds_allreduce": statistics.mean(answer["seconds_allreduce"] for answer in answers),
        "seconds_allreduce_busy": statistics.mean(answer["seconds_allreduce_busy"] for answer in answers),
        "overlap_share": statistics.mean(shares) if shares else None,
        "loss": answers[0]["loss"],
        "ranks": answers,
    }


def measure(flags, model, context, method, ranks, folder):
    with contextlib.ExitStack() as stack:
        children = start(flags, model, context, method, ranks, folder, stack)
        steps = [one_step(children) for _ in range(1 + flags.rounds)]
    timed = steps[1:]
    result = {key: report.median(timed, key) for key in ("seconds", "processor_seconds", "seconds_allreduce", "seconds_allreduce_busy")}
    return {
        "context": context,
        "method": method,
        "ranks": ranks,
        **result,
        "tokens_per_second": flags.global_batch * context / result["seconds"],
        "allreduce_bytes": timed[0]["allreduce_bytes"],
        "overlap_share": report.median(timed, "overlap_share") if ranks > 1 else None,
        "steps": steps,
    }


def tables(result):
    cores = result["machine"]["cores"]
    header = ["tokens", "method", "ranks", "tokens/s", "seconds (processor)", "all-reduced by a rank, MB", "under way, s", "waited, s", "overlap"]
    body = [
        [f"{row['context']:,}", f"`{row['method']}`", row["ranks"], f"{row['tokens_per_second']:,.0f}",
         f"{report.seconds(row['seconds'])} ({report.seconds(row['processor_seconds'])})", f"{row['allreduce_bytes'] / 1e6:.1f}",
         report.seconds(row["seconds_allreduce_busy"]), report.seconds(row["seconds_allreduce"]),
         "–" if row["overlap_share"] is None else f"{100 * row['overlap_share']:.0f} %"]
        for row in result["rows"]
    ]  # fmt: skip
    caveat = (
        f"A step of {result['global_batch']} sequences, one thread a rank. The ranks share {cores} cores, with Gloo's own threads: beyond "
        f"{cores} ranks there is nothing to win, and a collective waits for ranks that do not run."
    )
    return f"{caveat}\n\n{report.table(header, body)}"


def same_losses(rows):
    """Every number of ranks computes the same first step."""
    first = {}
    for row in rows:
        loss = row["steps"][0]["loss"]
        if abs(loss - first.setdefault((row["context"], row["method"]), loss)) > 1e-5 * abs(loss):
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_flags(parser, "scaling", [1024, 4096], threads=None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--global-batch", type=int, default=4, help="sequences of a step; a multiple of every number of ranks")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = measured_model.write(flags.model, folder)
        for context, method, ranks in itertools.product(sorted(flags.contexts), METHODS, flags.ranks):
            rows.append(measure(flags, model, context, method, ranks, folder))
            print(context, method, ranks, rows[-1]["seconds"], file=sys.stderr, flush=True)
    result = {
        "machine": report.machine(), "model": flags.model, "threads": 1, "rounds": flags.rounds,
        "global_batch": flags.global_batch, "rows": rows,
    }  # fmt: skip
    report.publish("scaling", result, tables(result), flags.out)
    if not same_losses(rows):
        print("the loss depends on the number of ranks", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
