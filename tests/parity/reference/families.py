"""The variants of every model family that differ in what is computed, each as a tiny model."""

from .tiny_models import TinyModel

BIASES = (("attention_bias", True), ("mlp_bias", True))

FAMILIES = {
    "llama_attention_bias": TinyModel(extra=BIASES[:1]),
    "llama_mlp_bias": TinyModel(extra=BIASES[1:], heads=6, kv_heads=3),
    "llama_all_biases_tied": TinyModel(extra=BIASES, tied=True),
    "mistral_no_window": TinyModel(family="mistral", extra=(("sliding_window", None),)),
    "mistral_window_outgrown": TinyModel(family="mistral", extra=(("sliding_window", 24),)),
    "mistral_window_kept": TinyModel(family="mistral", heads=6, kv_heads=3, extra=(("sliding_window", 130),)),
    "qwen2": TinyModel(family="qwen2"),
    "qwen2_window_in_one_layer": TinyModel(
        family="qwen2", extra=(("use_sliding_window", True), ("sliding_window", 20), ("max_window_layers", 1))
    ),
    "qwen2_tied_odd_kv": TinyModel(family="qwen2", hidden=72, heads=9, kv_heads=3, tied=True),
    "qwen3": TinyModel(family="qwen3", head_dim=20),
    "gpt_neox": TinyModel(family="gpt_neox", extra=(("rotary_pct", 0.5),)),
    "gpt_neox_sequential_tanh": TinyModel(
        family="gpt_neox",
        hidden=40,
        heads=5,
        extra=(("rotary_pct", 0.25), ("use_parallel_residual", False), ("hidden_act", "gelu_fast"), ("attention_bias", False)),
    ),
    "qwen3_tied_biases": TinyModel(family="qwen3", heads=6, kv_heads=3, head_dim=10, tied=True, extra=BIASES[:1]),
}
