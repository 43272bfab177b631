"""Identities that need no oracle: causality at depth, a batch is its sequences, B = 0 is the base model."""

import json

import pytest
import torch
from safetensors.torch import save_file

from reference import compare, oracle, trainer
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel

# Deeper than the 4 groups of a context need: with a roll that joins the ends, information wraps round within 8 layers.
DEEP = TinyModel(hidden=32, heads=4, kv_heads=2, layers=12, intermediate=48, vocab=97)
DEEP_ODD = TinyModel(hidden=36, heads=9, kv_heads=3, layers=12, intermediate=48, vocab=97)


def job(folder, method="full", context=64, **attention):
    return {
        "name": "identities",
        "model": {"path": str(folder)},
        "context_length": context,
        "attention": {"kind": "s2", **attention},
        "method": {"kind": method},
        "rope": {"kind": "linear", "factor": 1.0},
        "training": {"dtype": "fp32"},
    }


def tokens(shape, vocab=97, seed=3):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model", [DEEP, DEEP_ODD], ids=["even_heads", "nine_heads_three_kv"])
@pytest.mark.parametrize(
    "length, options",
    [
        (64, {}), (61, {"group_size": 7}), (50, {"group_size": 32}), (33, {"group_size": 1}),
        (64, {"edge": "wrap"}), (61, {"edge": "wrap", "group_size": 7}), (50, {"edge": "wrap", "group_size": 32}),
        (33, {"edge": "wrap", "group_size": 1}), (64, {"kind": "full"}), (64, {"kind": "short"}), (61, {"kind": "short", "group_size": 7}),
    ],
    ids=["s2", "s2_ragged", "s2_half_context", "s2_group_of_one", "wrap", "wrap_ragged", "wrap_half_context", "wrap_group_of_one",
         "full_attention", "short", "short_ragged"],
)  # fmt: skip
def test_a_token_never_changes_logits_before_it(model, length, options, shelf, tmp_path, trainer_binary):
    spec = job(shelf.folder(model), **options)
    ids = tokens((1, length))
    places = sorted({1, 2, 7, 8, length // 2 - 1, length // 2, length - 8, length - 2, length - 1})
    changed = ids.repeat(len(places) + 1, 1)
    for row, place in enumerate(places, start=1):
        changed[row, place] = (changed[row, place] + 1) % 97
    logits = trainer.probe(spec, changed, None, tmp_path)["logits"]
    for row, place in enumerate(places, start=1):
        assert torch.equal(logits[row, :place], logits[0, :place]), f"token {place} changed a logit before it"
        assert not torch.equal(logits[row, place], logits[0, place])


def test_information_crosses_the_whole_context(shelf, tmp_path, trainer_binary):
    """The other side of causality: with 4 groups, 12 layers of S2 carry the first token to the last."""
    spec = job(shelf.folder(DEEP))
    ids = tokens((1, 64)).repeat(2, 1)
    ids[1, 0] = (ids[1, 0] + 1) % 97
    logits = trainer.probe(spec, ids, None, tmp_path)["logits"]
    assert not torch.equal(logits[0, -1], logits[1, -1])


@pytest.mark.parametrize("kind", ["full", "longlora"])
def test_a_batch_is_its_sequences(kind, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(TinyModel(hidden=72, heads=9, kv_heads=3))
    spec = job(folder, kind, context=32)
    if kind != "full":
        spec["method"]["adapter"] = str(oracle.write_adapter(folder, tmp_path / "adapter", spec))
    ids = tokens((3, 27))
    labels = ids.clone()
    labels[1, 5:20] = -100
    together = trainer.probe(spec, ids, labels, tmp_path)
    sums, scored = {}, 0
    for row in range(3):
        single = trainer.probe(spec, ids[row : row + 1], labels[row : row + 1], tmp_path)
        assert compare.relative_error(single["logits"][0], together["logits"][row]) < 1e-5
        count = int((labels[row, 1:] != -100).sum())
        scored += count
        for name, tensor in single.items():
            if name != "logits":
                sums[name] = sums.get(name, 0) + tensor.double() * count
    del together["logits"]
    compare.assert_close({name: tensor / scored for name, tensor in sums.items()}, together)


@pytest.mark.parametrize("kind", ["lora", "longlora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_fresh_adapter_is_the_base_model(kind, tied, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(TinyModel(tied=tied))
    ids = tokens((2, 31))
    base = trainer.probe(job(folder), ids, None, tmp_path)
    adapted = trainer.probe(job(folder, kind), ids, None, tmp_path)
    assert torch.equal(adapted["logits"], base["logits"])
    assert torch.equal(adapted["loss"], base["loss"])
    if kind == "longlora":
        # Exactly the tensors that longlora shares with full, with the same gradients.
        shared = {name: tensor for name, tensor in adapted.items() if ".lora_" not in name and name.startswith("grad.")}
        plain = {name: base[name.replace("base_model.model.", "", 1)] for name in shared}
        assert len(shared) == 6
        compare.assert_close(shared, plain, 1e-6)


def test_adapter_with_zero_b_is_the_base_model(shelf, tmp_path, trainer_binary):
    folder = shelf.folder(TinyModel())
    spec = job(folder, "longlora")
    adapter = oracle.write_adapter(folder, tmp_path / "adapter", spec)
    stored, base_tensors = read_tensors(adapter / "adapter_model.safetensors"), {}
    for file in folder.glob("*.safetensors"):
        base_tensors.update(read_tensors(file))
    for name in stored:
        if ".lora_B." in name:
            stored[name] = torch.zeros_like(stored[name])
        elif ".lora_A." not in name:
            stored[name] = base_tensors[name.replace("base_model.model.", "", 1)].clone()
    save_file(stored, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    spec["method"]["adapter"] = str(adapter)
    ids = tokens((2, 31))
    logits = trainer.probe(spec, ids, None, tmp_path)["logits"]
    assert torch.equal(logits, trainer.probe(job(folder), ids, None, tmp_path)["logits"])


def test_group_as_long_as_the_sequence_leaves_the_first_half_full(shelf, tmp_path, trainer_binary):
    """With one layer and G at least twice T no block ends within the sequence: S2 is full attention."""
    folder = shelf.folder(TinyModel(layers=1))
    ids = tokens((1, 16))
    blocks = trainer.probe(job(folder, group_size=32), ids, None, tmp_path)
    full = trainer.probe(job(folder, kind="full"), ids, None, tmp_path)
    compare.assert_close(blocks, full, 1e-6)


def test_probe_is_deterministic(shelf, tmp_path, trainer_binary):
    spec = job(shelf.folder(TinyModel()), "longlora")
    first, second = (trainer.probe(spec, tokens((2, 31)), None, tmp_path) for _ in range(2))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batch_keys_are_ignored_and_data_is_not_needed(shelf, tmp_path, trainer_binary):
    spec = job(shelf.folder(TinyModel()))
    ids = tokens((3, 31))
    other = trainer.merged_spec(spec, {"training": {"global_batch": 6, "micro_batch": 2}})
    assert "data" not in json.dumps(spec)
    first, second = trainer.probe(spec, ids, None, tmp_path), trainer.probe(other, ids, None, tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
