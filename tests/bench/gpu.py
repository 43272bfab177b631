"""The trainer on a GPU beside transformers + PEFT, on shapes of Llama-2-7B with random weights: tokens/s, peak memory, TFLOP/s.

    .venv/bin/python tests/bench/gpu.py [--contexts 8192 32768] [--again] [--out FILE]

Every row is written as soon as it is there and left alone by later runs (--again measures anew), so a run may be cut at any point. Theirs
stands beside ours until it runs out of memory, with SDPA, gradient checkpointing and bf16; a second one with liger-kernel where that is
installed. A row that ran out of memory says so.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile

import measured_model
import report
import steppers
import torch
import torch.utils.benchmark

# (tokens, attention, memory): lengths of the speed table, shortest first. `host` lets kept values leave for host memory.
ROWS = [
    (8_192, "s2", {}), (32_768, "s2", {}), (102_400, "s2", {}), (131_072, "full", {}), (262_144, "s2", {}),
    (524_288, "s2", {"host_bytes": "96GiB"}), (1_048_576, "s2", {"host_bytes": "110GiB"}),
]  # fmt: skip
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000,
    "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL = LLAMA_2_7B | {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
                      "head_dim": 16, "vocab_size": 512}  # fmt: skip
THEIR_FULL = "Their attention is full: transformers has no S2."


def write_model(shape, layers, folder):
    config = LLAMA_2_7B if shape == "7b" else SMALL
    if layers:
        config = config | {"num_hidden_layers": layers}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config, indent=2))
    return folder / "model"


def job(flags, model, context, attention, memory):
    spec = measured_model.job(model, context, attention, memory=memory, threads=flags.threads)
    spec["model"]["init"] = "random"
    spec["training"]["dtype"] = "bf16" if flags.device == "cuda" else "fp32"
    return spec


def ours(flags, model, row, folder):
    context, attention, memory = row
    spec = folder / "job.json"
    spec.write_text(json.dumps(job(flags, model, context, attention, memory), indent=2))
    command = [steppers.trainer(), "measure", spec, "--threads", flags.threads, "--device", flags.device]
    try:
        with steppers.Stepper(f"ours-{context}", command, folder / "ours.log", flags.threads) as side:
            steps = [side.step() for _ in range(1 + flags.rounds)]
            hello = side.hello
    except steppers.ChildFailed as error:
        return {"failed": str(error).splitlines()[-1]}
    seconds = statistics.median(step["seconds"] for step in steps[1:])
    return {
        "seconds": seconds, "tokens_per_second": context / seconds, "memory_peak_bytes": max(step["memory_peak_bytes"] for step in steps),
        "planned_device_bytes": hello["planned_device_bytes"], "host_bytes": steps[-1]["memory_host_bytes"],
        "policy": hello["policy"], "planned_seconds": hello["planned_seconds"], "model_flops": hello["model_flops"],
        "flops_per_second": hello["model_flops"] / seconds, "host_wait_seconds": statistics.median(s["seconds_host_wait"] for s in steps[1:]),
        "steps": steps,
    }  # fmt: skip


def theirs(flags, model, context, folder, liger):
    dtype = "bfloat16" if flags.device == "cuda" else "float32"
    command = [sys.executable, steppers.FOLDER / "gpu_side.py", model, "--context", context, "--device", flags.device, "--dtype", dtype]
    try:
        with steppers.Stepper(f"theirs-{context}", command + (["--liger"] if liger else []), folder / "theirs.log", flags.threads) as side:
            if "out_of_memory" in side.hello:
                return side.hello
            steps = []
            for _ in range(1 + flags.rounds):
                steps.append(side.step())
                if "out_of_memory" in steps[-1]:
                    return steps[-1]
    except steppers.ChildFailed as error:
        return {"failed": str(error).splitlines()[-1]}
    seconds = statistics.median(step["seconds"] for step in steps[1:])
    return {
        "seconds": seconds, "tokens_per_second": context / seconds, "memory_peak_bytes": max(step["memory_peak_bytes"] for step in steps), "steps": steps,
    }  # fmt: skip


def gemm_rate(device):
    """FLOP/s of the fastest of some large bf16 products; the share of it is what a step can be held to."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            a @ b
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) * 1e-3)
        else:
            timer = torch.utils.benchmark.Timer("a @ b", globals={"a": a, "b": b})
            best = min(best, timer.timeit(1).mean)
    return 2 * size**3 / best


def device_facts(device):
    if device == "cpu":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "memory_gb": round(properties.total_memory / 1e9), "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }  # fmt: skip


def key_of(row):
    context, attention, _ = row
    return f"{attention}-{context}"


def cell(side):
    if side is None:
        return "–"
    if "out_of_memory" in side:
        return "out of memory"
    if "failed" in side:
        return "failed"
    return f"{side['tokens_per_second']:,.0f} ({side['memory_peak_bytes'] / 1e9:.1f} GB)"


def table(result):
    header = ["tokens", "attention", "ours, tokens/s (peak)", "planned, GB", "TFLOP/s", "of a GEMM", "theirs", "theirs, liger", "policy"]
    rows = []
    for row in result["rows"].values():
        mine = row["ours"]
        ok = "seconds" in mine
        rows.append([
            f"{row['context']:,}", row["attention"], cell(mine), f"{mine['planned_device_bytes'] / 1e9:.1f}" if ok else "–",
            f"{mine['flops_per_second'] * 1e-12:.0f}" if ok else "–", f"{100 * mine['flops_per_second'] / result['gemm_flops_per_second']:.0f} %" if ok else "–",
            cell(row["theirs"]), cell(row.get("theirs_liger")), mine.get("policy", mine.get("failed", "")),
        ])  # fmt: skip
    return report.table(header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_flags(parser, "gpu", [row[0] for row in ROWS], threads=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script with --model small")
    parser.add_argument("--rounds", type=int, default=2, help="after one that warms up")
    parser.add_argument("--layers", type=int, help="of the model; the table says so")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    flags = parser.parse_args()
    rows = [row for row in ROWS if row[0] in flags.contexts] or [(context, "s2", {}) for context in flags.contexts]
    out = flags.out or steppers.FOLDER / "results" / "gpu.json"
    result = json.loads(out.read_text()) if out.exists() and not flags.again else {"rows": {}}
    result |= {"machine": report.machine() | device_facts(flags.device), "model": flags.model, "layers": flags.layers, "rounds": flags.rounds}
    result["gemm_flops_per_second"] = gemm_rate(flags.device)
    liger = importlib.util.find_spec("liger_kernel") is not None

    def publish():
        report.publish("gpu", result, f"{THEIR_FULL}\n\n{table(result)}", flags.out)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model = write_model("small" if flags.model == "small" else "7b", flags.layers, folder)
        too_long = False  # for them: what is longer is not tried
        for row in rows:
            if key_of(row) in result["rows"]:
                too_long |= "out_of_memory" in (result["rows"][key_of(row)]["theirs"] or {})
                continue
            measured = {"context": row[0], "attention": row[1], "ours": ours(flags, model, row, folder)}
            measured["theirs"] = None if too_long else theirs(flags, model, row[0], folder, liger=False)
            measured["theirs_liger"] = theirs(flags, model, row[0], folder, liger=True) if liger and not too_long else None
            too_long |= "out_of_memory" in (measured["theirs"] or {})
            result["rows"][key_of(row)] = measured
            publish()
    publish()
    failed = [key for key, row in result["rows"].items() if "failed" in row["ours"]]
    for key in failed:
        print(f"{key}: {result['rows'][key]['ours']['failed']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
