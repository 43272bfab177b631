"""Shifted sparse attention (S2-Attn) as one mask per query head, for any transformers model.

The trainer runs dense causal calls on views; here the same rule is a boolean mask, which a reader can check line by line.
Legend: H query heads, T tokens, G group size, s = G // 2.
"""

import contextlib
import dataclasses
import math

import torch
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "longspan_reference"


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    kind: str = "full"  # "full" | "s2"
    group_size: int = 0  # tokens; read for s2 only


def resolve_group_size(context_length, group_size=None, group_ratio=None):
    """G of a job: never from the length of the sequence at hand."""
    if group_size is not None:
        return group_size
    return max(1, math.floor(context_length * (0.25 if group_ratio is None else group_ratio)))


def visible(rule, num_heads, num_tokens):
    """(H, T, T) bool: may head h at position i read position j?"""
    positions = torch.arange(num_tokens)
    causal = positions[None, :] <= positions[:, None]
    if rule.kind == "full":
        return causal.expand(num_heads, num_tokens, num_tokens)
    size = rule.group_size
    plain = positions // size
    shifted = (positions + size // 2) // size
    heads = [plain if 2 * head < num_heads else shifted for head in range(num_heads)]
    return torch.stack([causal & (block[None, :] == block[:, None]) for block in heads])


_current = AttentionRule()


@contextlib.contextmanager
def attending(rule):
    """All forward passes inside follow `rule`."""
    global _current
    before, _current = _current, rule
    try:
        yield
    finally:
        _current = before


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    # query (B, H, T, D), key and value (B, Hkv, T, D); rope is applied already, with absolute positions.
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, dim=1)
    value = value.repeat_interleave(repeats, dim=1)
    scores = (query @ key.transpose(2, 3)) * scaling
    allowed = visible(_current, query.shape[1], query.shape[2])
    scores = scores.masked_fill(~allowed, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # the mask is made above
