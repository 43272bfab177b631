"""The attention kinds beside s2 and full: the wrapped edge and short groups, against the mask. Their causality is in test_causality.py."""

import dataclasses

import pytest
import torch

from reference import compare, oracle, trainer
from reference.tiny_models import TinyModel
from test_causality import DEEP, job, tokens
from test_probe import FIFTEEN, MHA, ODD_HEADS_ONE_KV, ODD_KV, ODD_KV_EVEN_HEADS, ODD_MHA, ONE_HEAD, ONE_KV
from test_probe import TIED, Case, job_of, make_inputs


def wrap(size=None):
    return (("kind", "s2"), ("edge", "wrap"), *((("group_size", size),) if size else ()))


def short(size=None):
    return (("kind", "short"), *((("group_size", size),) if size else ()))


KINDS = {"wrap": wrap, "short": short}

HEADS = [
    Case(f"{name}_{shape}", model, "full", kind(), tokens=32, batch=batch)
    for name, kind in KINDS.items()
    for shape, model, batch in (
        ("mha", MHA, 1), ("gqa", TinyModel(), 3), ("nine_heads_three_kv", ODD_KV, 1), ("six_heads_three_kv", ODD_KV_EVEN_HEADS, 3),
        ("five_heads_five_kv", ODD_MHA, 1), ("four_heads_one_kv", ONE_KV, 1), ("seven_heads_one_kv", ODD_HEADS_ONE_KV, 3),
        ("fifteen_heads_five_kv", FIFTEEN, 1), ("one_head", ONE_HEAD, 1),
    )
]  # fmt: skip

# Lengths around the borders of the first and the last moved block; the last with 1, some and all of its tokens.
LENGTHS = [
    Case(f"wrap_{tokens}_tokens_group_{size}", ODD_KV, "full", wrap(size), tokens, batch=batch)
    for tokens, size, batch in (
        (1, 8, 1), (2, 8, 3), (2, 1, 1), (3, 2, 1), (4, 8, 1), (5, 8, 3), (8, 8, 1), (12, 8, 1), (13, 8, 3), (31, 8, 1),
        (32, 1, 1), (32, 3, 3), (30, 5, 1), (29, 5, 1), (30, 7, 1), (32, 11, 3), (32, 31, 1), (32, 32, 1), (17, 32, 1), (31, 16, 3),
    )
] + [
    Case(f"short_{tokens}_tokens_group_{size}", ODD_KV, "full", short(size), tokens, batch=batch)
    for tokens, size, batch in ((1, 8, 1), (2, 1, 3), (9, 8, 1), (29, 5, 3), (32, 32, 1), (17, 50, 1))
]  # fmt: skip

METHODS = [
    Case(f"{name}_{kind}", kind=kind, attention=rule(), tokens=27, batch=3)
    for name, rule in KINDS.items()
    for kind in ("lora", "longlora")
] + [
    Case("wrap_tied", TIED, attention=wrap(), tokens=32),
    Case("wrap_labels", attention=wrap(), labels="some", batch=3),
    Case("wrap_longer_context", TinyModel(layers=3), attention=wrap(), tokens=203, context=211, batch=2),
]


@pytest.mark.parametrize("case", HEADS + LENGTHS + METHODS, ids=lambda case: case.name)
def test_probe_agrees(case, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(case.model)
    spec = job_of(case, folder, tmp_path)
    input_ids, labels = make_inputs(case)
    actual = trainer.probe(spec, input_ids, labels, tmp_path)
    expected = compare.named(oracle.reference(folder, spec, input_ids, labels))
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, expected)


@pytest.mark.parametrize("name", KINDS)
def test_bf16_errs_at_most_twice_as_much_as_plain_bf16(name, shelf, tmp_path, trainer_binary):
    case = Case("bf16", ODD_KV, "full", KINDS[name](), tokens=32, batch=2)
    folder = shelf.folder(dataclasses.replace(case.model, dtype="bfloat16"))
    spec = job_of(case, folder, tmp_path)
    spec["training"]["dtype"] = "bf16"
    input_ids, _ = make_inputs(case)
    actual = trainer.probe(spec, input_ids, None, tmp_path)
    exact = compare.named(oracle.reference(folder, spec, input_ids))
    plain = compare.named(oracle.reference(folder, spec, input_ids, dtype=torch.bfloat16))
    for tensor in exact:
        if tensor != "loss":
            ours, theirs = ((side[tensor] - exact[tensor]).norm() for side in (actual, plain))
            assert ours <= 2 * theirs, tensor


def test_the_wrapped_block_sees_the_first_half_block_and_nothing_else_of_the_start(shelf, tmp_path, trainer_binary):
    """One layer, 64 tokens, groups of 16: the last 8 see the first 8 with split swapped for wrap, others see what they saw."""
    folder = shelf.folder(dataclasses.replace(DEEP, layers=1))
    ids = tokens((1, 64)).repeat(3, 1)
    ids[1, 7] = (ids[1, 7] + 1) % 97
    ids[2, 8] = (ids[2, 8] + 1) % 97
    moved = {}
    for edge in ("split", "wrap"):
        logits = trainer.probe(job(folder, edge=edge), ids, None, tmp_path)["logits"]
        moved[edge] = [(logits[row] != logits[0]).any(dim=1) for row in (1, 2)]
    assert moved["wrap"][0][56:].all() and not moved["split"][0][16:].any()
    assert not moved["wrap"][0][16:56].any()
    assert torch.equal(moved["wrap"][1], moved["split"][1]) and not moved["wrap"][1][24:].any()


def test_short_groups_never_exchange_anything(shelf, tmp_path, trainer_binary):
    ids = tokens((1, 64)).repeat(2, 1)
    ids[1, 15] = (ids[1, 15] + 1) % 97
    logits = trainer.probe(job(shelf.folder(DEEP), kind="short"), ids, None, tmp_path)["logits"]
    moved = (logits[1] != logits[0]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [15]
