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
    kind: str = "full"  # "full" | "s2" | "short"
    group_size: int = 0  # tokens; not read for full
    edge: str = "split"  # "split" | "wrap"; read for s2 only


def resolve_group_size(context_length, group_size=None, group_ratio=None):
    """G of a job: never from the length of the sequence at hand."""
    if group_size is not None:
        return group_size
    return max(1, math.floor(context_length * (0.25 if group_ratio is None else group_ratio)))


def visible(rule, num_heads, num_tokens):
    """(H, T, T) bool: may head h at position i read position j?

    full: every j <= i. short: j <= i in the same block of G, for every head. s2: the same for heads with 2h < H, and blocks moved by s
    for the others. With edge wrap, the last of the moved blocks (that of position T - 1, whatever its length) also reads the first one,
    position 0 to G - s - 1, where these are two blocks.
    """
    positions = torch.arange(num_tokens)
    causal = positions[None, :] <= positions[:, None]
    if rule.kind == "full":
        return causal.expand(num_heads, num_tokens, num_tokens)
    size = rule.group_size
    plain = positions // size
    unshifted = causal & (plain[None, :] == plain[:, None])
    if rule.kind == "short":
        return unshifted.expand(num_heads, num_tokens, num_tokens)
    block = (positions + size // 2) // size
    shifted = causal & (block[None, :] == block[:, None])
    if rule.edge == "wrap":
        shifted |= causal & (block[:, None] == block[-1]) & (block[None, :] == 0)
    return torch.stack([unshifted if 2 * head < num_heads else shifted for head in range(num_heads)])


def documents_of(row):
    """[(first token, end)] of a row of document ids: a new document starts where the value changes."""
    values = row.tolist()
    starts = [t for t in range(len(values)) if t == 0 or values[t] != values[t - 1]]
    return list(zip(starts, starts[1:] + [len(values)], strict=True))


def visible_in_documents(rule, num_heads, document_ids):
    """(B, H, T, T): the rule within each document, counted from its own start; nothing across a border."""
    batch, tokens = document_ids.shape
    seen = torch.zeros(batch, num_heads, tokens, tokens, dtype=torch.bool)
    for row in range(batch):
        for begin, end in documents_of(document_ids[row]):
            seen[row, :, begin:end, begin:end] = visible(rule, num_heads, end - begin)
    return seen


def positions_in_documents(document_ids):
    """(B, T): every document's positions start at 0."""
    return torch.stack([
        torch.cat([torch.arange(end - begin) for begin, end in documents_of(row)]) for row in document_ids
    ])  # fmt: skip


def labels_in_documents(labels, document_ids):
    """The first token of a document is nothing to predict from the document before."""
    labels = labels.clone()
    labels[:, 1:][document_ids[:, 1:] != document_ids[:, :-1]] = -100
    return labels


_current = AttentionRule()
_documents = None


@contextlib.contextmanager
def attending(rule, document_ids=None):
    """All forward passes inside follow `rule`, within the documents of `document_ids` (B, T) where given."""
    global _current, _documents
    before, _current, _documents = (_current, _documents), rule, document_ids
    try:
        yield
    finally:
        _current, _documents = before


def _allowed(num_heads, num_tokens):
    if _documents is None:
        return visible(_current, num_heads, num_tokens)
    return visible_in_documents(_current, num_heads, _documents)


def _attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    # query (B, H, T, D), key and value (B, Hkv, T, D); rope is applied already, with absolute positions.
    repeats = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeats, dim=1)
    value = value.repeat_interleave(repeats, dim=1)
    scores = (query @ key.transpose(2, 3)) * scaling
    scores = scores.masked_fill(~_allowed(query.shape[1], query.shape[2]), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)  # the mask is made above
