"""The oracle against the specification: the mask by its definition, the names by PEFT's file, tied gradients by plain autograd."""

import pytest
import torch
from peft import get_peft_model_state_dict

from reference import attention, compare, oracle
from reference.tiny_models import TinyModel


def spec_of(folder, kind="longlora", context_length=32, **attention_options):
    return {
        "model": {"path": str(folder)},
        "context_length": context_length,
        "attention": attention_options,
        "method": {"kind": kind},
    }


@pytest.mark.parametrize("heads", [1, 2, 3, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20])
def test_the_mask_is_the_definition_pair_by_pair(heads, size):
    tokens = 13
    seen = attention.visible(attention.AttentionRule("s2", size), heads, tokens)
    for head in range(heads):
        for i in range(tokens):
            for j in range(tokens):
                moved = 0 if 2 * head < heads else size // 2
                same_block = (i + moved) // size == (j + moved) // size
                assert bool(seen[head, i, j]) == (j <= i and same_block)


def test_blocks_of_the_shifted_half_start_and_end_short():
    seen = attention.visible(attention.AttentionRule("s2", 4), 2, 8)
    reach = [[int(row.sum()) for row in head] for head in seen]
    assert reach == [[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 1, 2, 3, 4, 1, 2]]


@pytest.mark.parametrize("heads", [1, 2, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("tokens", [1, 2, 12, 13])
def test_the_wrapped_mask_is_the_definition_pair_by_pair(heads, size, tokens):
    seen = attention.visible(attention.AttentionRule("s2", size, "wrap"), heads, tokens)
    split = attention.visible(attention.AttentionRule("s2", size), heads, tokens)
    for head in range(heads):
        first_block = [] if 2 * head < heads else [t for t in range(tokens) if t + size // 2 < size]
        last_number = (tokens - 1 + size // 2) // size
        last_block = [t for t in range(tokens) if (t + size // 2) // size == last_number]
        for i in range(tokens):
            for j in range(tokens):
                wrapped = i in last_block and j in first_block and j <= i
                assert bool(seen[head, i, j]) == (bool(split[head, i, j]) or wrapped)


@pytest.mark.parametrize("size, tokens", [(4, 8), (4, 16), (5, 15), (3, 12), (2, 4)])
def test_where_the_group_divides_the_wrapped_block_is_the_rolled_group(size, tokens):
    """The original rolls its second half by -(G // 2) and cuts groups of G: its last group, with only its causal pairs."""
    rolled = torch.arange(tokens).roll(-size // 2)  # as in Python: -5 // 2 is -3
    [last] = rolled.view(-1, size)[-1:]
    seen = attention.visible(attention.AttentionRule("s2", size, "wrap"), 2, tokens)[1]
    for i in last.tolist():
        reads = [j for j in last.tolist() if j <= i]
        assert sorted(reads) == seen[i].nonzero().flatten().tolist()


def test_short_blocks_are_the_unshifted_half_for_every_head():
    short = attention.visible(attention.AttentionRule("short", 5), 4, 13)
    s2 = attention.visible(attention.AttentionRule("s2", 5), 4, 13)
    assert all(torch.equal(head, s2[0]) for head in short)


def test_documents_are_counted_from_their_own_start_and_do_not_meet():
    rule = attention.AttentionRule("s2", 4, "wrap")
    ids = torch.tensor([[7, 7, 7, 7, 7, 3, 7, 7], [0] * 8])
    seen = attention.visible_in_documents(rule, 2, ids)
    assert attention.documents_of(ids[0]) == [(0, 5), (5, 6), (6, 8)]
    assert torch.equal(seen[0, :, :5, :5], attention.visible(rule, 2, 5))
    assert torch.equal(seen[1], attention.visible(rule, 2, 8))
    assert not seen[0, :, 5:, :5].any() and not seen[0, :, 6:, 5].any()
    assert attention.positions_in_documents(ids).tolist() == [[0, 1, 2, 3, 4, 0, 0, 1], list(range(8))]
    labels = torch.arange(16).view(2, 8)
    assert attention.labels_in_documents(labels, ids).tolist() == [[0, 1, 2, 3, 4, -100, -100, 7], list(range(8, 16))]


def test_group_size_comes_from_the_job_alone():
    assert attention.resolve_group_size(1024) == 256
    assert attention.resolve_group_size(30) == 7
    assert attention.resolve_group_size(3) == 1
    assert attention.resolve_group_size(30, group_size=11) == 11
    assert attention.resolve_group_size(30, group_ratio=0.5) == 15


@pytest.mark.parametrize("kind", ["lora", "longlora"])
def test_gradient_names_are_the_keys_of_the_saved_file(shelf, kind):
    spec = spec_of(shelf.folder(TinyModel()), kind)
    model = oracle.load_for_training(shelf.folder(TinyModel()), spec)
    result = oracle.run(model, spec, torch.arange(10)[None])
    assert set(result.gradients) == set(get_peft_model_state_dict(model))
    example = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert example in result.gradients
    assert ("base_model.model.model.embed_tokens.weight" in result.gradients) == (kind == "longlora")


def test_tied_gradient_is_the_sum_of_both_parts(shelf):
    folder = shelf.folder(TinyModel(tied=True))
    ids = torch.randint(0, 131, (2, 17), generator=torch.Generator().manual_seed(1))
    adapted = oracle.reference(folder, spec_of(folder), ids).gradients
    plain = oracle.reference(folder, spec_of(folder, "full"), ids).gradients
    assert "base_model.model.lm_head.weight" not in adapted and "lm_head.weight" not in plain
    names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"]
    compare.assert_close({n: adapted["base_model.model." + n] for n in names}, {n: plain[n] for n in names}, 1e-5)


def test_loss_is_transformers_own_where_tokens_are_scored(shelf):
    folder = shelf.folder(TinyModel())
    spec = {**spec_of(folder, "full"), "attention": {"kind": "full"}}
    ids = torch.randint(0, 131, (2, 17), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 3:9] = -100
    model = oracle.load_for_training(folder, spec)
    with attention.attending(attention.AttentionRule("full")):
        theirs = model(input_ids=ids, labels=labels).loss
    assert torch.allclose(oracle.run(model, spec, ids, labels).loss, theirs, rtol=1e-6)
    nothing = oracle.run(model, spec, ids, torch.full_like(ids, -100))
    assert nothing.loss == 0 and all(not gradient.any() for gradient in nothing.gradients.values())


def test_full_attention_is_what_transformers_computes(shelf):
    folder = shelf.folder(TinyModel(heads=6, kv_heads=3))
    spec = {**spec_of(folder, "full"), "attention": {"kind": "full"}}
    ids = torch.randint(0, 131, (2, 17), generator=torch.Generator().manual_seed(1))
    ours = oracle.reference(folder, spec, ids).logits
    model = oracle.load_base(folder, spec)
    model.set_attn_implementation("eager")
    assert compare.relative_error(ours, model(input_ids=ids).logits.detach()) < 1e-6


@pytest.mark.parametrize(
    "tiny, rope, total",
    [
        pytest.param(TinyModel(), None, 2.0, id="absent_factor_is_context_over_maximum"),
        pytest.param(TinyModel(max_position=512), None, 1.0, id="a_longer_model_stays"),
        pytest.param(TinyModel(), {"factor": 3.0}, 3.0, id="given_factor"),
        pytest.param(TinyModel(rope_factor=2.0), {"original_length": 32}, 4.0, id="scaled_model_multiplies"),
        pytest.param(TinyModel(rope_factor=2.0, rope_style="scaling"), {"factor": 1.5}, 3.0, id="older_config"),
        pytest.param(TinyModel(rope_factor=2.0, rope_style="scaling_type"), {"original_length": 32}, 4.0, id="oldest_config"),
    ],
)
def test_rope_factor(shelf, tiny, rope, total):
    config = oracle.extended_config(shelf.folder(tiny), 128, rope)
    assert config.rope_parameters.get("factor", 1.0) == total
    assert config.rope_parameters["rope_theta"] == 10000.0
