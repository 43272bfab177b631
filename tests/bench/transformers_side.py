"""The other side of against_transformers.py: a training step of transformers and PEFT for every line of standard input.

    step      an ordinary step, timed
    memory    the same under a profile of LibTorch's CPU allocator: not timed; `activation_peak_bytes` is the most that was allocated at
              once on top of weights, gradients and optimizer, all of which stand before
"""

import argparse
import json
import os
import resource
import sys
import time

import torch
from measured_model import BETAS, CLIP_NORM, EPSILON, LEARNING_RATE
from peft import PeftModel
from safetensors.torch import load_file
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM


def load(flags):
    base = AutoModelForCausalLM.from_pretrained(flags.model, dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, flags.adapter, is_trainable=True, autocast_adapter_dtype=False)
    if flags.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def allocated_peak_bytes(recorded):
    """Of a profile; live bytes after each allocation, counted from its start."""
    peak, nodes = 0, list(recorded.profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if node.tag == _EventType.Allocation:
            peak = max(peak, node.typed[1].total_allocated)
    return peak


class Side:
    def __init__(self, flags):
        self.model = load(flags)
        self.rows = load_file(flags.tokens)["input_ids"]
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # `fused` is the fastest of torch's forms on a CPU.
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
        )
        self.steps = 0

    def step(self, set_to_none=True):
        ids = self.rows[self.steps % len(self.rows)][None]
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=set_to_none)
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        return {"loss": float(loss), "grad_norm": float(norm)}

    def timed(self):
        processor, begin = processor_seconds(), time.perf_counter()
        result = self.step()
        return {**result, "seconds": time.perf_counter() - begin, "processor_seconds": processor_seconds() - processor}

    def counted(self):
        """Gradients stay allocated, so that all that is allocated on top of what stands is activations and workspace."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
            result = self.step(set_to_none=False)
        return {**result, "activation_peak_bytes": allocated_peak_bytes(recorded)}

    def standing_bytes(self):
        moments = sum(value.nbytes for state in self.optimizer.state.values() for value in state.values())
        weights = sum(tensor.nbytes for tensor in [*self.model.parameters(), *self.model.buffers()])
        return weights + moments + sum(parameter.nbytes for parameter in self.trained)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("tokens", help="safetensors with input_ids, a row a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    flags = parser.parse_args()
    # What libraries print is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(flags.threads)
    side = Side(flags)
    print(json.dumps({"trained_values": sum(parameter.numel() for parameter in side.trained)}), file=answers, flush=True)
    for line in sys.stdin:
        answer = side.counted() if line.strip() == "memory" else side.timed()
        print(json.dumps({**answer, "standing_bytes": side.standing_bytes()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
