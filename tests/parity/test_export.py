"""What a job leaves: the adapter in PEFT, the merged model in transformers, and the trainer's own logits, all equal."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reference import compare, tiny_jobs, trainer, work_folder
from reference.exported_job import (
    ExportedJob,
    documented_lines,
    evaluation_rows,
    fp32,
    held_out_stream,
    load_as_documented,
    logits_of,
)
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


# Then the held-out part is known without the trainer's own order of documents: the tail.
ONE_DOCUMENT = {"documents": 1, "words_each": 4200}

VARIANTS = {
    "longlora_untied": (TinyModel(), {}),
    "longlora_tied": (TinyModel(tied=True), ONE_DOCUMENT),
    "lora_odd_kv": (TinyModel(hidden=72, heads=9, kv_heads=3), {**ONE_DOCUMENT, "method": {"kind": "lora"}}),
    "longlora_mlp_sharded": (
        TinyModel(sharded=True),
        {"method": {"rank": 2, "alpha": 3, "targets": ["q_proj", "o_proj", "up_proj", "down_proj"]}},
    ),
    "longlora_scaled_model_older_config": (
        TinyModel(rope_factor=2.0, rope_style="scaling"),
        {"rope": {"original_length": 32}},
    ),
    "lora_tied": (TinyModel(tied=True), {"method": {"kind": "lora"}}),
    "longlora_stored_bf16": (TinyModel(dtype="bfloat16"), {}),
    "full_untied": (TinyModel(), {"method": {"kind": "full", "rank": ..., "alpha": ...}}),
    "full_tied": (TinyModel(tied=True), {"method": {"kind": "full", "rank": ..., "alpha": ...}}),
}
ADAPTED = [name for name in VARIANTS if not name.startswith("full")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trainer_binary):
    """Jobs that ran to their end, by the name of their variant; each is run once."""
    done = {}

    def get(name):
        if name not in done:
            tiny, changes = VARIANTS[name]
            phases = ("prepare", "train", "evaluate", "export")  # each by hand; elsewhere `run` does them
            done[name] = ExportedJob(tmp_path_factory.mktemp(name), tiny, commands=phases, **changes)
        return done[name]

    return get


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, tiny_jobs.VOCAB, (2, 101), generator=torch.Generator().manual_seed(8))


def probed_logits(exported, ids, folder):
    """The trainer's logits with full attention, over the base with the exported adapter."""
    spec = trainer.merged_spec(exported.job.spec, {"attention": {"kind": "full"}})
    spec["method"]["adapter"] = str(exported.work / "adapter")
    return trainer.probe(spec, ids, None, folder)["logits"]


@pytest.mark.parametrize("name", ADAPTED)
def test_adapter_merged_and_trainer_give_equal_logits(name, exported, ids, tmp_path, monkeypatch):
    job = exported(name)
    merged = logits_of(fp32(AutoModelForCausalLM.from_pretrained(job.work / "merged")), ids)
    adapted = logits_of(fp32(load_as_documented(job.work / "adapter", monkeypatch)), ids)
    probed = probed_logits(job, ids, tmp_path)
    # Over a base stored in bf16, PEFT rounds what it loads and a merged tensor is rounded once; the trainer ran in fp32.
    tolerance = 1e-4 if job.tiny.dtype == "float32" else 5e-2
    assert compare.relative_error(probed, adapted) < tolerance
    assert compare.relative_error(merged, adapted) < tolerance
    base = logits_of(fp32(AutoModelForCausalLM.from_pretrained(job.job.model)), ids)
    assert compare.relative_error(adapted, base) > 1e-2, "training changed nothing"


@pytest.mark.parametrize("name", ["full_untied", "full_tied"])
def test_merged_model_of_full_training_gives_the_trainers_logits(name, exported, ids, tmp_path):
    job = exported(name)
    assert not (job.work / "adapter").exists()
    merged = logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged", dtype=torch.float32), ids)
    spec = trainer.merged_spec(job.job.spec, {"attention": {"kind": "full"}, "model": {"path": str(job.work / "merged")}})
    # The merged model's maximum is the job's context: the absent rope must not extend it again.
    assert compare.relative_error(trainer.probe(spec, ids, None, tmp_path)["logits"], merged) < 1e-4


@pytest.mark.parametrize("name", ADAPTED)
def test_checkpoints_load_in_peft(name, exported, ids, monkeypatch):
    job = exported(name)
    kept = work_folder.checkpoints(job.work)
    assert set(kept) == {2, 4}
    config = AutoConfig.from_pretrained(job.work / "adapter" / "extended_config")
    seen = []
    for step in (2, 4):
        base = AutoModelForCausalLM.from_pretrained(job.job.model, config=config, dtype=torch.float32)
        seen.append(logits_of(fp32(PeftModel.from_pretrained(base, kept[step])), ids))
    assert not torch.equal(seen[0], seen[1])
    final = logits_of(fp32(load_as_documented(job.work / "adapter", monkeypatch)), ids)
    assert compare.relative_error(seen[1], final) < (1e-5 if job.tiny.dtype == "float32" else 5e-2)


def expected_changes(job):
    """Names of the merged tensors that training may change."""
    targets = tuple(job.job.spec["method"].get("targets", LORA_TARGETS))
    names = set(job.base_tensors())
    if job.method == "full":
        return names
    changed = {name for name in names if name.split(".")[-2] in targets}
    if job.method == "longlora":
        changed |= {name for name in names if name.endswith("norm.weight") or "embed_tokens" in name}
    return changed


@pytest.mark.parametrize("name", VARIANTS)
def test_only_what_trains_changes(name, exported):
    job = exported(name)
    base, merged = job.base_tensors(), job.merged_tensors()
    assert set(merged) == set(base)
    assert all(merged[key].dtype == base[key].dtype and merged[key].shape == base[key].shape for key in base)
    changed = {key for key in base if not torch.equal(merged[key], base[key])}
    missing = expected_changes(job) - changed
    if job.tiny.dtype != "float32":
        missing -= {key for key in missing if key.endswith("norm.weight")}  # a small move may round to the old value
    assert changed <= expected_changes(job) and not missing


@pytest.mark.parametrize("name", ADAPTED)
def test_merged_tensors_are_base_plus_scaled_product(name, exported):
    job = exported(name)
    base, merged = job.base_tensors(), job.merged_tensors()
    stored = read_tensors(job.work / "adapter" / "adapter_model.safetensors")
    config = json.loads((job.work / "adapter" / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
    for key in expected_changes(job):
        wrapped = "base_model.model." + key
        factor = wrapped.removesuffix(".weight") + ".lora_A.weight"
        if factor in stored:
            other = stored[factor.replace("lora_A", "lora_B")].float()
            expected = base[key].float() + scale * (other @ stored[factor].float())
        else:
            expected = stored[wrapped].float()
        torch.testing.assert_close(merged[key].float(), expected, rtol=tolerance[base[key].dtype], atol=1e-6)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapter_folder_has_exactly_what_peft_needs(name, exported):
    job = exported(name)
    folder, tied = job.work / "adapter", job.tiny.tied
    assert not (folder / "config.json").exists(), "AutoModel would take the adapter for a model"
    config = json.loads((folder / "adapter_config.json").read_text())
    method = job.job.spec["method"]
    assert (config["r"], config["lora_alpha"]) == (method["rank"], method["alpha"])
    assert set(config["target_modules"]) == set(method.get("targets", LORA_TARGETS))
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    stored = read_tensors(folder / "adapter_model.safetensors")
    layers = job.tiny.layers
    assert sum(".lora_A." in key for key in stored) == layers * len(config["target_modules"])
    saved = set(config.get("modules_to_save") or [])
    embedding, head = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
    if job.method == "lora":
        assert not saved and all(".lora_" in key for key in stored)
    else:
        assert ("embed_tokens" in saved) and (("lm_head" in saved) == tied)
        assert (head in stored) == tied
        if tied:
            assert torch.equal(stored[embedding], stored[head])
        assert sum(key.endswith("norm.weight") for key in stored) == 2 * layers + 1


@pytest.mark.parametrize("name", VARIANTS)
def test_files_say_pt_and_config_says_the_new_length(name, exported):
    job = exported(name)
    for file in job.work.glob("*/*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert (opened.metadata() or {}).get("format") == "pt", file
    old = 1.0 if job.tiny.rope_factor is None else job.tiny.rope_factor
    folders = [job.work / "merged"] + ([] if job.method == "full" else [job.work / "adapter" / "extended_config"])
    for folder in folders:
        text = json.loads((folder / "config.json").read_text())
        assert text["max_position_embeddings"] == 128
        assert text["rope_theta"] == 10000.0, "older releases read rope_theta at the top"
        scaling = text["rope_scaling"]
        assert scaling["factor"] == 2.0 * old and "linear" in (scaling.get("type"), scaling.get("rope_type"))
        assert text["tie_word_embeddings"] == job.tiny.tied
        config = AutoConfig.from_pretrained(folder)
        assert config.rope_parameters["rope_type"] == "linear" and config.rope_parameters["factor"] == 2.0 * old


@pytest.mark.parametrize("name", ["longlora_tied", "full_untied"])
def test_merged_folder_is_complete(name, exported):
    job = exported(name)
    merged = job.work / "merged"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (merged / file).read_bytes() == (job.job.model / file).read_bytes()
    assert (merged / "generation_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    prompt = tokenizer("ka lo mi ter", return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert tied == job.tiny.tied


def test_documented_lines_run_in_a_fresh_interpreter(exported, ids):
    """No state of this test session helps them."""
    job = exported("longlora_tied")
    folder = job.work / "adapter"
    script = documented_lines(folder / "README.md") + "\nprint('rope factor', model.config.rope_parameters['factor'])\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rope factor 2.0" in done.stdout


def test_an_exported_adapter_starts_another_job(exported, ids, tmp_path):
    """`method.adapter` accepts our own export: rank, alpha and targets come from it."""
    job = exported("longlora_mlp_sharded")
    spec = trainer.merged_spec(job.job.spec, {"attention": {"kind": "full"}})
    spec["method"] = {"kind": "longlora", "adapter": str(job.work / "adapter")}
    out = trainer.probe(spec, ids, None, tmp_path)
    assert out["grad.base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape[0] == 2


@pytest.mark.parametrize("lost", ["lora_B", "embed_tokens", "norm.weight"])
def test_export_refuses_when_a_trained_tensor_is_missing(lost, exported, tmp_path):
    job = exported("longlora_untied")
    work = tmp_path / "work"
    work.mkdir()
    checkpoint = work_folder.checkpoints(job.work)[4]

    shutil.copytree(job.work, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapter", "merged", "step-00000002*"))
    copy = work / "checkpoints" / checkpoint.name
    file = copy / "adapter_model.safetensors"
    tensors = read_tensors(file)
    name = next(key for key in sorted(tensors) if lost in key)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    # The manifest is made right again: the hash is not what must notice.
    manifest = json.loads((copy / "MANIFEST.json").read_text())
    data = file.read_bytes()
    manifest["files"]["adapter_model.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (copy / "MANIFEST.json").write_text(json.dumps(manifest))
    spec = trainer.write_spec(job.job.spec, tmp_path / "spec.json")
    done = trainer.command("export", spec, "--work", work)
    assert done.returncode not in (0, 40) and done.returncode > 0, trainer.report(done)
    assert not (work / "merged").exists()


@pytest.mark.parametrize("name", ["longlora_tied", "lora_odd_kv"])
def test_evaluation_has_base_rescaled_and_extended_at_every_length(name, exported):
    job = exported(name)
    rows = evaluation_rows(job.work)
    assert set(rows) == {(model, length) for model in ("base", "rescaled", "extended") for length in (64, 128)}
    for row in rows.values():
        assert row["perplexity"] == pytest.approx(torch.tensor(row["loss"]).exp().item(), rel=1e-5)
        assert row["tokens"] > 0 and row["protocol"] == "windows"
    # Rescaled is the base with the job's positions and nothing trained; without it the three rows would mean nothing.
    assert rows["base", 64]["loss"] != rows["rescaled", 64]["loss"] != rows["extended", 64]["loss"]


@pytest.mark.parametrize("name", ["longlora_tied", "lora_odd_kv"])
def test_perplexity_is_transformers_own(name, exported):
    """Non-overlapping windows of the held-out stream, full attention, each window's own tokens scored."""
    job = exported(name)
    stream = held_out_stream(job.work)
    rescaled = AutoConfig.from_pretrained(job.work / "adapter" / "extended_config")
    models = {
        "base": AutoModelForCausalLM.from_pretrained(job.job.model),
        "rescaled": AutoModelForCausalLM.from_pretrained(job.job.model, config=rescaled),
        "extended": AutoModelForCausalLM.from_pretrained(job.work / "merged"),
    }
    for (kind, length), row in evaluation_rows(job.work).items():
        count = len(stream) // length
        windows = stream[: count * length].reshape(count, length)
        logits = logits_of(models[kind], windows)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1))
        assert row["tokens"] == count * (length - 1)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5), (kind, length)
