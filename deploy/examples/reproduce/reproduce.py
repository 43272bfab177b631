"""Runs the settings of the LongLoRA paper's Tables 1 and 2 as jobs of a running cluster, and writes the tables.

    longspan dev --workers 2 --run 'python3 reproduce.py'       (reproduce.sh does that)

Three stages, each waiting for the one before: the base model; one learning rate for each kind of method, the best of RATES
by a seed that the tables do not use; the tables. Every job is submitted under a request id made from its content, so a
second start finds the jobs of the first and submits none of them again.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
CORPUS = FOLDER.parent / "corpus" / "king-james-bible.jsonl.gz"
BASE_INIT = FOLDER.parent / "tiny-base-init"
HOLDOUT = 0.05  # the same in every job: none of them has trained on the text that is measured
BASE_CONTEXT = 256


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is run. The tables of README.md are FULL; a test runs SMOKE."""

    base_steps: int = 1500
    steps: int = 60
    tokens_per_step: int = 4096
    warmup_steps: int = 10
    measured_tokens: int = 32768
    lengths: tuple = (512, 1024, 2048)  # Table 1; as the paper's 8192, 16384 and 32768 are 2, 4 and 8 times its base model's context
    main_length: int = 1024  # Table 2
    ranks: tuple = (8, 16, 32, 64)
    rates: tuple = (0.0005, 0.0015, 0.005)
    rate_seed: int = 100
    seeds: tuple = (1, 2, 3)


FULL = Scale()
SMOKE = Scale(base_steps=2, steps=1, tokens_per_step=512, warmup_steps=0, measured_tokens=1024, lengths=(512,), main_length=512, ranks=(8,),
              rates=(0.001, 0.002), seeds=(1, 2))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of Table 2."""

    label: str
    kind: str
    rate_of: str  # which sweep its learning rate comes from
    rank: int = 0
    norms: bool = False
    embeddings: bool = False

    def keys(self):
        if self.kind == "full":
            return {"kind": "full"}
        return {"kind": "lora", "rank": self.rank, "alpha": 2 * self.rank, "train_norms": self.norms, "train_embeddings": self.embeddings}


FULL_METHOD = Method("full fine-tuning", "full", "full")


def lora(rank, norms=False, embeddings=False):
    extra = (" + norms" if norms else "") + (" + embedding" if embeddings else "")
    name = "LongLoRA: LoRA" if norms and embeddings else "LoRA"
    return Method(f"{name} rank {rank}{extra}", "lora", "lora + embedding" if embeddings else "lora", rank, norms, embeddings)


LONGLORA = lora(8, True, True)


def table2_methods(scale):
    return [FULL_METHOD, *(lora(rank) for rank in scale.ranks), lora(8, norms=True), lora(8, embeddings=True), LONGLORA]


@dataclasses.dataclass(frozen=True)
class Run:
    """One job: a method with an attention at a length, with one learning rate and one seed."""

    method: Method
    attention: str
    length: int
    rate: float
    seed: int

    def job(self, scale, base):
        sequences = max(1, scale.tokens_per_step // self.length)
        return {
            "name": f"{self.method.kind}-{self.method.rank}-{self.attention}-{self.length}-seed-{self.seed}",
            "queue": "reproduce",
            "model": {"path": str(base)},
            "data": {"sources": [str(CORPUS)], "holdout_fraction": HOLDOUT},
            "context_length": self.length,
            "attention": {"kind": self.attention},
            "method": self.method.keys(),
            "training": {"steps": scale.steps, "global_batch": sequences, "micro_batch": min(sequences, max(1, 2048 // self.length)),
                         "learning_rate": self.rate, "warmup_steps": scale.warmup_steps, "seed": self.seed, "dtype": "fp32"},
            "evaluation": {"lengths": [self.length], "max_tokens": scale.measured_tokens},
            "checkpoint": {"every_steps": 0, "keep_last": 1},
            "output": {"adapter": False, "merged": False},
        }  # fmt: skip


def base_job(scale):
    return {
        "name": "reproduce-base",
        "queue": "reproduce",
        "model": {"path": str(BASE_INIT), "init": "random"},
        "data": {"sources": [str(CORPUS)], "holdout_fraction": HOLDOUT},
        "context_length": BASE_CONTEXT,
        "attention": {"kind": "full"},
        "method": {"kind": "full"},
        "training": {"steps": scale.base_steps, "global_batch": 8, "micro_batch": 4, "learning_rate": 0.003, "schedule": "cosine",
                     "warmup_steps": min(50, scale.base_steps), "seed": 1, "dtype": "fp32"},
        "evaluation": {"lengths": [BASE_CONTEXT]},
        "checkpoint": {"every_steps": 250},
        "resources": {"slots": 2},
    }  # fmt: skip


# ---- the cluster ----


def longspan(*arguments, text=None):
    """The items that a command of the client prints."""
    done = subprocess.run(["longspan", *arguments, "--output", "json"], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"longspan {' '.join(arguments)} exited {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)["items"]


def submit(job):
    text = json.dumps(job)
    request = "reproduce-" + hashlib.sha256(text.encode()).hexdigest()[:32]
    return longspan("submit", "-", "--request-id", request, text=text)[0]["job_id"]


def finish(stage, jobs):
    """Submits the jobs, waits for the end of all, and returns what `describe` says of each, in order."""
    ids = [submit(job) for job in jobs]
    shown = -1
    while True:
        states = {job["job_id"]: job for job in longspan("list", "--queue", "reproduce", "--limit", "10000")}
        for job_id in ids:
            job = states[job_id]
            if job["state"] in ("FAILED", "CANCELLED"):
                sys.exit(f"{job['spec']['name']} ({job_id}) is {job['state']}: {job['status_message']}")
        ended = sum(states[job_id]["state"] == "SUCCEEDED" for job_id in ids)
        if ended != shown:
            shown = ended
            print(f"{stage}: {ended} of {len(ids)} jobs", flush=True)
        if ended == len(ids):
            return [longspan("describe", job_id)[0] for job_id in ids]
        time.sleep(2)


def perplexity(job, model):
    row = next(row for row in job["evaluations"] if row["model"] == model)
    return float(row["perplexity"])


# ---- the settings ----


def sweep_runs(scale):
    """By kind of method, a run for each learning rate; S2 at Table 2's length."""
    kinds = {"full": FULL_METHOD, "lora": lora(8), "lora + embedding": LONGLORA}
    return {kind: [Run(method, "s2", scale.main_length, rate, scale.rate_seed) for rate in scale.rates] for kind, method in kinds.items()}


def table_runs(scale, rates):
    """Every run of both tables, once."""
    settings = [(FULL_METHOD, attention, length) for length in scale.lengths for attention in ("full", "short", "s2")]
    settings += [(LONGLORA, attention, scale.main_length) for attention in ("full", "short")]
    settings += [(method, "s2", scale.main_length) for method in table2_methods(scale)]
    # Seeds outside: a table of fewer seeds is whole early. dict: Table 2's first row is in Table 1 too.
    return list(dict.fromkeys(
        Run(method, attention, length, rates[method.rate_of], seed) for seed in scale.seeds for method, attention, length in settings
    ))  # fmt: skip


def trainable(method):
    """Trained parameters: LoRA on q, k, v and o of every layer, and what trains as a whole."""
    config = json.loads((BASE_INIT / "config.json").read_text())
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, kv, inner = config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]
    width = config["head_dim"]
    attention = [(hidden, heads * width), (hidden, kv * width), (hidden, kv * width), (heads * width, hidden)]
    norms, embedding = (2 * layers + 1) * hidden, vocabulary * hidden
    if method.kind == "full":
        return layers * (sum(i * o for i, o in attention) + 3 * hidden * inner) + norms + embedding
    return layers * sum(method.rank * (i + o) for i, o in attention) + method.norms * norms + method.embeddings * embedding


# ---- the tables ----


def spread(values):
    """Mean and range over the seeds."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} – {max(values):.2f})"


def render(scale, rates, sweeps, results):
    """Markdown of all tables. `sweeps`: kind -> perplexities in the order of scale.rates; `results`: (Run, perplexity, of the rescaled base)."""
    found, rescaled = {}, {}
    for run, value, untrained in results:
        found.setdefault((run.method, run.attention, run.length), []).append(value)
        rescaled[run.length] = untrained
    cell = lambda *key: spread(found[key]) if key in found else ""  # noqa: E731
    seeds = f"{len(scale.seeds)} seeds"
    lines = [
        f"Table 1. Attention during training, full fine-tuning: perplexity at the trained length, mean (lowest – highest) of {seeds}.", "",
        "| attention in training | " + " | ".join(str(length) for length in scale.lengths) + " |",
        "| --- |" + " ---: |" * len(scale.lengths),
        "| none: positions rescaled, not trained | " + " | ".join(f"{rescaled[length]:.2f}" for length in scale.lengths) + " |",
    ]  # fmt: skip
    names = {"full": "full", "short": "short (a quarter, not shifted)", "s2": "S2 (a quarter, half of the heads shifted)"}
    for attention, name in names.items():
        lines.append(f"| {name} | " + " | ".join(cell(FULL_METHOD, attention, length) for length in scale.lengths) + " |")
    lines += ["", f"The same at {scale.main_length} with LongLoRA ({LONGLORA.label.removeprefix('LongLoRA: ')}):", "",
              "| attention in training | perplexity |", "| --- | ---: |"]  # fmt: skip
    lines += [f"| {name} | {cell(LONGLORA, attention, scale.main_length)} |" for attention, name in names.items()]
    lines += ["", f"Table 2. What trains, with S2 at {scale.main_length} tokens: perplexity, mean (lowest – highest) of {seeds}.", "",
              "| method | trained parameters | perplexity |", "| --- | ---: | ---: |",
              f"| none: positions rescaled, not trained | 0 | {rescaled[scale.main_length]:.2f} |"]  # fmt: skip
    lines += [f"| {method.label} | {trainable(method):,} | {cell(method, 's2', scale.main_length)} |" for method in table2_methods(scale)]
    lines += ["", f"Learning rates, chosen by one run each with seed {scale.rate_seed}, S2 at {scale.main_length}; the best one is used above.", "",
              "| method | " + " | ".join(f"{rate:g}" for rate in scale.rates) + " |", "| --- |" + " ---: |" * len(scale.rates)]  # fmt: skip
    for kind, values in sweeps.items():
        cells = [f"**{value:.2f}**" if rate == rates[kind] else f"{value:.2f}" for rate, value in zip(scale.rates, values)]
        lines.append(f"| {kind}{'' if kind == 'full' else ' (rank 8)'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_into(readme, tables):
    """Replaces what stands between the two marks of README.md."""
    begin, end = "<!-- tables: written by reproduce.py -->\n", "<!-- end of tables -->\n"
    head, _, rest = readme.read_text().partition(begin)
    _, mark, tail = rest.partition(end)
    if not mark:
        sys.exit(f"{readme} has no lines '{begin.strip()}' and '{end.strip()}'")
    readme.write_text(head + begin + "\n" + tables + "\n" + end + tail)


def main():
    parser = argparse.ArgumentParser(description="The LongLoRA paper's Tables 1 and 2 with a tiny model, on the cluster that LONGSPAN_ADDRESS names.")
    parser.add_argument("--smoke", action="store_true", help="a few steps of each kind: shows that everything runs, says nothing else")
    parser.add_argument("--to", type=pathlib.Path, default=FOLDER, help="folder of README.md and results.csv (default: this one)")
    options = parser.parse_args()
    if not (options.to / "README.md").is_file():
        parser.error(f"--to: {options.to} has no README.md to write the tables into")
    scale = SMOKE if options.smoke else FULL

    base_run = finish("base model", [base_job(scale)])[0]
    base = next(artifact["path"] for artifact in base_run["artifacts"] if artifact["kind"] == "merged")

    kinds = sweep_runs(scale)
    swept = iter(finish("learning rates", [run.job(scale, base) for runs in kinds.values() for run in runs]))
    sweeps = {kind: [perplexity(next(swept), "extended") for _ in runs] for kind, runs in kinds.items()}
    rates = {kind: scale.rates[values.index(min(values))] for kind, values in sweeps.items()}

    runs = table_runs(scale, rates)
    jobs = finish("tables", [run.job(scale, base) for run in runs])
    results = [(run, perplexity(job, "extended"), perplexity(job, "rescaled")) for run, job in zip(runs, jobs)]

    with open(options.to / "results.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["method", "attention", "length", "learning_rate", "seed", "perplexity", "perplexity_rescaled_untrained", "perplexity_base"])
        for (run, value, untrained), job in zip(results, jobs):
            row = [run.method.label, run.attention, run.length, run.rate, run.seed, value, untrained, perplexity(job, "base")]
            table.writerow(row[:5] + [f"{number:.4f}" for number in row[5:]])
    tables = render(scale, rates, sweeps, results)
    write_into(options.to / "README.md", tables)
    print(f"base model at {BASE_CONTEXT} tokens: perplexity {perplexity(base_run, 'extended'):.2f}\n\n{tables}")


if __name__ == "__main__":
    main()
