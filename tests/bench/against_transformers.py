"""A training step of the trainer beside one of transformers + PEFT: same files, tokens, dtype, threads, in turn.

    .venv/bin/python tests/bench/against_transformers.py [--contexts 1024 2048] [--rounds 3] [--threads 2] [--out FILE]

Exit code 1 where the two sides do not compute the same: other losses than theirs, or another number of trained values.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import statistics
import sys
import tempfile

import measured_model
import report
import steppers

THEIR_CHECKPOINTING, THEIR_PLAIN = "their_checkpointing", "their_plain"
OUR_FULL, OUR_S2, OUR_FULL_LEAN, OUR_S2_LEAN = "our_full", "our_s2", "our_full_lean", "our_s2_lean"
LOSS_TOLERANCE = 1e-3  # relative
LEAN_CHECKPOINTS = (1, 2, 3, 4)
LEAN_TILE_MIN = 64  # tokens
# Their run without checkpointing takes three to four times the activations of the one with it, which the length before tells; where that
# with some room is not available, it is left out.
PLAIN_FACTOR, ROOM = 4.0, 1.3


@dataclasses.dataclass
class Setup:
    flags: argparse.Namespace
    folder: pathlib.Path
    model: pathlib.Path
    adapter: pathlib.Path

    def ours(self, name, context, attention, memory=None):
        job = measured_model.job(self.model, context, attention, adapter=self.adapter, memory=memory, threads=self.flags.threads)
        return steppers.ours(f"{name}-{context}", job, self.folder, self.flags.threads, self.tokens(context))

    def theirs(self, name, context, checkpointing):
        tokens = self.tokens(context)
        return steppers.theirs(f"{name}-{context}", self.model, self.adapter, tokens, self.folder, self.flags.threads, checkpointing)

    def tokens(self, context):
        return measured_model.write_tokens(self.flags.model, context, self.folder)

    def lean_memory(self, context, every):
        tile = max(LEAN_TILE_MIN, context // 16)
        return {
            "keep": "input", "checkpoint_every": every, "host_layers": 0,
            "tile_tokens": tile, "loss_tile_tokens": tile, "tile_heads": 4,
        }  # fmt: skip


def our_activation_bytes(hello, answer):
    """By the rule for theirs: the peak less weights, gradients and optimizer. The arena and the reducer's buckets are in it."""
    return answer["memory_peak_bytes"] - sum(hello["planned"][kind] for kind in ("weights", "gradients", "optimizer"))


def leanest(setup, context):
    """The distance of checkpoints with the lowest counted peak, and the peaks."""
    peaks = {}
    for every in LEAN_CHECKPOINTS:
        with setup.ours(f"try-{every}", context, "s2", setup.lean_memory(context, every)) as trial:
            peaks[every] = our_activation_bytes(trial.hello, trial.step())
    return min(peaks, key=peaks.get), peaks


def available_bytes():
    return int(re.search(r"^MemAvailable:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), flags=re.MULTILINE)[1]) * 1024


def check(context, sides, steps):
    """What is wrong; empty when nothing."""
    wrong = []
    for name in (OUR_FULL, OUR_FULL_LEAN):
        for number, (mine, other) in enumerate(zip(steps[name], steps[THEIR_CHECKPOINTING], strict=True), start=1):
            if abs(mine["loss"] - other["loss"]) > LOSS_TOLERANCE * abs(other["loss"]):
                wrong.append(f"{context} tokens, step {number}: {name} has loss {mine['loss']}, transformers {other['loss']}")
    trained = sides[THEIR_CHECKPOINTING].hello["trained_values"]
    if sides[OUR_FULL].hello["planned"]["gradients"] != 4 * trained:
        wrong.append(f"PEFT trains {trained} values, the trainer {sides[OUR_FULL].hello['planned']['gradients'] // 4}")
    return wrong


def summary(side, steps, activation_bytes):
    timed = steps[1:]  # the first warms up
    result = {
        "seconds": report.median(timed, "seconds"),
        "processor_seconds": report.median(timed, "processor_seconds"),
        "activation_bytes": activation_bytes,
        "resident_peak_bytes": max(step["resident_peak_bytes"] for step in timed),
        "steps": steps,
    }
    return result | ({"hello": side.hello} if "policy" in side.hello else {})


def ratios(sides, base):
    """Of processor time, theirs by ours, round by round: the machine's noise falls on both."""
    result = {}
    for name in (OUR_FULL, OUR_S2, OUR_FULL_LEAN, OUR_S2_LEAN):
        pairs = zip(sides[base]["steps"][1:], sides[name]["steps"][1:], strict=True)
        rounds = [theirs["processor_seconds"] / ours["processor_seconds"] for theirs, ours in pairs]
        result[name] = {"median": statistics.median(rounds), "least": min(rounds), "most": max(rounds)}
    return result


def open_sides(setup, context, every, plain, stack):
    lean = setup.lean_memory(context, every)
    sides = {THEIR_CHECKPOINTING: setup.theirs(THEIR_CHECKPOINTING, context, True)}
    stack.enter_context(sides[THEIR_CHECKPOINTING])
    if plain:
        sides[THEIR_PLAIN] = stack.enter_context(setup.theirs(THEIR_PLAIN, context, False))
    for name, attention, memory in (
        (OUR_FULL, "full", None), (OUR_S2, "s2", None), (OUR_FULL_LEAN, "full", lean), (OUR_S2_LEAN, "s2", lean)
    ):  # fmt: skip
        sides[name] = stack.enter_context(setup.ours(name, context, attention, memory))
    return sides


def measure(setup, context, plain):
    every, peaks = leanest(setup, context)
    with contextlib.ExitStack() as stack:
        sides = open_sides(setup, context, every, plain, stack)
        steps = {name: [] for name in sides}
        for _ in range(1 + setup.flags.rounds):
            for name, side in sides.items():
                steps[name].append(side.step())
        activations = {
            name: side.step("memory")["activation_peak_bytes"] if name.startswith("their") else our_activation_bytes(side.hello, steps[name][-1])
            for name, side in sides.items()
        }
        wrong = check(context, sides, steps)
        measured = {name: summary(side, steps[name], activations[name]) for name, side in sides.items()}
    return {
        "context": context,
        "lean": {**setup.lean_memory(context, every), "activation_bytes_by_checkpoint_every": peaks},
        "sides": measured,
        "processor_ratio_to_their_checkpointing": ratios(measured, THEIR_CHECKPOINTING),
        "processor_ratio_to_their_plain": ratios(measured, THEIR_PLAIN) if plain else None,
        "worst_loss_difference": max(
            abs(mine["loss"] / theirs["loss"] - 1) for mine, theirs in zip(steps[OUR_FULL], steps[THEIR_CHECKPOINTING], strict=True)
        ),
    }, wrong


def time_cell(row, name):
    side = row["sides"].get(name)
    return f"{report.seconds(side['seconds'])} ({report.seconds(side['processor_seconds'])})" if side else "does not fit"


def ratio_cell(row, key, name):
    ratio = row[key] and row[key][name]
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} – {ratio['most']:.2f})" if ratio else "–"


def time_table(rows):
    checkpointing, plain = "processor_ratio_to_their_checkpointing", "processor_ratio_to_their_plain"
    header = ["tokens", "theirs, checkpointing", "theirs, without", "ours, full", "ours, S2"]
    header += ["full by checkpointing", "full by without", "S2 by checkpointing", "S2 by without"]
    body = [
        [f"{row['context']:,}", *(time_cell(row, name) for name in (THEIR_CHECKPOINTING, THEIR_PLAIN, OUR_FULL, OUR_S2)),
         ratio_cell(row, checkpointing, OUR_FULL), ratio_cell(row, plain, OUR_FULL),
         ratio_cell(row, checkpointing, OUR_S2), ratio_cell(row, plain, OUR_S2)]
        for row in rows
    ]  # fmt: skip
    return report.table(header, body)


def memory_cell(row, name):
    side = row["sides"].get(name)
    return f"{report.megabytes(side['activation_bytes'])} / {report.megabytes(side['resident_peak_bytes'])}" if side else "does not fit"


def memory_table(rows):
    names = (THEIR_CHECKPOINTING, THEIR_PLAIN, OUR_FULL, OUR_S2, OUR_FULL_LEAN, OUR_S2_LEAN)
    header = ["tokens", "theirs, checkpointing", "theirs, without", "ours, full", "ours, S2", "ours, full, lean", "ours, S2, lean"]
    header += ["share of theirs, lean", "lean: every", "full, lean by checkpointing", "S2, lean by checkpointing"]
    key, body = "processor_ratio_to_their_checkpointing", []
    for row in rows:
        share = row["sides"][OUR_FULL_LEAN]["activation_bytes"] / row["sides"][THEIR_CHECKPOINTING]["activation_bytes"]
        body.append([f"{row['context']:,}", *(memory_cell(row, name) for name in names), f"{share:.2f}",
                     row["lean"]["checkpoint_every"], ratio_cell(row, key, OUR_FULL_LEAN), ratio_cell(row, key, OUR_S2_LEAN)])  # fmt: skip
    return report.table(header, body)


def policy_table(rows):
    body = [[f"{row['context']:,}", *(row["sides"][name]["hello"]["policy"] for name in (OUR_FULL, OUR_S2))] for row in rows]
    return report.table(["tokens", "the planner's choice, full", "S2"], body)


def tables(result):
    rows = result["rows"]
    difference = max(row["worst_loss_difference"] for row in rows)
    return "\n\n".join([
        f"Seconds of a step (of the processor), medians of {result['rounds']} rounds; ratios of processor time, theirs by ours (least – most).",
        time_table(rows),
        "Activations at their peak / resident peak of the process, MB; ratios of processor time of the lean policy.",
        memory_table(rows),
        policy_table(rows),
        f"Losses of full attention differ from theirs by at most {difference:.1e} over all steps.",
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_flags(parser, "against_transformers", [1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    flags = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = measured_model.write(flags.model, folder)
        setup = Setup(flags, folder, model, measured_model.write_adapter(model, folder))
        for context in sorted(flags.contexts):
            last = rows[-1]["sides"][THEIR_CHECKPOINTING]["activation_bytes"] / rows[-1]["context"] * context if rows else 0
            row, mistakes = measure(setup, context, last * PLAIN_FACTOR * ROOM < available_bytes())
            rows.append(row)
            wrong += mistakes
            print(time_table([row]), memory_table([row]), sep="\n", file=sys.stderr, flush=True)
            result = {"machine": report.machine(), "model": flags.model, "threads": flags.threads, "rounds": flags.rounds, "rows": rows}
            report.publish("against_transformers", result, tables(result), flags.out)  # what is there, should the next length end badly
    for mistake in wrong:
        print(mistake, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
