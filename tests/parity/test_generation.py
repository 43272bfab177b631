"""Generated texts equal those of transformers' greedy generate, token for token."""

import dataclasses
import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from reference import oracle, tiny_models, trainer

TINY = tiny_models.TinyModel()
MODELS = {
    "grouped_heads": TINY,
    "as_many_key_value_heads": dataclasses.replace(TINY, kv_heads=4, seed=1),
    "one_key_value_head_three_layers": dataclasses.replace(TINY, heads=3, kv_heads=1, layers=3, seed=2),
    "tied_and_extended_before": dataclasses.replace(TINY, tied=True, rope_factor=2.0, max_position=256, seed=3),
}
LENGTHS = [1, 2, 7, 64, 130]


def spec_of(folder, **changes):
    spec = {
        "name": "generation",
        "model": {"path": str(folder)},
        "context_length": 256,
        "method": {"kind": "longlora"},
        "training": {"dtype": "fp32"},
        "evaluation": {"generation": {"batch": 3}},
    }
    return trainer.merged_spec(spec, changes)


def prompts_of(lengths, vocab, seed=0):
    chance = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (length,), generator=chance).tolist() for length in lengths]


def generate(spec, prompts, folder, *flags):
    """The trainer's lines, one a prompt."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"tokens": p}) + "\n" for p in prompts))
    done = trainer.command(
        "generate", trainer.write_spec(spec, folder / "spec.json"),
        "--prompts", folder / "prompts.jsonl", "--out", folder / "texts.jsonl", *flags,
    )  # fmt: skip
    assert done.returncode == 0, trainer.report(done)
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]


def expected(model, prompt, new_tokens, end=None):
    """transformers' greedy text without the end token."""
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([prompt])
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, use_cache=True
    )[0, len(prompt) :].tolist()
    return text[:-1] if end is not None and text and text[-1] == end else text


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_texts_of_a_ragged_batch(name, shelf, tmp_path):
    folder = shelf.folder(MODELS[name])
    prompts = prompts_of(LENGTHS, TINY.vocab)
    lines = generate(spec_of(folder), prompts, tmp_path, "--model", "base", "--max-new-tokens", 24, "--ignore-end")
    model = plain(folder)
    assert [line["tokens"] for line in lines] == [expected(model, p, 24) for p in prompts]
    assert {line["end"] for line in lines} == {"length"}


def test_a_prompt_longer_than_a_tile(shelf, tmp_path):
    folder = shelf.folder(dataclasses.replace(TINY, max_position=4096, seed=4))
    prompts = prompts_of([2500, 40, 1024], TINY.vocab, seed=1)
    lines = generate(spec_of(folder), prompts, tmp_path, "--model", "base", "--max-new-tokens", 12, "--ignore-end")
    model = plain(folder)
    assert [line["tokens"] for line in lines] == [expected(model, p, 12) for p in prompts]


def test_dynamic_positions_grow_with_each_text(tmp_path):
    folder = tiny_models.write_model(dataclasses.replace(TINY, seed=8), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    prompts = prompts_of([5, 60, 64, 90], TINY.vocab, seed=6)
    spec = spec_of(folder, context_length=64)
    lines = generate(spec, prompts, tmp_path / "out", "--model", "base", "--max-new-tokens", 16, "--ignore-end")
    # transformers remembers the longest text of a model, so each text gets one of its own.
    assert [line["tokens"] for line in lines] == [expected(plain(folder), p, 16) for p in prompts]


def test_the_end_token_of_the_generation_config(shelf, tmp_path):
    source = shelf.folder(TINY)
    prompts = prompts_of([5, 9, 14, 33], TINY.vocab, seed=2)
    model = plain(source)
    end = expected(model, prompts[0], 12)[6]
    folder = tiny_models.write_model(TINY, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    lines = generate(spec_of(folder), prompts, tmp_path / "out", "--model", "base", "--max-new-tokens", 30)
    assert [line["tokens"] for line in lines] == [expected(model, p, 30, end) for p in prompts]
    assert lines[0]["end"] == "end_token"


@pytest.mark.parametrize("method", ["lora", "longlora"])
@pytest.mark.parametrize("tied", [False, True])
def test_extended_texts_equal_peft_with_the_extended_config(method, tied, shelf, tmp_path):
    folder = shelf.folder(dataclasses.replace(TINY, tied=tied, seed=5))
    spec = spec_of(folder, method={"kind": method})
    adapter = oracle.write_adapter(folder, tmp_path / "adapter", spec)
    spec["method"]["adapter"] = str(adapter)
    prompts = prompts_of(LENGTHS, TINY.vocab, seed=3)
    base = AutoModelForCausalLM.from_pretrained(
        folder, config=oracle.extended_config(folder, spec["context_length"]), dtype=torch.float32
    ).eval()

    lines = generate(spec, prompts, tmp_path / "rescaled", "--model", "rescaled", "--max-new-tokens", 16, "--ignore-end")
    assert [line["tokens"] for line in lines] == [expected(base, p, 16) for p in prompts]

    lines = generate(spec, prompts, tmp_path / "extended", "--max-new-tokens", 16, "--ignore-end")
    model = PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).eval()
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    assert [line["tokens"] for line in lines] == texts


def test_drawn_texts_are_the_same_for_the_same_seed(shelf, tmp_path):
    folder = shelf.folder(TINY)
    drawn = {"evaluation": {"generation": {"temperature": 0.8, "top_p": 0.9}}}
    prompts = prompts_of([4, 8, 15], TINY.vocab, seed=4)

    def texts(name, seed, batch=3):
        spec = spec_of(folder, **drawn, training={"seed": seed})
        spec["evaluation"]["generation"]["batch"] = batch
        lines = generate(spec, prompts, tmp_path / name, "--model", "base", "--max-new-tokens", 20, "--ignore-end")
        return [line["tokens"] for line in lines]

    first = texts("first", 1)
    assert texts("again", 1) == first
    assert texts("one_at_a_time", 1, batch=1) == first
    assert texts("another_seed", 2) != first


@pytest.mark.parametrize(
    "line, word",
    [
        ('{"tokens": []}', "tokens"),
        ('{"tokens": [1, 2.5]}', "whole number"),
        ('{"tokens": [1, 100000]}', "vocabulary"),
        ('{"tokens": [-1]}', "vocabulary"),
        ('{"prompt": "x"}', "must be"),
        ("not json", "must be"),
        ("", "no prompts"),
    ],
)
def test_a_wrong_prompt_is_the_users_mistake(line, word, shelf, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(line + "\n")
    spec = trainer.write_spec(spec_of(shelf.folder(TINY)), tmp_path / "spec.json")
    done = trainer.command("generate", spec, "--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 10, trainer.report(done)
    assert word in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
