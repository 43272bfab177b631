"""What only GPT-NeoX has: RoPE on a part of each head under every kind of scaling, a head that goes by two names."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

from reference import compare, exported_job, oracle, positions, tiny_jobs, trainer
from reference.prober import ProbeError
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel
from test_rope import LENGTHS, POSITIONS, TOLERANCE, ask_for_tables, job_of, largest_difference

TINY = TinyModel(family="gpt_neox", extra=(("rotary_pct", 0.5),))  # 6 of the 12 values of a head turn

# Configs as they come (transformers before 5), of heads of 64 values. None: rotary_pct is not said, which means 0.25.
PARTS = {"quarter": None, "not_whole": 0.41, "whole": 1.0}
KINDS = {
    "linear": {"kind": "linear", "factor": 3.0},
    "ntk": {"kind": "ntk"},
    "theta": {"kind": "theta", "theta": 3e5},
    "dynamic": {"kind": "dynamic"},
    "yarn": {"kind": "yarn", "beta_fast": 9, "beta_slow": 2, "attention_factor": 1.7},
    "llama3": {"kind": "llama3"},
}
SHIPPED = {
    "linear": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
}


def shipped_config(part, scaling=None):
    config = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 128, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 2048,
        "rotary_emb_base": 10000.0, "rope_scaling": scaling,
    }  # fmt: skip
    return config if part is None else {**config, "rotary_pct": part}


# (config, job's rope)
ANGLES = {f"{kind}_{part}": (shipped_config(PARTS[part]), KINDS[kind]) for kind in KINDS for part in PARTS}
ANGLES |= {f"shipped_{kind}": (shipped_config(0.5, SHIPPED[kind]), None) for kind in SHIPPED}


@pytest.fixture(scope="module")
def angles(tmp_path_factory):
    """({length index: (cosine, sine)}, exported config) by case, from one run of the program."""
    requests = [
        {"config": model, "job": None if rope is None else job_of(16384, rope), "lengths": LENGTHS, "positions": POSITIONS}
        for model, rope in ANGLES.values()
    ]
    tensors, exported = ask_for_tables(requests, tmp_path_factory.mktemp("tables"))
    assert not [answer["error"] for answer in exported if "error" in answer]
    return {
        name: ([(tensors[f"{case}.{i}.cosine"], tensors[f"{case}.{i}.sine"]) for i in range(len(LENGTHS))], exported[case])
        for case, name in enumerate(ANGLES)
    }


@pytest.mark.parametrize("name", ANGLES)
def test_angles_and_those_of_the_exported_config_are_transformers_own(name, angles):
    own, exported = angles[name]
    model, rope = ANGLES[name]
    config = GPTNeoXConfig(**copy.deepcopy(model))
    config = config if rope is None else positions.extend(config, 16384, rope)
    read = GPTNeoXConfig(**copy.deepcopy(exported))
    for (cosine, sine), tokens in zip(own, LENGTHS, strict=True):
        for theirs in (config, read):  # a new module each time: transformers remembers the longest batch for dynamic
            table = positions.tables(GPTNeoXRotaryEmbedding(theirs), POSITIONS, tokens)
            assert cosine.shape == table[0].shape
            assert largest_difference(cosine, sine, table) <= TOLERANCE, tokens


@pytest.mark.parametrize("method", ["full", "qlora"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_under_every_kind_of_positions(kind, method, shelf, probes):
    """For a 4-bit base the logits only need to move with the positions; its gradients are test_family_matrix.py's."""
    folder = shelf.folder(TINY)
    spec = {**job_of(160, KINDS[kind]), "name": "partial", "model": {"path": str(folder)}, "method": {"kind": method}}
    spec["training"] = {"dtype": "fp32"}
    ids = torch.randint(0, TINY.vocab, (2, 90), generator=torch.Generator().manual_seed(3))
    actual = probes.probe(spec, ids)
    if method == "full":
        compare.assert_close(actual, compare.named(oracle.reference(folder, spec, ids)))
    unscaled = probes.probe({**spec, "rope": {"kind": "linear", "factor": 1.0}}, ids)
    assert compare.relative_error(actual["logits"], unscaled["logits"]) > 1e-2


# ---- the head: embed_out in every file, lm_head in transformers 5's modules and in files made by hand from them ----


def with_head_named(folder, out, name):
    shutil.copytree(folder, out)
    tensors = read_tensors(out / "model.safetensors")
    tensors[name] = tensors.pop("embed_out.weight")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def short_job(folder, kind, **method):
    return {
        "name": "head", "model": {"path": str(folder)}, "context_length": 32, "method": {"kind": kind, **method},
        "training": {"dtype": "fp32"},
    }  # fmt: skip


def some_ids():
    return torch.randint(0, TINY.vocab, (2, 27), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", ["full", "qlonglora"])
def test_a_head_by_its_other_name_is_the_same_head(method, shelf, probes, tmp_path):
    plain = probes.probe(short_job(shelf.folder(TINY), method), some_ids())
    renamed = with_head_named(shelf.folder(TINY), tmp_path / "model", "lm_head.weight")
    other = probes.probe(short_job(renamed, method), some_ids())
    assert set(other) == set(plain) and all(torch.equal(other[name], plain[name]) for name in plain)
    assert ("grad.embed_out.weight" in plain) == (method == "full")


def test_a_missing_head_is_named(shelf, probes, tmp_path):
    folder = with_head_named(shelf.folder(TINY), tmp_path / "model", "head.weight")
    with pytest.raises(ProbeError, match="embed_out.weight"):
        probes.probe(short_job(folder, "lora"), some_ids())


def test_a_job_over_the_other_name_leaves_a_model_that_loads(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(
        tmp_path, TINY, method={"kind": "full", "rank": ..., "alpha": ...}, training={"steps": 1}, evaluation={"lengths": [64]}
    )
    folder = with_head_named(job.model, tmp_path / "renamed", "lm_head.weight")
    spec = trainer.merged_spec(job.spec, {"model": {"path": str(folder)}, "attention": {"kind": "full"}})
    done = trainer.command("run", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert done.returncode == 0, trainer.report(done)
    merged, missing = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "merged", output_loading_info=True)
    assert not missing["missing_keys"] and not missing["unexpected_keys"]
    before = read_tensors(folder / "model.safetensors")["lm_head.weight"]
    assert not torch.equal(merged.get_output_embeddings().weight, before), "the head did not train"
    ids = torch.randint(0, tiny_jobs.VOCAB, (1, 50), generator=torch.Generator().manual_seed(8))
    probed = trainer.probe({**spec, "model": {"path": str(tmp_path / "work" / "merged")}}, ids, None, tmp_path)
    assert compare.relative_error(probed["logits"], exported_job.logits_of(merged, ids)) < 1e-4


def test_full_training_can_leave_the_head_out(shelf, probes):
    every = probes.probe(short_job(shelf.folder(TINY), "full"), some_ids())
    frozen = probes.probe(short_job(shelf.folder(TINY), "full", train_head=False), some_ids())
    assert set(every) - set(frozen) == {"grad.embed_out.weight"}
    assert all(torch.equal(frozen[name], every[name]) for name in frozen)


@pytest.mark.parametrize("method", ["lora", "longlora", "qlora", "qlonglora"])
def test_the_head_does_not_train_beside_lora(method, shelf, probes):
    folder = shelf.folder(TINY)
    with pytest.raises(ProbeError, match="method.train_head: the head of GPTNeoXForCausalLM does not train beside LoRA"):
        probes.probe(short_job(folder, method, train_head=True), some_ids())
    assert probes.probe(short_job(folder, method, train_head=False), some_ids())


@pytest.mark.parametrize("name", ["embed_out", "lm_head"])
@pytest.mark.parametrize("method", ["lora", "qlonglora"])
def test_an_adapter_that_replaces_the_head_is_refused(method, name, shelf, probes, tmp_path):
    """PEFT would look for it under one of its names only: what such a job left could lose the head without a word."""
    folder = shelf.folder(TINY)
    adapter = oracle.write_adapter(folder, tmp_path / "adapter", short_job(folder, "lora"))
    tensors = read_tensors(adapter / "adapter_model.safetensors")
    tensors[f"base_model.model.{name}.weight"] = read_tensors(folder / "model.safetensors")["embed_out.weight"].clone()
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": [name]}))
    with pytest.raises(ProbeError, match=f"{name}.* head of GPTNeoXForCausalLM"):
        probes.probe(short_job(folder, method, adapter=str(adapter)), some_ids())
