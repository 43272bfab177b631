"""Loss, logits and gradients of a training step, by autograd over transformers and PEFT."""

import dataclasses
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from . import attention, positions

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_TARGETS = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")

# By the config's model_type, where a family differs from Llama.
TARGETS_OF_FAMILY = {"gpt_neox": ("query_key_value", "dense")}
MLP_TARGETS_OF_FAMILY = {"gpt_neox": ("dense_h_to_4h", "dense_4h_to_h")}
NORMS_OF_FAMILY = {
    "qwen3": NORMS + ("q_norm", "k_norm"),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm", "final_layer_norm"),
}
EMBEDDING_OF_FAMILY = {"gpt_neox": "embed_in"}


def default_targets(family):
    """LoRA's targets where a job names none."""
    return TARGETS_OF_FAMILY.get(family, DEFAULT_TARGETS)


def linear_modules(family):
    """Every linear layer of a decoder layer, in its order."""
    return default_targets(family) + MLP_TARGETS_OF_FAMILY.get(family, MLP_TARGETS)


@dataclasses.dataclass
class Result:
    loss: torch.Tensor
    logits: torch.Tensor  # (B, T, V)
    gradients: dict  # by the keys of PEFT's saved file; plain names for method full


def extended_config(folder, context_length, rope=None):
    """The model's config with the job's positions."""
    return positions.extend(AutoConfig.from_pretrained(folder), context_length, rope)


def load_base(folder, spec, dtype=torch.float32):
    config = extended_config(folder, spec["context_length"], spec.get("rope"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention.NAME
    )
    return model.eval()


def modules_to_save(method, config):
    if method != "longlora":
        return None
    embedding = EMBEDDING_OF_FAMILY.get(config.model_type, "embed_tokens")
    norms = NORMS_OF_FAMILY.get(config.model_type, NORMS)
    return [embedding, *norms] + (["lm_head"] if config.tie_word_embeddings else [])


def new_adapter(base, method, rank=8, alpha=16, targets=None):
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets or default_targets(base.config.model_type)),
        modules_to_save=modules_to_save(method, base.config),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def write_adapter(folder, out, spec, seed=7, scale=0.3, **adapter):
    """A PEFT folder whose B is not zero and whose embeddings and norms have moved, as after some training."""
    method = spec["method"]["kind"]
    model = new_adapter(load_base(folder, spec), method, **adapter)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "lm_head.modules_to_save" in name:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_" in name:
                parameter.copy_(scale * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.1 * noise)
        if base_tied(model) and method == "longlora":
            inner = model.base_model.model
            inner.lm_head.modules_to_save["default"].weight.copy_(
                inner.model.embed_tokens.modules_to_save["default"].weight
            )
    model.save_pretrained(out)
    return out


def base_tied(model):
    return model.base_model.model.config.tie_word_embeddings


def load_for_training(folder, spec, dtype=torch.float32):
    """The model whose gradients count, with exactly the method's tensors requiring one."""
    method = spec["method"]
    base = load_base(folder, spec, dtype)
    if method["kind"] == "full":
        return base.requires_grad_(True)
    if method.get("adapter"):
        model = PeftModel.from_pretrained(base, method["adapter"], is_trainable=True, autocast_adapter_dtype=False)
        return model.eval()
    model = new_adapter(
        base, method["kind"], method.get("rank", 8), method.get("alpha", 16), method.get("targets")
    )
    return model.to(dtype).eval()


def saved_name(name):
    """The key of a parameter in PEFT's saved file."""
    return name.replace(".modules_to_save.default.", ".").replace(".lora_A.default.", ".lora_A.").replace(
        ".lora_B.default.", ".lora_B."
    )


def stored_name(model, name):
    """The name of a weight in the model's files; transformers 5 renames GPT-NeoX's head when it loads it."""
    return "embed_out.weight" if name == "lm_head.weight" and model.config.model_type == "gpt_neox" else name


def rule_of(spec):
    options = spec.get("attention", {})
    kind = options.get("kind", "s2")
    size = attention.resolve_group_size(
        spec["context_length"], options.get("group_size"), options.get("group_ratio")
    )
    return attention.AttentionRule(kind, size, options.get("edge", "split"))


def loss_sum(logits, labels):
    """(sum of the token losses, number of scored tokens); position t is scored on labels[t + 1], -100 never."""
    shifted = labels[:, 1:].reshape(-1)
    scored = int((shifted != -100).sum())
    if scored == 0:
        return logits.sum() * 0.0, 0
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    return torch.nn.functional.cross_entropy(flat, shifted, ignore_index=-100, reduction="sum"), scored


def run(model, spec, input_ids, labels=None, document_ids=None):
    """One forward and backward pass under the job's training attention; rows may be packed from documents."""
    labels = input_ids if labels is None else labels
    positions = {}
    if document_ids is not None:
        labels = attention.labels_in_documents(labels, document_ids)
        positions["position_ids"] = attention.positions_in_documents(document_ids)
    model.zero_grad(set_to_none=True)
    with attention.attending(rule_of(spec), document_ids):
        logits = model(input_ids=input_ids, use_cache=False, **positions).logits
        total, scored = loss_sum(logits, labels)
        loss = total / max(scored, 1)
        loss.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients[stored_name(model, saved_name(name))] = gradient.detach().float().clone()
    return Result(loss.detach().float(), logits.detach().float(), _join_tied(model, gradients))


def _join_tied(model, gradients):
    # PEFT trains two copies of a tied embedding; the job trains one tensor, whose gradient is the sum of both parts.
    tied = hasattr(model, "peft_config") and base_tied(model)
    head = gradients.pop("base_model.model.lm_head.weight", None) if tied else None
    if head is not None:
        gradients["base_model.model.model.embed_tokens.weight"] += head
    return gradients


def reference(folder, spec, input_ids, labels=None, dtype=torch.float32, document_ids=None):
    return run(load_for_training(folder, spec, dtype), spec, input_ids, labels, document_ids)


def read_adapter_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())
