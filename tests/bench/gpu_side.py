"""The other side of gpu.py: steps of transformers and PEFT on one device, with random weights of a config.json, for every line of standard
input. A line of JSON answers each; one with "out_of_memory" ends it.
"""

import argparse
import json
import os
import sys
import time

import torch
from measured_model import BETAS, CLIP_NORM, EPSILON, LEARNING_RATE
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM


def load(flags):
    config = AutoConfig.from_pretrained(flags.model)
    if flags.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    torch.manual_seed(0)
    with torch.device(flags.device):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, flags.dtype), attn_implementation="sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():  # LongLoRA's: embedding and norms beside LoRA
        if "embed_tokens" in name or "norm" in name:
            parameter.requires_grad_(True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    return model.train()


class Side:
    def __init__(self, flags):
        self.flags, self.model = flags, load(flags)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
        )
        self.generator = torch.Generator().manual_seed(1)
        self.vocabulary = self.model.config.vocab_size

    def synchronize(self):
        if self.flags.device == "cuda":
            torch.cuda.synchronize()

    def step(self):
        ids = torch.randint(0, self.vocabulary, (1, self.flags.context), generator=self.generator).to(self.flags.device)
        if self.flags.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.synchronize()
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimizer.step()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.flags.device == "cuda" else 0
        return {"seconds": time.perf_counter() - begin, "loss": float(loss), "memory_peak_bytes": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of config.json")
    parser.add_argument("--context", type=int, required=True, help="tokens")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--liger", action="store_true", help="with liger-kernel's operators")
    flags = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    try:
        side = Side(flags)
        answer({"trained_values": sum(parameter.numel() for parameter in side.trained)})
        for _ in sys.stdin:
            answer(side.step())
    except torch.cuda.OutOfMemoryError as error:
        answer({"out_of_memory": str(error).splitlines()[0]})


if __name__ == "__main__":
    main()
