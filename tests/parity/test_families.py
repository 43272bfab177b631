"""Every model family against transformers and PEFT: bf16, fresh adapters, texts, and what a job exports.

Logits and gradients in fp32 are test_family_matrix.py's.
"""

import dataclasses
import json

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM

from reference import compare, oracle, tiny_jobs, trainer
from reference.exported_job import ExportedJob, evaluation_rows, held_out_stream, load_as_documented, logits_of
from reference.families import FAMILIES
from reference.nf4 import dequantized_folder
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel
from test_generation import expected, generate, plain, prompts_of, spec_of

def job_of(folder, method):
    return {
        "name": "families",
        "model": {"path": str(folder)},
        "context_length": 32,
        "attention": {"kind": "s2"},
        "method": {"kind": method},
        "training": {"dtype": "fp32"},
    }


def make_ids(tiny, batch=2, tokens=27, seed=17):
    return torch.randint(0, tiny.vocab, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", ["full", "qlonglora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_errs_at_most_twice_as_much_as_plain_bf16(name, method, shelf, probes, tmp_path):
    tiny = dataclasses.replace(FAMILIES[name], dtype="bfloat16")
    folder = judge = shelf.folder(tiny)
    spec = job_of(folder, "full" if method == "full" else "longlora")
    if method != "full":
        adapter = oracle.write_adapter(folder, tmp_path / "adapter", spec, targets=oracle.linear_modules(tiny.family))
        spec["method"] = {"kind": method, "adapter": str(adapter)}
        judge = dequantized_folder(folder, tmp_path / "dequantized")
    spec["training"]["dtype"] = "bf16"
    ids = make_ids(tiny)
    actual = probes.probe(spec, ids)
    exact = compare.named(oracle.reference(judge, spec, ids))
    plain = compare.named(oracle.reference(judge, spec, ids, dtype=torch.bfloat16))
    assert set(actual) == set(exact)
    too_far = {}
    for key, tensor in exact.items():
        ours = (actual[key] - tensor).norm().item() / tensor.norm().item()
        theirs = (plain[key] - tensor).norm().item() / tensor.norm().item()
        # The loss is one number, whose error can be small by luck: it gets the logits' error as its yardstick.
        if not ours <= 2 * (theirs if key != "loss" else max(theirs, 2**-8)):
            too_far[key] = (ours, theirs)
    assert not too_far


@pytest.mark.parametrize("method", ["lora", "longlora", "qlora", "qlonglora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_adapter_trains_what_peft_would(name, method, shelf, probes):
    """Without method.targets, the projections of attention; the same names and shapes as PEFT's file."""
    tiny = FAMILIES[name]
    folder = shelf.folder(tiny)
    spec = job_of(folder, method)
    probed = probes.probe(spec, make_ids(tiny))
    actual = {key.removeprefix("grad."): tuple(t.shape) for key, t in probed.items() if key.startswith("grad.")}
    model = oracle.new_adapter(oracle.load_base(folder, spec), method.removeprefix("q"))
    expected = {key: tuple(tensor.shape) for key, tensor in get_peft_model_state_dict(model).items()}
    if tiny.tied:  # one tensor trains, under the first of its two names
        expected.pop("base_model.model.lm_head.weight", None)
    assert actual == expected


@pytest.mark.parametrize("family", sorted({tiny.family for tiny in FAMILIES.values()}))
def test_layers_beyond_the_tenth_keep_their_order(family, shelf, probes):
    """Names sort 1, 10, 2; each layer must get its own tensors."""
    tiny = TinyModel(family=family, hidden=32, kv_heads=4, head_dim=8 if family == "qwen3" else None, intermediate=24, layers=11)
    folder = shelf.folder(tiny)
    spec = job_of(folder, "full")
    compare.assert_close(probes.probe(spec, make_ids(tiny)), compare.named(oracle.reference(folder, spec, make_ids(tiny))))


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_texts_are_transformers_own(name, shelf, tmp_path, trainer_binary):
    """Of the base with its own config, so through its sliding window where it has one; 64 positions and beyond."""
    tiny = FAMILIES[name]
    folder = shelf.folder(tiny)
    prompts = prompts_of([1, 19, 64, 140], tiny.vocab)
    lines = generate(spec_of(folder), prompts, tmp_path / "texts", "--model", "base", "--max-new-tokens", 12, "--ignore-end")
    model = plain(folder)
    assert [line["tokens"] for line in lines] == [expected(model, prompt, 12) for prompt in prompts]


# ---- whole jobs ----

LONGLORA_JOBS = [name for name in FAMILIES if name not in ("llama_attention_bias", "llama_mlp_bias", "mistral_no_window")]
# Each family once: its variants differ in what is computed (test_family_matrix.py), not in what these methods write. Llama in 4 bits is
# test_nf4.py's.
FULL_JOBS = ["llama_all_biases_tied", "mistral_window_outgrown", "qwen2", "qwen3", "gpt_neox"]
QUANTIZED_JOBS = ["mistral_window_outgrown", "qwen2", "qwen3", "gpt_neox"]
JOBS = {
    f"{name}_{method}": (name, method)
    for method, names in (("longlora", LONGLORA_JOBS), ("full", FULL_JOBS), ("qlonglora", QUANTIZED_JOBS))
    for name in names
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trainer_binary):
    """Jobs that ran to their end, each run once."""
    done = {}

    def get(key):
        if key not in done:
            name, method = JOBS[key]
            changes = {
                "method": {"kind": method}, "evaluation": {"lengths": [64, 128, 200]}, "training": {"steps": 2},
                "checkpoint": {"every_steps": 0},
            }  # fmt: skip
            if method == "full":
                changes["method"].update(rank=..., alpha=...)
            done[key] = ExportedJob(tmp_path_factory.mktemp(key), FAMILIES[name], documents=1, words_each=2100, **changes)
        return done[key]

    return get


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, tiny_jobs.VOCAB, (2, 101), generator=torch.Generator().manual_seed(8))


def probed_logits(job, ids, probes, **changes):
    spec = trainer.merged_spec(job.job.spec, {"attention": {"kind": "full"}, **changes})
    return probes.probe(spec, ids)["logits"]


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_longlora")])
def test_adapter_merged_and_trainer_give_equal_logits(key, exported, ids, probes, monkeypatch):
    job = exported(key)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    adapted = logits_of(load_as_documented(job.work / "adapter", monkeypatch), ids)
    method = {**job.job.spec["method"], "adapter": str(job.work / "adapter")}
    assert compare.relative_error(probed_logits(job, ids, probes, method=method), adapted) < 1e-4
    assert compare.relative_error(merged, adapted) < 1e-4
    base = logits_of(AutoModelForCausalLM.from_pretrained(job.job.model), ids)
    assert compare.relative_error(adapted, base) > 1e-2, "training changed nothing"


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_qlonglora")])
def test_adapter_over_4_bits_and_merged_give_equal_logits(key, exported, ids, probes, tmp_path, monkeypatch):
    """The adapter in PEFT over the dequantised base, the merged model in transformers, the trainer from its own adapter."""
    job = exported(key)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    dequantized = dequantized_folder(job.job.model, tmp_path / "dequantized")
    readme = job.work / "adapter" / "README.md"
    readme.write_text(readme.read_text().replace(str(job.job.model), str(dequantized)))
    adapted = logits_of(load_as_documented(job.work / "adapter", monkeypatch), ids)
    method = {"kind": "qlonglora", "adapter": str(job.work / "adapter")}
    assert compare.relative_error(probed_logits(job, ids, probes, method=method), adapted) < 1e-4
    assert compare.relative_error(merged, adapted) < 1e-4
    base = logits_of(AutoModelForCausalLM.from_pretrained(dequantized), ids)
    assert compare.relative_error(adapted, base) > 1e-2, "training changed nothing"


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_longlora")])
def test_peft_loads_exactly_what_was_saved(key, exported, monkeypatch):
    """Modules are matched by suffix: every saved tensor must arrive, and PEFT must expect no further one."""
    job = exported(key)
    stored = read_tensors(job.work / "adapter" / "adapter_model.safetensors")
    model = load_as_documented(job.work / "adapter", monkeypatch)
    assert isinstance(model, PeftModel)
    loaded = get_peft_model_state_dict(model)
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_full")])
def test_merged_model_of_full_training_gives_the_trainers_logits(key, exported, ids, probes):
    job = exported(key)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    probed = probed_logits(job, ids, probes, model={"path": str(job.work / "merged")})
    assert compare.relative_error(probed, merged) < 1e-4
    base, after = job.base_tensors(), job.merged_tensors()
    assert set(base) == set(after)
    assert not [name for name in base if torch.equal(base[name], after[name])]


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_longlora")])
def test_only_what_trains_changes(key, exported):
    job = exported(key)
    base, merged = job.base_tensors(), job.merged_tensors()
    assert set(merged) == set(base)
    assert all(merged[name].dtype == base[name].dtype for name in base)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    stored = read_tensors(job.work / "adapter" / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.").replace(".lora_A", "").replace(".lora_B", "") for name in stored}
    assert changed == (names - {"lm_head.weight"} if job.tiny.tied else names)


@pytest.mark.parametrize("key", [key for key in JOBS if key.endswith("_longlora")])
def test_perplexity_is_transformers_own(key, exported):
    """Of the base with its own config and of the merged model with the exported one."""
    job = exported(key)
    stream = held_out_stream(job.work)
    models = {
        "base": AutoModelForCausalLM.from_pretrained(job.job.model),
        "extended": AutoModelForCausalLM.from_pretrained(job.work / "merged"),
    }
    for (kind, length), row in evaluation_rows(job.work).items():
        if kind not in models:
            continue
        count = len(stream) // length
        windows = stream[: count * length].reshape(count, length)
        logits = logits_of(models[kind], windows)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1))
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5), (kind, length)


@pytest.mark.parametrize(
    "name, window", [("mistral_window_outgrown", None), ("mistral_window_kept", 130), ("qwen2_window_in_one_layer", None)]
)
def test_exported_window_is_the_one_that_training_used(name, window, exported):
    job = exported(f"{name}_longlora")
    for folder in (job.work / "merged", job.work / "adapter" / "extended_config"):
        config = AutoConfig.from_pretrained(folder)
        assert config.sliding_window == window
        assert set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    card = (job.work / "run_card.md").read_text()
    assert ("sliding window" in card) == (window is None)
    # With the window gone, the base with the job's config is not the base.
    assert (("rescaled", 64) in evaluation_rows(job.work))


@pytest.mark.parametrize("name", ["llama_all_biases_tied", "mistral_no_window", "qwen2", "qwen3_tied_biases", "gpt_neox"])
def test_random_weights_train(name, tmp_path, trainer_binary):
    """model.init random: the tensors of the family, norms 1, biases 0, drawn with the config's deviation."""
    tiny = FAMILIES[name]
    changes = {"model": {"init": "random"}, "method": {"kind": "full", "rank": ..., "alpha": ...}, "training": {"steps": 1, "learning_rate": 0.0}}  # fmt: skip
    job = ExportedJob(tmp_path, tiny, **changes)
    merged = job.merged_tensors()
    assert {key: tensor.shape for key, tensor in merged.items()} == {key: tensor.shape for key, tensor in job.base_tensors().items()}  # fmt: skip
    for key, tensor in merged.items():
        if key.endswith(".bias"):
            assert not tensor.any(), key
        elif tensor.dim() == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), key
        else:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), key
    config = json.loads((job.work / "merged" / "config.json").read_text())
    assert config["architectures"] == [type(AutoModelForCausalLM.from_pretrained(job.work / "merged")).__name__]
