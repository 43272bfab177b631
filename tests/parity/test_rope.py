"""Positions: the trainer's angles, logits, gradients and exported configs against transformers' own, for every kind of
scaling, on models without one and on models that come with one.
"""

import copy
import json
import os
import pathlib
import shutil
import subprocess

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from reference import compare, oracle, positions, tiny_jobs, trainer
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel
from test_export import evaluation_rows, held_out_stream, load_as_documented, logits_of

# ---- angles ----

POSITIONS = [0, 1, 2, 63, 64, 65, 1000, 2047, 2048, 4095, 4096, 8191, 19999, 32767, 39999]
LENGTHS = [100, 5000, 3000, 40000, 5000, 64]
# cos and sin of the same angle, by a vector or a scalar routine: a unit in the last place of 1, twice.
TOLERANCE = 2.5e-7


def config(head_dim=64, theta=10000.0, longest=4096, **more):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2 * head_dim, "head_dim": head_dim,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16,
        "max_position_embeddings": longest, "rope_theta": theta, **more,
    }  # fmt: skip


def scaled(kind, factor, longest=4096, head_dim=64, theta=10000.0, **more):
    return config(head_dim, theta, longest, rope_scaling={"rope_type": kind, "factor": factor, **more})


LLAMA_31 = scaled(
    "llama3", 8.0, 131072, 128, 500000.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
LLAMA_32 = scaled(
    "llama3", 32.0, 131072, 64, 500000.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
QWEN_25 = scaled("yarn", 4.0, 32768, 128, 1000000.0, original_max_position_embeddings=32768)
LONG_YARN = scaled("yarn", 16.0, 65536, 128, original_max_position_embeddings=4096)
DYNAMIC = scaled("dynamic", 2.0, 2048)
LINEAR = scaled("linear", 4.0)

# As they come, under every name that the keys ever had.
SHIPPED = {
    "plain": config(),
    "plain_large_theta": config(128, 1e6, 16384),
    "plain_odd_sizes": config(10, 12345.678, 100),
    "plain_new_keys": {**config(), "rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    "linear": LINEAR,
    "linear_oldest_keys": config(rope_scaling={"type": "linear", "factor": 8.0}),
    "linear_not_whole": scaled("linear", 2.7, head_dim=128),
    "linear_new_keys": {**config(), "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5e4}},
    "both_sections": config(
        rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 5e4},
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "dynamic": DYNAMIC,
    "dynamic_by_one": scaled("dynamic", 1.0, 2048),
    "dynamic_not_whole": scaled("dynamic", 3.3, 1000, 128),
    "dynamic_oldest_keys": config(rope_scaling={"type": "dynamic", "factor": 2.0}, longest=1000),
    "dynamic_with_an_original_length": scaled("dynamic", 2.0, 4096, original_max_position_embeddings=1024),
    "yarn_as_qwen": QWEN_25,
    "yarn_as_qwen_oldest_keys": config(
        128, 1e6, 32768, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    ),
    "yarn_as_yarn_llama": scaled("yarn", 32.0, 131072, 128, original_max_position_embeddings=4096, finetuned=True),
    "yarn_without_original_length": scaled("yarn", 4.0, 2048),
    "yarn_original_length_beside": {**scaled("yarn", 4.0, 8192), "original_max_position_embeddings": 2048},
    "yarn_original_length_beside_and_inside": {
        **scaled("yarn", 4.0, 8192, original_max_position_embeddings=1024),
        "original_max_position_embeddings": 2048,
    },
    "yarn_factor_is_null": scaled("yarn", None, 8192, original_max_position_embeddings=1024),
    "yarn_betas": scaled("yarn", 8.0, 8192, 128, beta_fast=20, beta_slow=2.5, original_max_position_embeddings=1024),
    "yarn_betas_that_meet": scaled("yarn", 8.0, 512, 8, beta_fast=4.0, beta_slow=3.9),
    "yarn_attention_factor": scaled("yarn", 8.0, 8192, attention_factor=1.4, original_max_position_embeddings=1024),
    "yarn_mscale": scaled("yarn", 40.0, 163840, mscale=0.707, mscale_all_dim=1.0, original_max_position_embeddings=4096),
    "yarn_one_mscale": scaled("yarn", 40.0, 163840, mscale=0.707, original_max_position_embeddings=4096),
    "yarn_not_truncated": scaled("yarn", 32.0, 131072, 64, 150000.0, truncate=False, original_max_position_embeddings=4096),
    "yarn_below_one": scaled("yarn", 0.5, 4096),
    "llama_3_1": LLAMA_31,
    "llama_3_2": LLAMA_32,
    "llama3_new_keys": {
        **config(128, longest=131072),
        "rope_parameters": {**LLAMA_31["rope_scaling"], "rope_theta": 500000.0},
    },
    "llama3_other_bands": scaled(
        "llama3", 4.0, 4096, 128, low_freq_factor=1.5, high_freq_factor=9.0, original_max_position_embeddings=1024
    ),
}

# (model, job's rope, context_length)
EXTENDED = {
    "absent_is_linear": (config(), None, 16384),
    "absent_shorter": (config(), None, 1000),
    "linear": (config(), {"kind": "linear", "factor": 3.0}, 10000),
    "linear_original_length": (config(), {"kind": "linear", "original_length": 2048}, 10000),
    "ntk": (config(), {"kind": "ntk"}, 16384),
    "ntk_factor": (config(128, 1e6), {"kind": "ntk", "factor": 2.5}, 16384),
    "theta": (config(), {"kind": "theta", "theta": 2e6}, 16384),
    "dynamic": (config(), {"kind": "dynamic"}, 16384),
    "dynamic_factor": (config(), {"kind": "dynamic", "factor": 1.0}, 16384),
    "dynamic_original_length": (config(longest=8192), {"kind": "dynamic", "original_length": 2048}, 16384),
    "yarn": (config(128), {"kind": "yarn"}, 16384),
    "yarn_parameters": (
        config(), {"kind": "yarn", "factor": 6.5, "beta_fast": 24, "beta_slow": 1.5, "attention_factor": 1.3}, 16384
    ),
    "yarn_original_length": (config(longest=8192), {"kind": "yarn", "original_length": 2048}, 16384),
    "llama3": (config(128, 5e5, 8192), {"kind": "llama3"}, 32768),
    "llama3_parameters": (
        config(), {"kind": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0}, 65536
    ),
    "linear_on_linear": (LINEAR, {"kind": "linear", "factor": 1.5}, 8192),
    "linear_on_linear_by_length": (LINEAR, {"kind": "linear", "original_length": 1024}, 8192),
    "dynamic_on_dynamic": (DYNAMIC, {"kind": "dynamic"}, 16384),
    "yarn_on_yarn": (LONG_YARN, {"kind": "yarn"}, 262144),
    "yarn_on_yarn_as_qwen": (QWEN_25, {"kind": "yarn"}, 262144),
    "yarn_on_yarn_within_reach": (QWEN_25, {"kind": "yarn"}, 65536),
    "yarn_on_yarn_parameters": (LONG_YARN, {"kind": "yarn", "factor": 2.0, "beta_fast": 16, "attention_factor": 1.2}, 131072),
    "llama3_on_llama3": (LLAMA_31, {"kind": "llama3"}, 262144),
    "llama3_on_llama3_parameters": (LLAMA_32, {"kind": "llama3", "factor": 3.0, "high_freq_factor": 8.0}, 262144),
    "ntk_on_linear": (LINEAR, {"kind": "ntk", "factor": 4.0}, 16384),
    "ntk_on_llama3": (LLAMA_31, {"kind": "ntk"}, 262144),
    "ntk_on_dynamic": (DYNAMIC, {"kind": "ntk"}, 16384),
    "theta_on_llama3": (LLAMA_32, {"kind": "theta", "theta": 8e6}, 262144),
    "theta_on_yarn": (QWEN_25, {"kind": "theta", "theta": 4e6}, 262144),
    "absent_on_llama3_within_reach": (LLAMA_31, None, 131072),
    "absent_on_yarn_within_reach": (QWEN_25, None, 131072),
    "absent_on_dynamic_within_reach": (DYNAMIC, None, 4096),
}  # fmt: skip


def job_of(context_length, rope):
    job = {"model": {"path": "m"}, "context_length": context_length}
    return job if rope is None else {**job, "rope": rope}


def tables_program():
    path = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-rope-tables"
    if not path.is_file():
        raise RuntimeError(f"{path} does not exist: build it first (tests/run.sh does)")
    return path


def ask_for_tables(requests, folder):
    """(tensors, answers) of the trainer's own positions."""
    (folder / "requests.json").write_text(json.dumps(requests))
    done = subprocess.run(
        [str(tables_program()), str(folder / "requests.json"), str(folder / "out.safetensors")],
        env=trainer.environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, trainer.report(done)
    return read_tensors(folder / "out.safetensors"), json.loads(done.stdout)


CASES = {f"shipped_{name}": (model, None, None) for name, model in SHIPPED.items()} | EXTENDED


@pytest.fixture(scope="module")
def answers(tmp_path_factory, trainer_binary):
    """By case: ({"i.cosine", "i.sine" for the i-th length, "inverse"}, exported config), from one run of the program."""
    requests = [
        {
            "config": model, "job": None if context is None else job_of(context, rope),
            "lengths": LENGTHS, "positions": POSITIONS,
        }
        for model, rope, context in CASES.values()
    ]  # fmt: skip
    tensors, exported = ask_for_tables(requests, tmp_path_factory.mktemp("tables"))
    of_case = {}
    for index, name in enumerate(CASES):
        assert "error" not in exported[index], f"{name}: {exported[index]}"
        own = {key.split(".", 1)[1]: tensor for key, tensor in tensors.items() if key.split(".")[0] == str(index)}
        of_case[name] = (own, exported[index])
    return of_case


def expected_config(name):
    model, rope, context = CASES[name]
    plain = LlamaConfig.from_dict(copy.deepcopy(model))
    return plain if context is None else positions.extend(plain, context, rope)


def largest_difference(cosine, sine, expected):
    return max((cosine - expected[0]).abs().max().item(), (sine - expected[1]).abs().max().item())


@pytest.mark.parametrize("name", CASES)
def test_angles_are_transformers_own(name, answers):
    own, _ = answers[name]
    expected = expected_config(name)
    frequencies = LlamaRotaryEmbedding(expected).inv_freq
    if expected.rope_parameters["rope_type"] != "dynamic":
        assert torch.equal(own["inverse"], frequencies), (own["inverse"] / frequencies - 1).abs().max()
    for index, tokens in enumerate(LENGTHS):
        # A new module each time: transformers remembers the longest batch for dynamic.
        table = positions.tables(LlamaRotaryEmbedding(expected), POSITIONS, tokens)
        assert largest_difference(own[f"{index}.cosine"], own[f"{index}.sine"], table) <= TOLERANCE, tokens


@pytest.mark.parametrize("name", CASES)
def test_exported_config_gives_the_same_angles(name, answers):
    _, exported = answers[name]
    assert "rope_parameters" not in exported and "rope_theta" in exported
    read = LlamaConfig.from_dict(copy.deepcopy(exported))
    for tokens in LENGTHS:
        before = positions.tables(LlamaRotaryEmbedding(expected_config(name)), POSITIONS, tokens)
        after = positions.tables(LlamaRotaryEmbedding(read), POSITIONS, tokens)
        assert largest_difference(*after, before) <= TOLERANCE, tokens


def test_extended_cases_change_the_angles(answers):
    """Guards the list itself: a case that was meant to extend may not compare the model with itself."""
    for name, (model, rope, context) in EXTENDED.items():
        if "within_reach" in name or "shorter" in name:
            continue
        plain = LlamaRotaryEmbedding(LlamaConfig.from_dict(copy.deepcopy(model)))
        table = positions.tables(plain, POSITIONS, 40000)
        own, _ = answers[name]
        longest = LENGTHS.index(40000)
        assert largest_difference(own[f"{longest}.cosine"], own[f"{longest}.sine"], table) > 1e-3, name


def test_pairs_that_do_not_go_together_and_wrong_configs_are_refused(tmp_path, trainer_binary):
    requests = [
        (LLAMA_31, {"kind": "yarn"}, ["rope.kind", "llama3", "yarn"]),
        (QWEN_25, {"kind": "linear", "factor": 2.0}, ["rope.kind", "yarn", "linear"]),
        (LINEAR, {"kind": "dynamic"}, ["rope.kind", "linear", "dynamic"]),
        (LINEAR, None, ["rope.original_length", "linear"]),
        (scaled("longrope", 4.0, long_factor=[1.0], short_factor=[1.0]), None, ["config.json", "rope_type", "longrope"]),
        (scaled("yarn", "4"), None, ["config.json", "rope_scaling.factor"]),
    ]
    asked = [
        {"config": model, "job": job_of(1 << 20, rope), "lengths": [8], "positions": [0]} for model, rope, _ in requests
    ]
    _, answered = ask_for_tables(asked, tmp_path)
    for (_, _, words), answer in zip(requests, answered, strict=True):
        assert all(word in answer.get("error", "") for word in words), (words, answer)


# ---- logits and gradients ----


def with_config(folder, out, changes):
    """A copy of a model folder whose positions are those of `changes`."""
    shutil.copytree(folder, out)
    document = json.loads((out / "config.json").read_text())
    document.pop("rope_parameters", None)
    (out / "config.json").write_text(json.dumps({**document, "rope_theta": 10000.0, **changes}, indent=2))
    return out


def scaling(kind, factor, longest=64, **more):
    return {"rope_scaling": {"rope_type": kind, "factor": factor, **more}, "max_position_embeddings": longest}


SMALL_LLAMA3 = scaling(
    "llama3", 8.0, 128, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
SMALL_YARN = scaling("yarn", 4.0, 32, original_max_position_embeddings=32, attention_factor=1.5)

# name: (the model's positions, the job's rope, context_length, tokens)
PROBED = {
    "ntk": ({}, {"kind": "ntk"}, 160, 90),
    "theta": ({}, {"kind": "theta", "theta": 3e5}, 160, 90),
    "dynamic": ({}, {"kind": "dynamic"}, 160, 90),
    "dynamic_whole_context": ({}, {"kind": "dynamic", "factor": 2.7}, 160, 160),
    "dynamic_within_original_length": ({}, {"kind": "dynamic"}, 160, 50),
    "yarn": ({}, {"kind": "yarn"}, 160, 90),
    "yarn_parameters": ({}, {"kind": "yarn", "factor": 5.0, "beta_fast": 9, "beta_slow": 2, "attention_factor": 1.7}, 160, 90),
    "llama3": ({}, {"kind": "llama3"}, 160, 90),
    "llama3_parameters": ({}, {"kind": "llama3", "low_freq_factor": 1.5, "high_freq_factor": 6.0}, 160, 90),
    "ships_dynamic": (scaling("dynamic", 2.0), None, 128, 100),
    "ships_yarn": (SMALL_YARN, None, 128, 100),
    "ships_yarn_mscale": (
        scaling("yarn", 4.0, 128, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.1), None, 128, 100
    ),
    "ships_llama3": (SMALL_LLAMA3, None, 128, 100),
    "yarn_on_yarn": (SMALL_YARN, {"kind": "yarn"}, 200, 100),
    "llama3_on_llama3": (SMALL_LLAMA3, {"kind": "llama3"}, 200, 150),
    "dynamic_on_dynamic": (scaling("dynamic", 2.0), {"kind": "dynamic"}, 200, 100),
    "ntk_on_linear": (scaling("linear", 2.0), {"kind": "ntk", "factor": 3.0}, 200, 100),
    "theta_on_llama3": (SMALL_LLAMA3, {"kind": "theta", "theta": 2e5}, 200, 100),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBED)
def test_probe_agrees(name, shelf, tmp_path, trainer_binary):
    changes, rope, context, tokens = PROBED[name]
    folder = with_config(shelf.folder(TinyModel()), tmp_path / "model", changes)
    spec = {
        "name": "parity", "model": {"path": str(folder)}, "context_length": context, "attention": {"kind": "s2"},
        "method": {"kind": "full"}, "training": {"dtype": "fp32"},
    }  # fmt: skip
    if rope is not None:
        spec["rope"] = rope
    ids = torch.randint(0, TinyModel().vocab, (2, tokens), generator=torch.Generator().manual_seed(3))
    actual = trainer.probe(spec, ids, None, tmp_path)
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, compare.named(oracle.reference(folder, spec, ids)))


# ---- what a job leaves ----

ONE_DOCUMENT = {"documents": 1, "words_each": 3000}  # then the held-out part is the tail

# name: (the model's positions, the job's rope)
JOBS = {
    "ntk": ({}, {"kind": "ntk"}),
    "theta": ({}, {"kind": "theta", "theta": 1e6}),
    "dynamic": ({}, {"kind": "dynamic"}),
    "yarn": ({}, {"kind": "yarn", "beta_fast": 16}),
    "llama3": ({}, {"kind": "llama3"}),
    "yarn_on_yarn": (SMALL_YARN, {"kind": "yarn", "factor": 2.0}),
    "llama3_on_llama3": (SMALL_LLAMA3 | {"max_position_embeddings": 64}, {"kind": "llama3"}),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trainer_binary):
    """Folders (model, work) and spec of jobs that ran to their end, by name; each is run once."""
    done = {}

    def get(name):
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            changes, rope = JOBS[name]
            job = tiny_jobs.write_job(root, TinyModel(), **ONE_DOCUMENT, rope=rope, training={"steps": 2})
            model = with_config(job.model, root / "scaled", changes)
            spec = trainer.merged_spec(job.spec, {"model": {"path": str(model)}})
            run = trainer.command("run", trainer.write_spec(spec, root / "spec.json"), "--work", root / "work")
            assert run.returncode == 0, trainer.report(run)
            done[name] = (model, root / "work", spec)
        return done[name]

    return get


@pytest.mark.parametrize("name", JOBS)
def test_merged_adapter_and_trainer_give_equal_logits(name, finished, tmp_path, monkeypatch):
    model, work, spec = finished(name)
    ids = torch.randint(0, tiny_jobs.VOCAB, (2, 101), generator=torch.Generator().manual_seed(8))
    merged = logits_of(AutoModelForCausalLM.from_pretrained(work / "merged"), ids)
    adapted = logits_of(load_as_documented(work / "adapter", monkeypatch), ids)
    spec = trainer.merged_spec(spec, {"attention": {"kind": "full"}, "method": {"adapter": str(work / "adapter")}})
    probed = trainer.probe(spec, ids, None, tmp_path)["logits"]
    assert compare.relative_error(probed, adapted) < 1e-4
    assert compare.relative_error(merged, adapted) < 1e-4
    unscaled = AutoModelForCausalLM.from_pretrained(work / "merged", config=AutoConfig.from_pretrained(model))
    assert compare.relative_error(logits_of(unscaled, ids), merged) > 1e-3, "the positions are the base's"


@pytest.mark.parametrize("name", JOBS)
def test_the_rescaled_row_is_the_base_with_the_jobs_positions(name, finished):
    model, work, spec = finished(name)
    rows, stream = evaluation_rows(work), held_out_stream(work)
    assert set(rows) == {(row, length) for row in ("base", "rescaled", "extended") for length in (64, 128)}
    for length in (64, 128):
        windows = stream[: len(stream) // length * length].reshape(-1, length)
        for row, config in (
            ("base", AutoConfig.from_pretrained(model)),
            ("rescaled", oracle.extended_config(model, spec["context_length"], spec["rope"])),
        ):
            logits = logits_of(AutoModelForCausalLM.from_pretrained(model, config=config), windows)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten())
            assert rows[row, length]["loss"] == pytest.approx(loss.item(), rel=1e-5), (row, length)


def test_run_card_says_which_positions(finished):
    _, work, _ = finished("yarn")
    card = json.loads((work / "run_card.json").read_text())
    assert card["original_rope"] == {"kind": "default", "theta": 10000.0}
    assert (card["rope"]["kind"], card["rope"]["factor"], card["rope"]["original_length"]) == ("yarn", 2.0, 64)
    assert '"kind":"yarn"' in (work / "run_card.md").read_text()


@pytest.mark.parametrize("name", ["dynamic", "yarn", "llama3"])
def test_a_merged_model_is_not_extended_twice(name, finished, tmp_path):
    """The trainer reads its own export: the same context needs nothing more, twice the context twice the factor."""
    _, work, spec = finished(name)
    kind = {"rope": {"kind": name}, "attention": {"kind": "full"}, "model": {"path": str(work / "merged")}}
    kind["method"] = {"kind": "full", "rank": ..., "alpha": ...}
    ids = torch.randint(0, tiny_jobs.VOCAB, (1, 99), generator=torch.Generator().manual_seed(8))
    for context, factor in ((128, 1.0), (256, 2.0)):
        again = trainer.merged_spec(spec, {**kind, "context_length": context})
        config = oracle.extended_config(work / "merged", context, {"kind": name, "factor": factor})
        expected = logits_of(AutoModelForCausalLM.from_pretrained(work / "merged", config=config), ids)
        assert compare.relative_error(trainer.probe(again, ids, None, tmp_path)["logits"], expected) < 1e-4
