"""Tiny random model folders in Hugging Face's format, made on the fly and kept for the test session."""

import dataclasses
import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

CONFIGS = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """Everything that makes a folder differ from another one; hashable, so that equal ones are made once."""

    family: str = "llama"  # a key of CONFIGS
    extra: tuple = ()  # further keys of the family's config and their values, as pairs
    hidden: int = 48
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    layers: int = 2
    intermediate: int = 80
    vocab: int = 131
    tied: bool = False
    max_position: int = 64
    rope_theta: float = 10000.0
    rope_factor: float | None = None  # the model is extended already, linearly
    rope_style: str = "parameters"  # "parameters" (transformers 5) | "scaling" | "scaling_type" (older configs) | "both"
    dtype: str = "float32"  # of the stored weights
    sharded: bool = False
    eps: float = 1e-5
    seed: int = 0


def config_of(tiny):
    rope = {"rope_type": "default", "rope_theta": tiny.rope_theta}
    if tiny.rope_factor is not None:
        rope = {"rope_type": "linear", "factor": tiny.rope_factor, "rope_theta": tiny.rope_theta}
    extra = dict(tiny.extra)
    if tiny.head_dim is not None:
        extra["head_dim"] = tiny.head_dim
    if tiny.family == "gpt_neox":
        extra["layer_norm_eps"] = tiny.eps
    else:
        extra.update(num_key_value_heads=tiny.kv_heads, rms_norm_eps=tiny.eps)
    return CONFIGS[tiny.family](
        vocab_size=tiny.vocab,
        hidden_size=tiny.hidden,
        intermediate_size=tiny.intermediate,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        max_position_embeddings=tiny.max_position,
        tie_word_embeddings=tiny.tied,
        rope_parameters=rope,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )


def randomise(model, seed):
    """Weights far from their usual small start: attention is not flat, and norms are not one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name or "embed_in" in name:
                parameter.copy_(0.5 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * (1.2 / parameter.shape[1] ** 0.5))


def _rewrite_rope(config_file, tiny):
    """The same settings as configs before transformers 5 state them."""
    config = json.loads(config_file.read_text())
    config.pop("rope_parameters", None)
    if tiny.rope_style == "both":
        # What a config edited by hand looks like; transformers prefers the older key.
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": tiny.rope_theta}
    config["rope_theta"] = tiny.rope_theta
    config["rope_scaling"] = None
    if tiny.rope_factor is not None:
        key = "type" if tiny.rope_style == "scaling_type" else "rope_type"
        config["rope_scaling"] = {key: "linear", "factor": tiny.rope_factor}
    config_file.write_text(json.dumps(config, indent=2))


def write_model(tiny, folder):
    """Saves the model; returns the folder."""
    folder = pathlib.Path(folder)
    torch.manual_seed(tiny.seed)
    model = AutoModelForCausalLM.from_config(config_of(tiny))
    randomise(model, tiny.seed)
    model.to(DTYPES[tiny.dtype]).save_pretrained(folder, max_shard_size="24KB" if tiny.sharded else "1GB")
    if tiny.rope_style != "parameters":
        _rewrite_rope(folder / "config.json", tiny)
    return folder


class ModelShelf:
    """Folders by description, made when first asked for."""

    def __init__(self, root):
        self._root = pathlib.Path(root)
        self._folders = {}

    def folder(self, tiny):
        if tiny not in self._folders:
            self._folders[tiny] = write_model(tiny, self._root / f"model-{len(self._folders):03}")
        return self._folders[tiny]
