"""What a method trains: LoRA's ranks, alphas and scaling by module, and the switches for norms, embeddings and lm_head."""

import dataclasses
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from reference import compare, exported_job, oracle, tiny_jobs, trainer
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel

UNTIED, TIED = TinyModel(), TinyModel(tied=True)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL = ATTENTION + MLP
NORMS = list(oracle.NORMS)


def ids_of(tiny, batch=2, tokens=29):
    return torch.randint(0, tiny.vocab, (batch, tokens), generator=torch.Generator().manual_seed(17))


def job(folder, kind, **method):
    return {
        "name": "methods",
        "model": {"path": str(folder)},
        "context_length": 32,
        "attention": {"kind": "s2", "group_size": 8},
        "method": {"kind": kind, **method},
        "training": {"dtype": "fp32"},
    }


def write_adapter(folder, out, spec, modules_to_save=None, **config):
    """A PEFT folder made by PEFT itself, with every value that trains moved away from its start."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": list(ATTENTION), **config}
    base = oracle.load_base(folder, spec)
    model = get_peft_model(base, LoraConfig(modules_to_save=modules_to_save, task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(23)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or "lm_head.modules_to_save" in name and base.config.tie_word_embeddings:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_" in name:
                parameter.copy_(0.3 * noise / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(0.1 * noise)
        if base.config.tie_word_embeddings and modules_to_save and "embed_tokens" in modules_to_save:
            base.lm_head.modules_to_save["default"].weight.copy_(base.model.embed_tokens.modules_to_save["default"].weight)
    model.save_pretrained(out)
    return str(out)


def refused(spec, tmp_path, tiny=UNTIED):
    """The words with which a job is refused."""
    save_file({"input_ids": ids_of(tiny)}, tmp_path / "in.safetensors")
    written = trainer.write_spec(spec, tmp_path / "spec.json")
    done = trainer.command("probe", written, "--tokens", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
    assert done.returncode in (2, 10), trainer.report(done)
    return done.stderr


# ---- ranks and scaling by module ----

ADAPTERS = {
    "every_linear": {"target_modules": list(ALL)},
    "rslora": {"use_rslora": True, "target_modules": list(ALL)},
    "rank_by_module": {"target_modules": list(ALL), "rank_pattern": {"q_proj": 1, "v_proj": 7, "up_proj": 3, "down_proj": 9}},
    "alpha_by_module": {"alpha_pattern": {"q_proj": 2.5, "o_proj": 32}},
    "rank_and_alpha_by_layer": {
        "target_modules": ["q_proj", "k_proj", "gate_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "1.mlp.gate_proj": 6},
        "alpha_pattern": {"model.layers.1.self_attn.k_proj": 3, "mlp.gate_proj": 1},
    },
    "rslora_with_patterns": {"use_rslora": True, "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"k_proj": 5, "v_proj": 1}},
    # Both keys match layer 0; PEFT takes the first of the file, which it writes with its keys sorted.
    "first_key_counts": {"rank_pattern": {"layers.0.self_attn.q_proj": 5, "self_attn.q_proj": 2}},
    "key_that_matches_nothing": {"rank_pattern": {"q": 2, "proj": 3}},
}


@pytest.mark.parametrize("tiny", [UNTIED, TinyModel(hidden=72, heads=9, kv_heads=3)], ids=["gqa", "odd_kv"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_of_an_adapter_that_peft_made(name, tiny, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(tiny)
    spec = job(folder, "lora")
    spec["method"]["adapter"] = write_adapter(folder, tmp_path / "adapter", spec, **ADAPTERS[name])
    actual = trainer.probe(spec, ids_of(tiny), None, tmp_path)
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, compare.named(oracle.reference(folder, spec, ids_of(tiny))))


JOB_PATTERNS = {
    "by_module": {"rank_pattern": {"q_proj": 1, "up_proj": 3}, "targets": list(ALL)},
    "by_layer": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    # A job's keys have no order: the longer one means the module more closely.
    "longer_key_counts": {"rank_pattern": {"self_attn.q_proj": 2, "q_proj": 3, "layers.0.self_attn.q_proj": 5}},
    "rslora": {"rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"k_proj": 5}},
}


def ranks_of(tensors):
    return {name: tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}


@pytest.mark.parametrize("name", JOB_PATTERNS)
def test_ranks_of_a_fresh_adapter(name, shelf, tmp_path, trainer_binary):
    method = JOB_PATTERNS[name]
    spec = job(shelf.folder(UNTIED), "lora", rank=4, alpha=8, **method)
    actual = ranks_of(trainer.probe(spec, ids_of(UNTIED), None, tmp_path))
    longest_first = dict(sorted(method.get("rank_pattern", {}).items(), key=lambda item: -len(item[0])))
    config = LoraConfig(r=4, rank_pattern=longest_first, target_modules=method.get("targets", list(ATTENTION)))
    model = get_peft_model(oracle.load_base(shelf.folder(UNTIED), spec), config)
    expected = {oracle.saved_name(key): value for key, value in model.named_parameters() if ".lora_A." in key}
    assert actual == {f"grad.{key}": value.shape[0] for key, value in expected.items()}


@pytest.mark.parametrize("change", [
    {"rslora": False}, {"rank_pattern": {"q_proj": 3}}, {"alpha_pattern": {"q_proj": 3}}, {"rank": 5}, {"alpha": 9},
], ids=str)  # fmt: skip
def test_keys_that_disagree_with_the_adapter_are_refused(change, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(UNTIED)
    spec = job(folder, "lora", **change)
    spec["method"]["adapter"] = write_adapter(
        folder, tmp_path / "adapter", spec, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 1}
    )
    words = refused(spec, tmp_path)
    assert f"method.{next(iter(change))}" in words and "leave it out" in words


def test_keys_that_agree_with_the_adapter_in_another_form_are_fine(shelf, tmp_path, trainer_binary):
    folder = shelf.folder(UNTIED)
    spec = job(folder, "lora", rslora=True, rank_pattern={"layers.0.self_attn.q_proj": 2, "layers.1.self_attn.q_proj": 2})
    spec["method"]["adapter"] = write_adapter(
        folder, tmp_path / "adapter", spec, use_rslora=True, rank_pattern={"q_proj": 2}
    )
    trainer.probe(spec, ids_of(UNTIED), None, tmp_path)


def test_a_pattern_key_that_matches_nothing_is_refused(shelf, tmp_path, trainer_binary):
    words = refused(job(shelf.folder(UNTIED), "lora", rank_pattern={"up_proj": 3}), tmp_path)
    assert "method.rank_pattern" in words and "up_proj" in words


@pytest.mark.parametrize("key, value", [
    ("rank_pattern", {"q.*": 3}), ("rank_pattern", {"q_proj": 0}), ("rank_pattern", {"q_proj": 2.5}), ("rank_pattern", [3]),
    ("alpha_pattern", {"q_proj": "much"}), ("use_rslora", "yes"),
], ids=str)  # fmt: skip
def test_adapter_configs_that_cannot_be_are_refused(key, value, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(UNTIED)
    spec = job(folder, "lora")
    spec["method"]["adapter"] = write_adapter(folder, tmp_path / "adapter", spec)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    assert key in refused(spec, tmp_path)


# ---- switches ----


@dataclasses.dataclass(frozen=True)
class Switches:
    tiny: TinyModel
    kind: str
    method: tuple  # keys of `method`
    trains: tuple  # of "norms", "embeddings", "head"; with tied embeddings "embeddings" is both


SWITCHES = {
    "lora_norms": Switches(UNTIED, "lora", (("train_norms", True),), ("norms",)),
    "lora_embeddings": Switches(UNTIED, "lora", (("train_embeddings", True),), ("embeddings",)),
    "lora_head": Switches(UNTIED, "lora", (("train_head", True),), ("head",)),
    "lora_all_three": Switches(
        UNTIED, "lora", (("train_norms", True), ("train_embeddings", True), ("train_head", True)), ("norms", "embeddings", "head")
    ),
    "lora_none": Switches(UNTIED, "lora", (("train_norms", False), ("train_embeddings", False), ("train_head", False)), ()),
    "longlora_without_norms": Switches(UNTIED, "longlora", (("train_norms", False),), ("embeddings",)),
    "longlora_without_embeddings": Switches(UNTIED, "longlora", (("train_embeddings", False),), ("norms",)),
    "longlora_with_head": Switches(UNTIED, "longlora", (("train_head", True),), ("norms", "embeddings", "head")),
    "lora_tied_norms": Switches(TIED, "lora", (("train_norms", True),), ("norms",)),
    "lora_tied_embeddings": Switches(TIED, "lora", (("train_embeddings", True),), ("embeddings",)),
    "lora_tied_both": Switches(TIED, "lora", (("train_embeddings", True), ("train_head", True)), ("embeddings",)),
    "longlora_tied_head": Switches(TIED, "longlora", (("train_head", True),), ("norms", "embeddings")),
    "longlora_tied_without_embeddings": Switches(TIED, "longlora", (("train_embeddings", False),), ("norms",)),
}


def saved_modules(case):
    modules = (NORMS if "norms" in case.trains else []) + (["embed_tokens"] if "embeddings" in case.trains else [])
    return modules + (["lm_head"] if "head" in case.trains or "embeddings" in case.trains and case.tiny.tied else [])


@pytest.mark.parametrize("name", SWITCHES)
def test_gradients_under_switches(name, shelf, tmp_path, trainer_binary):
    case = SWITCHES[name]
    folder = shelf.folder(case.tiny)
    spec = job(folder, case.kind, **dict(case.method))
    spec["method"]["adapter"] = write_adapter(folder, tmp_path / "adapter", spec, saved_modules(case) or None)
    actual = trainer.probe(spec, ids_of(case.tiny), None, tmp_path)
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, compare.named(oracle.reference(folder, spec, ids_of(case.tiny))))


FROZEN_OF_FULL = {
    "norms": (UNTIED, {"train_norms": False}, ("norm.weight", "layernorm.weight")),
    "embeddings": (UNTIED, {"train_embeddings": False}, ("embed_tokens.weight",)),
    "head": (UNTIED, {"train_head": False}, ("lm_head.weight",)),
    "tied_embeddings": (TIED, {"train_embeddings": False}, ("embed_tokens.weight",)),
    "tied_all": (
        TIED, {"train_embeddings": False, "train_head": False, "train_norms": False}, ("norm.weight", "embed_tokens.weight")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN_OF_FULL)
def test_full_training_with_frozen_parts(name, shelf, tmp_path, trainer_binary):
    tiny, method, frozen = FROZEN_OF_FULL[name]
    folder = shelf.folder(tiny)
    spec = job(folder, "full", **method)
    model = oracle.load_base(folder, spec)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.endswith(frozen))
    expected = compare.named(oracle.run(model, spec, ids_of(tiny)))
    actual = trainer.probe(spec, ids_of(tiny), None, tmp_path)
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, expected)


@pytest.mark.parametrize("kind, method", [
    ("lora", {"train_head": True}), ("longlora", {"train_head": False}), ("full", {"train_head": False}),
    ("lora", {"train_embeddings": True, "train_head": False}), ("longlora", {"train_embeddings": False, "train_head": True}),
], ids=str)  # fmt: skip
def test_half_of_a_tied_tensor_cannot_train(kind, method, shelf, tmp_path, trainer_binary):
    words = refused(job(shelf.folder(TIED), kind, **method), tmp_path, TIED)
    assert "method.train_head" in words and "same tensor" in words


# ---- whole jobs ----

JOBS = {
    "rslora_and_patterns": (UNTIED, {"method": {
        "kind": "lora", "rslora": True, "targets": list(ALL), "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"down_proj": 3, "layers.0.mlp.down_proj": 20},
    }}),
    "norms_and_head": (UNTIED, {"method": {"kind": "lora", "train_norms": True, "train_head": True}}),
    "embeddings_only": (UNTIED, {"method": {"kind": "lora", "train_embeddings": True}}),
    "longlora_without_norms_tied": (TIED, {"method": {"train_norms": False}}),
    "full_without_norms_and_head": (UNTIED, {"method": {
        "kind": "full", "rank": ..., "alpha": ..., "train_norms": False, "train_head": False,
    }}),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trainer_binary):
    done = {}

    def get(name):
        if name not in done:
            tiny, changes = JOBS[name]
            done[name] = exported_job.ExportedJob(tmp_path_factory.mktemp(name), tiny, **changes)
        return done[name]

    return get


def should_change(job, name):
    method = job.job.spec["method"]
    default = method["kind"] != "lora"
    if "norm" in name:
        return method.get("train_norms", default)
    if "embed_tokens" in name:
        return method.get("train_embeddings", default)
    if "lm_head" in name:
        return method.get("train_head", method["kind"] == "full")
    return method["kind"] == "full" or name.split(".")[-2] in method.get("targets", ATTENTION)


@pytest.mark.parametrize("name", JOBS)
def test_exactly_what_trains_changes(name, exported):
    job = exported(name)
    base, merged = job.base_tensors(), job.merged_tensors()
    assert set(base) == set(merged)
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    assert changed == {key for key in base if should_change(job, key)}


@pytest.mark.parametrize("name", [name for name in JOBS if not name.startswith("full")])
def test_the_adapter_loads_in_peft_with_equal_logits(name, exported, tmp_path, monkeypatch):
    job = exported(name)
    ids = torch.randint(0, tiny_jobs.VOCAB, (2, 61), generator=torch.Generator().manual_seed(8))
    adapted = exported_job.load_as_documented(job.work / "adapter", monkeypatch)
    with_peft = exported_job.logits_of(adapted, ids)
    merged = exported_job.logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    assert compare.relative_error(merged, with_peft) < 1e-4
    # The trainer itself, started from its own adapter.
    spec = trainer.merged_spec(job.job.spec, {"attention": {"kind": "full"}})
    spec["method"] = {"kind": "lora", "adapter": str(job.work / "adapter")}
    assert compare.relative_error(trainer.probe(spec, ids, None, tmp_path)["logits"], with_peft) < 1e-4


@pytest.mark.parametrize("name", [name for name in JOBS if not name.startswith("full")])
def test_modules_to_save_are_what_trains(name, exported):
    job = exported(name)
    method = job.job.spec["method"]
    config = json.loads((job.work / "adapter" / "adapter_config.json").read_text())
    default = method["kind"] == "longlora"
    expected = set(NORMS) if method.get("train_norms", default) else set()
    if method.get("train_embeddings", default):
        expected |= {"embed_tokens"} | ({"lm_head"} if job.tiny.tied else set())
    expected |= {"lm_head"} if method.get("train_head") else set()
    assert set(config["modules_to_save"] or []) == expected
    card = json.loads((job.work / "run_card.json").read_text())
    assert set(card["method"]["modules_to_save"] or []) == expected


def test_peft_builds_the_ranks_and_scales_of_the_job(exported, monkeypatch):
    job = exported("rslora_and_patterns")
    model = exported_job.load_as_documented(job.work / "adapter", monkeypatch)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert len(layers) == 14
    for name, layer in layers.items():
        rank = 2 if name.endswith("q_proj") else 5 if name.endswith("1.mlp.up_proj") else 4
        alpha = 20 if name.endswith("0.mlp.down_proj") else 3 if name.endswith("down_proj") else 8
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == pytest.approx(alpha / rank**0.5, rel=1e-12)


def test_what_an_adapter_replaced_stays_in_the_next_one(exported, tmp_path, monkeypatch):
    """A lora job over an adapter with trained norms and head: its own adapter must carry them, or PEFT would lose them."""
    first = exported("norms_and_head")
    job = exported_job.ExportedJob(
        tmp_path / "second", UNTIED, method={"kind": "lora", "rank": ..., "alpha": ..., "adapter": str(first.work / "adapter")}
    )
    stored = read_tensors(job.work / "adapter" / "adapter_model.safetensors")
    before = read_tensors(first.work / "adapter" / "adapter_model.safetensors")
    kept = [name for name in before if ".lora_" not in name]
    assert kept and all(torch.equal(stored[name], before[name]) for name in kept)
    ids = torch.randint(0, tiny_jobs.VOCAB, (1, 40), generator=torch.Generator().manual_seed(9))
    adapted = exported_job.logits_of(exported_job.load_as_documented(job.work / "adapter", monkeypatch), ids)
    merged = exported_job.logits_of(AutoModelForCausalLM.from_pretrained(job.work / "merged"), ids)
    assert compare.relative_error(merged, adapted) < 1e-4
