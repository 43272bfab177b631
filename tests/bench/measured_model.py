"""What the benchmarks train: a random Llama of about 25 M parameters in its layers, an adapter with LongLoRA's trained tensors, and tokens.

Made by the recipes of tests/parity/reference, so that PEFT and the trainer start from the same values.
"""

import dataclasses
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers.utils import logging

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "parity"))

from reference import oracle  # noqa: E402
from reference.tiny_models import TinyModel, write_model  # noqa: E402

logging.disable_progress_bar()

LONGEST_CONTEXT = 65536
MODEL = TinyModel(
    hidden=512, heads=8, kv_heads=8, layers=8, intermediate=1376, vocab=8192, tied=False,
    max_position=LONGEST_CONTEXT,  # no context is extended, so positions are the same on every side
)  # fmt: skip
# For tests of these scripts: the same in small.
SMALL_MODEL = dataclasses.replace(MODEL, hidden=64, heads=4, kv_heads=4, layers=4, intermediate=176, vocab=512)
MODELS = {"25m": MODEL, "small": SMALL_MODEL}
LEARNING_RATE, CLIP_NORM, BETAS, EPSILON = 1e-4, 1.0, (0.9, 0.95), 1e-8


def write(name, folder):
    """The model's folder, below `folder`."""
    return write_model(MODELS[name], folder / "model")


def write_adapter(model, folder):
    """LoRA of rank 8 on q, k, v, o with B ≠ 0, embedding and norms moved: as after some training."""
    spec = {"context_length": 1024, "method": {"kind": "longlora"}}
    return oracle.write_adapter(model, folder / "adapter", spec, scale=0.1)


def write_tokens(name, length, folder, sequences=4):
    """One row a step, over and over."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, MODELS[name].vocab, (sequences, length), generator=generator)
    save_file({"input_ids": ids}, folder / f"tokens-{length}.safetensors")
    return folder / f"tokens-{length}.safetensors"


def job(model, context_length, attention="s2", *, method="longlora", adapter=None, memory=None, global_batch=1, slots=1, threads=1):
    """The job file. Data and evaluation are named, but `longspan-trainer measure` reads neither."""
    method = {"kind": method}
    if adapter is not None:
        method["adapter"] = str(adapter)
    elif method["kind"] != "full":
        method |= {"rank": 8, "alpha": 16}
    return {
        "name": "bench",
        "model": {"path": str(model)},
        "data": {"sources": [str(model)]},
        "context_length": context_length,
        "attention": {"kind": attention} | ({"group_ratio": 0.25} if attention == "s2" else {}),
        "method": method,
        "training": {
            "steps": 1000, "global_batch": global_batch, "micro_batch": 1, "learning_rate": LEARNING_RATE, "warmup_steps": 0,
            "beta1": BETAS[0], "beta2": BETAS[1], "epsilon": EPSILON, "clip_norm": CLIP_NORM, "dtype": "fp32",
        },
        "evaluation": {"lengths": [context_length]},
        "memory": memory or {},
        "resources": {"slots": slots, "threads_per_slot": threads},
    }  # fmt: skip
