"""What a job's `rope` makes of a model's positions, as a transformers config, written from the specification."""

import copy

import torch

# Parameters of a scaling in config.json, and the same in a job file.
YARN_KEYS = ("beta_fast", "beta_slow", "attention_factor")
LLAMA3_DEFAULTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def reach(config):
    """Tokens that the config's positions are made for."""
    rope, longest = config.rope_parameters, config.max_position_embeddings
    if rope["rope_type"] == "dynamic":
        return round(longest * rope["factor"])
    if rope["rope_type"] == "yarn":
        return max(longest, round(rope["original_max_position_embeddings"] * rope["factor"]))
    return longest


def rotary_dims(config):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _factor(config, context_length, rope):
    if rope.get("factor") is not None:
        return rope["factor"]
    if rope.get("original_length") is None:
        return max(1.0, context_length / reach(config))
    own = config.rope_parameters
    used_up = own.get("factor", 1.0) if own["rope_type"] == rope.get("kind", "linear") else 1.0
    return max(1.0, context_length / rope["original_length"] / used_up)


def _with_parameters(scaling, kind, rope, original):
    if kind == "yarn":
        scaling.update({key: float(rope[key]) for key in YARN_KEYS if key in rope})
    if kind == "llama3":
        for key, value in LLAMA3_DEFAULTS.items():
            scaling[key] = float(rope.get(key, scaling.get(key, value)))
    if kind in ("yarn", "llama3"):
        scaling.setdefault("original_max_position_embeddings", original)


def extend(config, context_length, rope=None):
    """`config` with the job's positions: same kinds multiply, ntk and theta change theta."""
    rope = rope or {}
    kind = rope.get("kind", "linear")
    config = copy.deepcopy(config)
    scaling = dict(config.rope_parameters)
    if kind == "theta":
        config.rope_parameters = {**scaling, "rope_theta": float(rope["theta"])}
        return config
    factor = _factor(config, context_length, rope)
    if kind == "ntk":
        dims = rotary_dims(config)
        theta = scaling["rope_theta"] * factor ** (dims / (dims - 2))
        config.rope_parameters = {**scaling, "rope_theta": theta}
        return config
    own_kind = scaling["rope_type"]
    asks_for_more = "attention_factor" in rope or (kind == "dynamic" and "factor" in rope)
    if factor == 1 and own_kind != kind and not asks_for_more:
        return config
    assert own_kind in ("default", kind), f"{kind} on {own_kind} is to be refused"
    scaling.update(rope_type=kind, factor=scaling.get("factor", 1.0) * factor)
    original = rope.get("original_length") or config.max_position_embeddings
    _with_parameters(scaling, kind, rope, original)
    if kind == "dynamic" and own_kind == "default":
        config.max_position_embeddings = original  # from which transformers scales
    config.rope_parameters = scaling
    return config


def tables(rotary, positions, tokens):
    """(cosine, sine) of transformers' own module at `positions` of a first batch of `tokens`, (n, rotary dims / 2)."""
    ids = torch.arange(tokens)[None]
    cosine, sine = rotary(torch.zeros(1), ids)
    rows = torch.tensor([position for position in positions if position < tokens])
    half = cosine.shape[-1] // 2
    return cosine[0, rows, :half], sine[0, rows, :half]
