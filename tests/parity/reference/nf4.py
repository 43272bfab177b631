"""4-bit weights by bitsandbytes: codes and scales of a matrix, and models whose linear layers hold the values these stand for."""

import bitsandbytes.functional as bnb
import torch
from transformers import AutoModelForCausalLM

from . import oracle
from .exported_job import folder_tensors


def is_linear(name, family="llama"):
    """Whether a weights file's tensor is one that the q-methods quantise."""
    return name.endswith(".weight") and name.split(".")[-2] in oracle.linear_modules(family)


def quantize(weight):
    """bitsandbytes' 4-bit codes, codes of scales, maxima and mean; the second step by its exact kernel.

    On CPU bitsandbytes has a faster kernel for the second step that looks levels up in 65536 bins, and so takes the neighbour
    of the nearest level now and then; its kernel for every device, like that for CUDA, takes the nearest.
    """
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    mean = state.absmax.mean()
    exact = torch.ops.bitsandbytes.quantize_blockwise.default
    codes, maxima = exact._op_dk(
        torch._C.DispatchKey.CompositeExplicitAutograd, state.absmax - mean, bnb.create_dynamic_map(), 256
    )
    return packed.reshape(-1), codes, maxima, mean.reshape(1)


def scales_of(weight):
    _, scale_codes, maxima, mean = quantize(weight)
    scales = bnb.create_dynamic_map()[scale_codes.long()]
    return scales * maxima.repeat_interleave(256)[: len(scales)] + mean


def dequantized(weight):
    """fp32 values of bitsandbytes' 4-bit weight."""
    codes, scales = quantize(weight)[0], scales_of(weight)
    levels = bnb.get_4bit_type("nf4", device="cpu")
    values = levels[torch.stack([codes >> 4, codes & 15], dim=1).reshape(-1).long()][: weight.numel()]
    return (values * scales.repeat_interleave(64)[: weight.numel()]).reshape(weight.shape)


def dequantized_folder(folder, out):
    """The same model with the dequantised values as its linear weights, stored in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stored = folder_tensors(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_linear(name, model.config.model_type):
                parameter.copy_(dequantized(stored[name]))
    model.save_pretrained(out)
    return out
