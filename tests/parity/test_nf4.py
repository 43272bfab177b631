"""qlora and qlonglora: the 4-bit base against bitsandbytes, gradients against PyTorch over the dequantised values."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from reference import compare, exported_job, oracle, tiny_jobs, trainer
from reference.nf4 import dequantized, dequantized_folder, is_linear, quantize, scales_of
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel, write_model
from test_methods import ids_of, job, refused, write_adapter

# Sizes on the edges: weights of less than a block, not of whole blocks, of more than one block of scales.
SHAPES = {
    "tiny": TinyModel(),
    "not_of_whole_blocks": TinyModel(hidden=30, heads=5, kv_heads=5, intermediate=7, layers=1),
    "odd_kv": TinyModel(hidden=72, heads=9, kv_heads=3),
    "many_scales": TinyModel(hidden=192, heads=4, kv_heads=4, intermediate=300, layers=1),
    "stored_bf16": TinyModel(dtype="bfloat16"),
    "stored_fp16": TinyModel(dtype="float16"),
    "sharded_tied": TinyModel(sharded=True, tied=True),
}

@pytest.fixture(scope="module")
def plain(shelf, tmp_path_factory):
    made = {}

    def get(tiny):
        if tiny not in made:
            made[tiny] = dequantized_folder(shelf.folder(tiny), tmp_path_factory.mktemp("dequantized") / "model")
        return made[tiny]

    return get


def run(spec_file, command, work):
    done = trainer.command(command, spec_file, "--work", work)
    assert done.returncode == 0, trainer.report(done)
    return done


def cached(work):
    [file] = (work / "quantized").glob("*/nf4.safetensors")
    return file


def short_job(root, tiny, **changes):
    """A job file of one step, ready to be run."""
    method = {"kind": "qlora", **changes.pop("method", {})}
    one_step = {"training": {"steps": 1, "global_batch": 1, "micro_batch": 1}, "checkpoint": {"every_steps": 0}}
    written = tiny_jobs.write_job(root, tiny, documents=2, method=method, **one_step, **changes)
    return written, trainer.write_spec(written.spec, root / "spec.json")


@pytest.mark.parametrize("name", SHAPES)
def test_codes_and_scales_are_those_of_bitsandbytes(name, tmp_path, trainer_binary):
    made, spec = short_job(tmp_path / "job", SHAPES[name])
    run(spec, "train", tmp_path / "work")
    actual = read_tensors(cached(tmp_path / "work"))
    weights = {key: value for key, value in exported_job.folder_tensors(made.model).items() if is_linear(key)}
    assert len(actual) == 4 * len(weights)
    for key, weight in weights.items():
        module = key.removesuffix(".weight")
        for part, expected in zip(("codes", "scale_codes", "scale_maxima", "scale_mean"), quantize(weight), strict=True):
            assert torch.equal(actual[f"{module}.{part}"], expected), f"{module}.{part}"


def test_dequantized_values_are_those_of_bitsandbytes():
    """What the gradients below are judged by. Rows of whole blocks: with others its CPU kernel (0.50.2) mixes up the blocks."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = (0.3 * torch.randn((300, 192), generator=torch.Generator().manual_seed(1))).to(dtype)
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        state.absmax = scales_of(weight)
        assert torch.equal(bnb.dequantize_4bit(packed, state), dequantized(weight).to(dtype))


@pytest.mark.parametrize("kind", ["qlora", "qlonglora"])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_over_the_dequantized_values(name, kind, shelf, plain, tmp_path, trainer_binary):
    tiny = SHAPES[name]
    folder = shelf.folder(tiny)
    spec = job(folder, kind)
    modules = None if kind == "qlora" else ["embed_tokens", *oracle.NORMS] + (["lm_head"] if tiny.tied else [])
    spec["method"]["adapter"] = write_adapter(
        folder, tmp_path / "adapter", job(folder, "lora"), modules, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"]
    )
    actual = trainer.probe(spec, ids_of(tiny), None, tmp_path)
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, compare.named(oracle.reference(plain(tiny), spec, ids_of(tiny))))


def test_a_fresh_adapter_over_4_bits_has_the_logits_of_the_dequantized_model(shelf, plain, tmp_path, trainer_binary):
    tiny = SHAPES["tiny"]
    spec = job(shelf.folder(tiny), "qlora")
    expected = oracle.run(oracle.load_base(plain(tiny), spec), spec, ids_of(tiny))
    assert compare.relative_error(trainer.probe(spec, ids_of(tiny), None, tmp_path)["logits"], expected.logits) < 1e-5


def test_bf16_errs_at_most_twice_as_much_as_plain_bf16(shelf, plain, tmp_path, trainer_binary):
    tiny = SHAPES["stored_bf16"]
    folder = shelf.folder(tiny)
    spec = job(folder, "qlonglora")
    spec["training"]["dtype"] = "bf16"
    spec["method"]["adapter"] = write_adapter(folder, tmp_path / "adapter", job(folder, "lora"), ["embed_tokens", *oracle.NORMS])
    actual = trainer.probe(spec, ids_of(tiny), None, tmp_path)
    exact = compare.named(oracle.reference(plain(tiny), spec, ids_of(tiny)))
    rounded = compare.named(oracle.reference(plain(tiny), spec, ids_of(tiny), dtype=torch.bfloat16))
    for name, tensor in exact.items():
        size = tensor.norm()
        ours, theirs = ((other.reshape(tensor.shape) - tensor).norm() / size for other in (actual[name], rounded[name]))
        assert ours <= 2 * max(theirs, 2**-8 if name == "loss" else 0), name


# ---- whole jobs ----

EXPORTS = {
    "qlora": (TinyModel(), {"method": {"kind": "qlora"}}),
    "qlonglora_tied": (TinyModel(tied=True), {"method": {"kind": "qlonglora", "targets": ["q_proj", "down_proj"]}}),
    "original": (TinyModel(), {"method": {"kind": "qlonglora"}, "output": {"merged_base": "original"}}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trainer_binary):
    done = {}

    def get(name):
        if name not in done:
            tiny, changes = EXPORTS[name]
            root = tmp_path_factory.mktemp(name)
            done[name] = exported_job.ExportedJob(root / "job", tiny, documents=1, words_each=4200, **changes)
            dequantized_folder(done[name].job.model, root / "dequantized")
            done[name].dequantized = root / "dequantized"
        return done[name]

    return get


@pytest.mark.parametrize("name", EXPORTS)
def test_merged_is_lora_over_the_base_that_was_asked_for(name, exported):
    job = exported(name)
    stored = read_tensors(job.work / "adapter" / "adapter_model.safetensors")
    original, merged = job.base_tensors(), job.merged_tensors()
    base = original if name == "original" else exported_job.folder_tensors(job.dequantized)
    assert set(merged) == set(original)
    for key, value in merged.items():
        wrapped = "base_model.model." + key
        factor = wrapped.removesuffix(".weight") + ".lora_A.weight"
        if factor in stored:
            expected = base[key] + 2.0 * (stored[factor.replace("lora_A", "lora_B")] @ stored[factor])
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(value, stored.get(wrapped, base[key])), key


@pytest.mark.parametrize("name", EXPORTS)
def test_rows_of_the_evaluation_are_of_the_models_they_name(name, exported):
    """base and extended are of the 4-bit values; what merged/ holds has its own row where it is another model."""
    job = exported(name)
    stream = exported_job.held_out_stream(job.work)
    rows = exported_job.evaluation_rows(job.work)
    models = {"base": job.dequantized, "merged" if name == "original" else "extended": job.work / "merged"}
    assert {model for model, _ in rows} == {"base", "rescaled", "extended"} | set(models)
    for model, folder in models.items():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        for length in (64, 128):
            windows = stream[: len(stream) // length * length].reshape(-1, length)
            logits = exported_job.logits_of(loaded, windows)[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1))
            assert rows[model, length]["loss"] == pytest.approx(loss.item(), rel=1e-5), (model, length)
    card = json.loads((job.work / "run_card.json").read_text())
    assert card["base_weights"] == "nf4"
    assert ("the row `merged`" in " ".join(card["notes"])) == (name == "original")


@pytest.mark.parametrize("name", EXPORTS)
def test_the_adapter_loads_in_peft(name, exported, tmp_path, monkeypatch):
    """Over the base as it is, and over the dequantised one, where it must give the trainer's own logits."""
    job = exported(name)
    ids = torch.randint(0, tiny_jobs.VOCAB, (2, 61), generator=torch.Generator().manual_seed(8))
    over_original = exported_job.logits_of(exported_job.load_as_documented(job.work / "adapter", monkeypatch), ids)
    readme = job.work / "adapter" / "README.md"
    assert "load_in_4bit" in readme.read_text()
    readme.write_text(readme.read_text().replace(str(job.job.model), str(job.dequantized)))
    over_dequantized = exported_job.logits_of(exported_job.load_as_documented(job.work / "adapter", monkeypatch), ids)
    spec = trainer.merged_spec(job.job.spec, {"attention": {"kind": "full"}})
    spec["method"] = {"kind": job.method, "adapter": str(job.work / "adapter")}
    assert compare.relative_error(trainer.probe(spec, ids, None, tmp_path)["logits"], over_dequantized) < 1e-4
    merged = exported_job.logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    expected = over_original if name == "original" else over_dequantized
    assert compare.relative_error(merged, expected) < 1e-4


# ---- the cache ----


def test_a_restart_takes_the_cache_and_a_damaged_one_is_made_anew(tmp_path, trainer_binary):
    _, spec = short_job(tmp_path / "job", TinyModel())
    work = tmp_path / "work"
    assert "quantized 14 linear layers" in run(spec, "train", work).stderr
    before = cached(work).read_bytes()
    shutil.rmtree(work / "checkpoints")
    assert "comes from" in run(spec, "train", work).stderr
    bits = bytearray(before)
    bits[-1] ^= 1
    cached(work).write_bytes(bits)
    shutil.rmtree(work / "checkpoints")
    assert "making it anew" in run(spec, "train", work).stderr
    assert cached(work).read_bytes() == before


def test_another_base_has_another_cache(tmp_path, trainer_binary):
    made, spec = short_job(tmp_path / "job", TinyModel())
    run(spec, "train", tmp_path / "work")
    first = cached(tmp_path / "work").parent.name
    tensors = exported_job.folder_tensors(pathlib.Path(made.model))
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] += 1
    save_file(tensors, pathlib.Path(made.model) / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "work" / "checkpoints")
    run(spec, "train", tmp_path / "work")
    assert len(list((tmp_path / "work" / "quantized").glob("*/MANIFEST.json"))) == 2
    assert (tmp_path / "work" / "quantized" / first).is_dir()


def test_jobs_of_one_storage_share_the_cache(tmp_path, trainer_binary):
    _, spec = short_job(tmp_path / "job", TinyModel())
    for name in ("one", "two"):
        run(spec, "train", tmp_path / "storage" / "jobs" / name)
    assert cached(tmp_path / "storage")


def test_two_ranks_share_it_too(tmp_path, trainer_binary):
    made, _ = short_job(tmp_path / "job", TinyModel())
    made.spec["training"]["global_batch"] = 2
    made.spec["resources"] = {"slots": 2}
    spec = trainer.write_spec(made.spec, tmp_path / "spec.json")
    port = 20000 + os.getpid() % 20000
    ranks = [
        trainer.start("train", spec, "--work", tmp_path / "work", "--rank", rank, "--world-size", 2, "--store", f"127.0.0.1:{port}")
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], told
    assert "quantized 14 linear layers" in told[0] and "comes from" in told[1]


def test_a_weight_that_is_not_finite_is_refused(shelf, tmp_path, trainer_binary):
    folder = tmp_path / "model"
    shutil.copytree(shelf.folder(TinyModel()), folder)
    tensors = exported_job.folder_tensors(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 2] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layers.1.mlp.up_proj" in refused(job(folder, "qlora"), tmp_path)


def peak_bytes(arguments):
    """Largest resident set of the trainer. A process starts with its parent's peak as its own, so the parent must be small."""
    small_parent = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-S", "-c", small_parent, str(trainer.binary()), *map(str, arguments)]
    done = subprocess.run(command, env=trainer.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, trainer.report(done)
    return int(done.stdout.split()[-1]) * 1024


def test_the_base_never_sits_in_memory_whole(tmp_path, trainer_binary):
    """The largest resident set of a probe, above that of one over a tiny base, against the bytes of the base's linear layers."""
    tiny = TinyModel(hidden=512, heads=8, kv_heads=8, intermediate=1536, layers=8, vocab=131)
    large = write_model(tiny, tmp_path / "large")
    small = write_model(dataclasses.replace(tiny, hidden=64, heads=2, kv_heads=2, intermediate=256, layers=1), tmp_path / "small")
    # The small base is just large enough that LoRA is folded in by the same library, whose code takes some MiB itself; the rows are so
    # few that it is not asked to multiply with them, for which it would copy a weight.
    ids = torch.ones((1, 4), dtype=torch.int64)
    peaks = {}
    for name, folder, kind in (("small", small, "qlora"), ("4 bits", large, "qlora"), ("whole", large, "lora")):
        save_file({"input_ids": ids}, tmp_path / "in.safetensors")
        spec = trainer.write_spec(job(folder, kind), tmp_path / "spec.json")
        command = ["probe", spec, "--tokens", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors"]
        peaks[name] = peak_bytes(command)
    linear_bytes = 4 * 8 * (4 * 512 * 512 + 3 * 512 * 1536)
    assert peaks["whole"] - peaks["small"] > linear_bytes
    # The 4-bit values are an eighth of the fp32 ones; the largest weight and the scratch buffer come to some MiB.
    assert peaks["4 bits"] - peaks["small"] < 0.35 * linear_bytes, peaks
    print({name: f"{peak / 2**20:.0f} MiB" for name, peak in peaks.items()}, f"linear layers {linear_bytes / 2**20:.0f} MiB")
