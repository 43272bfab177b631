"""`longspan-trainer probe` against transformers and PEFT: loss, logits and every gradient, by name."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from reference import attention, compare, oracle, trainer
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel

CONTEXT = 32  # tokens; most cases


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: TinyModel = TinyModel()
    kind: str = "longlora"
    attention: tuple = (("kind", "s2"),)
    tokens: int = 29
    batch: int = 1
    context: int = CONTEXT
    rope: tuple | None = None
    adapter: tuple | None = ()  # of the PEFT folder to start from; None: fresh A and B
    method: tuple = ()  # further keys of `method`
    labels: str = "absent"  # "absent" | "some" | "none" | "first_column"
    seed: int = 0


MHA = TinyModel(heads=4, kv_heads=4)
ODD_KV = TinyModel(hidden=72, heads=9, kv_heads=3)
ODD_KV_EVEN_HEADS = TinyModel(heads=6, kv_heads=3)
ODD_MHA = TinyModel(hidden=40, heads=5, kv_heads=5)
ONE_KV = TinyModel(heads=4, kv_heads=1)
ODD_HEADS_ONE_KV = TinyModel(hidden=56, heads=7, kv_heads=1)
ONE_HEAD = TinyModel(hidden=32, heads=1, kv_heads=1)
WIDE_HEADS = TinyModel(hidden=32, heads=2, kv_heads=2, head_dim=24)
FIFTEEN = TinyModel(hidden=60, heads=15, kv_heads=5, head_dim=8)
TIED = TinyModel(tied=True)
MLP = ("gate_proj", "up_proj", "down_proj")


def s2(size=None, ratio=None):
    options = [("kind", "s2")]
    if size is not None:
        options.append(("group_size", size))
    if ratio is not None:
        options.append(("group_ratio", ratio))
    return tuple(options)


FULL = (("kind", "full"),)

HEADS = [
    Case(f"{shape}_{kind}", model, kind, batch=3 if kind == "full" else 1)
    for shape, model in {
        "mha": MHA,
        "gqa": TinyModel(),
        "nine_heads_three_kv": ODD_KV,
        "six_heads_three_kv": ODD_KV_EVEN_HEADS,
        "five_heads_five_kv": ODD_MHA,
        "four_heads_one_kv": ONE_KV,
        "seven_heads_one_kv": ODD_HEADS_ONE_KV,
        "fifteen_heads_five_kv": FIFTEEN,
        "one_head": ONE_HEAD,
        "head_size_not_hidden_over_heads": WIDE_HEADS,
    }.items()
    for kind in ("full", "longlora")
]

METHODS = [
    Case(f"{kind}_{name}_batch_{batch}", kind=kind, attention=options, batch=batch, tokens=tokens)
    for kind in ("full", "lora", "longlora")
    for name, options in (("s2", s2()), ("full_attention", FULL))
    for batch, tokens in ((1, 32), (3, 27))
]

LENGTHS = [
    Case(f"{tokens}_tokens_of_{CONTEXT}_group_{size}", ODD_KV, "full", s2(size), tokens, batch=2)
    for tokens, size in (
        (1, 8), (2, 8), (2, 1), (3, 2), (5, 8), (6, 8), (7, 8), (8, 8), (9, 8), (12, 8), (13, 8), (31, 8), (32, 8),
        (32, 1), (31, 2), (32, 3), (29, 5), (30, 7), (32, 11), (32, 31), (32, 32), (17, 32), (32, 20), (31, 16),
    )
]  # fmt: skip

GROUPS = [
    Case("group_from_ratio_not_from_length", ODD_KV, attention=s2(ratio=0.5), tokens=15),
    Case("group_ratio_that_does_not_divide", ODD_KV, attention=s2(ratio=0.3), tokens=31, context=31),
    Case("group_ratio_one", ODD_KV, attention=s2(ratio=1.0), tokens=32),
    Case("group_ratio_below_one_token", ODD_KV, attention=s2(ratio=0.01), tokens=20),
    Case("group_longer_than_context", ODD_KV, attention=s2(50), tokens=32),
    Case("longer_context", TinyModel(layers=3), attention=s2(), tokens=203, context=211, batch=2),
    Case("context_of_two_tokens", TinyModel(), attention=s2(), tokens=2, context=2),
    Case("sequence_much_shorter_than_context", TinyModel(), attention=s2(), tokens=40, context=1000),
]

TYING = [
    Case(f"tied_{kind}_{start}", TIED, kind, adapter=() if start == "trained" else None)
    for kind, start in (
        ("full", "weights"), ("lora", "trained"), ("lora", "fresh"), ("longlora", "trained"), ("longlora", "fresh"),
    )
] + [Case(f"tied_{kind}_odd_kv", dataclasses.replace(ODD_KV, tied=True), kind, batch=3) for kind in ("full", "longlora")]  # fmt: skip

LABELS = [
    Case(f"labels_{labels}_{kind}", kind=kind, labels=labels, batch=batch)
    for labels in ("some", "none", "first_column", "one_sequence_unscored")
    for kind, batch in (("full", 3), ("longlora", 3), ("lora", 1))
    if not (labels == "one_sequence_unscored" and batch == 1)
] + [Case("labels_none_tied", TIED, labels="none")]

ADAPTERS = [
    Case("rank_1_alpha_1", kind="lora", adapter=(("rank", 1), ("alpha", 1))),
    Case("rank_3_alpha_7", adapter=(("rank", 3), ("alpha", 7))),
    Case("rank_16_alpha_4", adapter=(("rank", 16), ("alpha", 4)), batch=3),
    Case("alpha_not_whole", kind="lora", adapter=(("rank", 4), ("alpha", 2.5))),
    Case("only_q_and_v", adapter=(("targets", ("q_proj", "v_proj")),)),
    Case("only_k", ODD_KV, "lora", adapter=(("targets", ("k_proj",)),)),
    Case("only_o", kind="lora", adapter=(("targets", ("o_proj",)),)),
    Case("only_mlp", kind="lora", adapter=(("targets", MLP),)),
    Case("only_down", adapter=(("targets", ("down_proj",)),)),
    Case("only_up", kind="lora", adapter=(("targets", ("up_proj",)),)),
    Case("attention_and_mlp", ODD_KV, adapter=(("targets", oracle.DEFAULT_TARGETS + MLP),), batch=3),
    Case("attention_and_gate_tied", TIED, adapter=(("targets", oracle.DEFAULT_TARGETS + MLP[:1]),)),
    Case("agreeing_keys", adapter=(("rank", 4), ("alpha", 8)), method=(("rank", 4), ("alpha", 8), ("targets", oracle.DEFAULT_TARGETS))),
]  # fmt: skip

FROM_32 = (("original_length", 32),)  # a scaled config does not say whether its maximum is meant before or after

ROPE = [
    Case("rope_factor_given", rope=(("kind", "linear"), ("factor", 3.0))),
    Case("rope_factor_not_whole", rope=(("kind", "linear"), ("factor", 2.7)), kind="full"),
    Case("rope_factor_one", rope=(("kind", "linear"), ("factor", 1.0)), context=128, tokens=70),
    Case("rope_without_factor", rope=(("kind", "linear"),), context=128, tokens=70),
    Case("rope_absent_extends", context=160, tokens=90),
    Case("rope_absent_extends_full_method", context=200, tokens=201 - 64, kind="full"),
    Case("rope_absent_shorter_than_model", TinyModel(max_position=100), context=64, tokens=50),
    Case("rope_scaled_model_multiplies", TinyModel(rope_factor=2.0), rope=FROM_32, context=160, tokens=90),
    Case("rope_scaled_model_older_config", TinyModel(rope_factor=2.0, rope_style="scaling"), rope=FROM_32, context=160, tokens=90),
    Case("rope_scaled_model_oldest_config", TinyModel(rope_factor=2.0, rope_style="scaling_type"), rope=FROM_32, context=160, tokens=90),
    Case("rope_scaled_model_both_keys", TinyModel(rope_factor=2.0, rope_style="both"), rope=FROM_32, context=160, tokens=90),
    Case("rope_scaled_model_factor_given", TinyModel(rope_factor=4.0), rope=(("factor", 1.5),), kind="full"),
    Case("rope_scaled_model_kept", TinyModel(rope_factor=4.0), kind="full"),
    Case("rope_theta_of_new_config", TinyModel(rope_theta=500000.0)),
    Case("rope_theta_of_older_config", TinyModel(rope_theta=500000.0, rope_style="scaling")),
]  # fmt: skip

STORED = [
    Case(f"stored_in_{dtype}_{kind}{'_sharded' if sharded else ''}", TinyModel(dtype=dtype, sharded=sharded), kind)
    for dtype, kind, sharded in (
        ("bfloat16", "full", False), ("float16", "full", False), ("bfloat16", "longlora", True),
        ("float16", "lora", True), ("float32", "longlora", True), ("float32", "full", True),
    )
] + [
    Case("stored_sharded_tied", TinyModel(sharded=True, tied=True)),
    Case("stored_in_bfloat16_tied", TinyModel(dtype="bfloat16", tied=True), "full"),
    Case("norm_epsilon", TinyModel(eps=0.3), "full"),
    Case("three_layers", TinyModel(layers=3), batch=3),
    Case("one_layer", TinyModel(layers=1), batch=3),
]  # fmt: skip

CASES = HEADS + METHODS + LENGTHS + GROUPS + TYING + LABELS + ADAPTERS + ROPE + STORED


def make_labels(kind, input_ids):
    if kind == "absent":
        return None
    labels = input_ids.clone()
    if kind == "none":
        labels[:] = -100
    elif kind == "first_column":
        labels[:, 1:] = -100
    elif kind == "some":
        generator = torch.Generator().manual_seed(5)
        labels[torch.rand(labels.shape, generator=generator) < 0.6] = -100
    elif kind == "one_sequence_unscored":
        labels[1] = -100
    return labels


def make_inputs(case):
    generator = torch.Generator().manual_seed(case.seed + 17)
    input_ids = torch.randint(0, case.model.vocab, (case.batch, case.tokens), generator=generator)
    return input_ids, make_labels(case.labels, input_ids)


def job_of(case, folder, tmp_path):
    """The job file of a case, with its adapter folder written."""
    spec = {
        "name": "parity",
        "model": {"path": str(folder)},
        "context_length": case.context,
        "attention": dict(case.attention),
        "method": {"kind": case.kind, **{key: list(v) if isinstance(v, tuple) else v for key, v in case.method}},
        "training": {"dtype": "fp32"},
    }
    if case.rope is not None:
        spec["rope"] = dict(case.rope)
    if case.kind != "full" and case.adapter is not None:
        oracle.write_adapter(folder, tmp_path / "adapter", spec, **dict(case.adapter))
        spec["method"]["adapter"] = str(tmp_path / "adapter")
    return spec


def without_fresh_factors(tensors):
    """Leaves out gradients of B: with a fresh A, which only the trainer knows, they have no reference."""
    return {name: tensor for name, tensor in tensors.items() if ".lora_B." not in name}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_probe_agrees(case, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(case.model)
    spec = job_of(case, folder, tmp_path)
    input_ids, labels = make_inputs(case)
    actual = trainer.probe(spec, input_ids, labels, tmp_path)
    expected = compare.named(oracle.reference(folder, spec, input_ids, labels))
    assert all(tensor.dtype == torch.float32 for tensor in actual.values())
    assert actual["loss"].numel() == 1
    actual["loss"] = actual["loss"].reshape(())
    if case.kind != "full" and case.adapter is None:
        assert set(actual) == set(expected)
        actual, expected = without_fresh_factors(actual), without_fresh_factors(expected)
    compare.assert_close(actual, expected)


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["lora", "longlora"])
def test_fresh_adapter_has_zero_gradient_of_a_and_some_of_b(kind, shelf, tmp_path, trainer_binary):
    case = Case("fresh", kind=kind, adapter=None)
    folder = shelf.folder(case.model)
    actual = trainer.probe(job_of(case, folder, tmp_path), *make_inputs(case), tmp_path)
    of_a = {name: tensor for name, tensor in actual.items() if ".lora_A." in name}
    of_b = {name: tensor for name, tensor in actual.items() if ".lora_B." in name}
    assert len(of_a) == len(of_b) == 8
    assert all(not tensor.any() for tensor in of_a.values())
    assert all(tensor.any() and torch.isfinite(tensor).all() for tensor in of_b.values())


def test_fresh_factors_depend_on_the_seed_only(shelf, tmp_path, trainer_binary):
    case = Case("fresh", kind="lora", adapter=None)
    folder = shelf.folder(case.model)
    spec, name = job_of(case, folder, tmp_path), "grad.base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    first, again, other = (
        trainer.probe(trainer.merged_spec(spec, {"training": {"seed": seed}}), *make_inputs(case), tmp_path)[name]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["full", "longlora"])
@pytest.mark.parametrize("model", [TinyModel(dtype="bfloat16"), ODD_KV, TIED], ids=["stored_bf16", "odd_kv", "tied"])
def test_bf16_errs_at_most_twice_as_much_as_plain_bf16(kind, model, shelf, tmp_path, trainer_binary):
    case = Case("bf16", model, kind, batch=3)
    folder = shelf.folder(dataclasses.replace(case.model, dtype="bfloat16"))
    spec = job_of(case, folder, tmp_path)
    spec["training"]["dtype"] = "bf16"
    input_ids, labels = make_inputs(case)
    actual = trainer.probe(spec, input_ids, labels, tmp_path)
    exact = compare.named(oracle.reference(folder, spec, input_ids, labels))
    plain = compare.named(oracle.reference(folder, spec, input_ids, labels, dtype=torch.bfloat16))
    assert set(actual) == set(exact)
    too_far = {}
    for name, tensor in exact.items():
        size = tensor.norm().item()
        ours = (actual[name].reshape(tensor.shape) - tensor).norm().item() / size
        theirs = (plain[name] - tensor).norm().item() / size
        # The loss is one number, whose error can be small by luck: it gets the logits' error as its yardstick.
        yardstick = theirs if name != "loss" else max(theirs, 2**-8)
        if not ours <= 2 * yardstick:
            too_far[name] = (ours, theirs)
    assert not too_far


@pytest.mark.parametrize("change", [{"rank": 4}, {"alpha": 3}, {"targets": ["q_proj"]}, {"kind": "full"}], ids=str)
def test_keys_that_disagree_with_the_adapter_are_refused(change, shelf, tmp_path, trainer_binary):
    case = Case("disagree", kind="lora")
    spec = trainer.merged_spec(job_of(case, shelf.folder(case.model), tmp_path), {"method": change})
    write = trainer.write_spec(spec, tmp_path / "spec.json")
    save_file({"input_ids": make_inputs(case)[0]}, tmp_path / "in.safetensors")
    done = trainer.command("probe", write, "--tokens", tmp_path / "in.safetensors", "--out", tmp_path / "out.safetensors")
    assert done.returncode in (2, 10), trainer.report(done)
    assert "adapter" in done.stderr + done.stdout
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind, other", [("lora", "longlora"), ("longlora", "lora")])
def test_adapter_of_the_other_method_is_honoured_or_refused(kind, other, shelf, tmp_path, trainer_binary):
    """What an adapter trained must count: a lora job over a longlora adapter may not fall back to the base's embeddings."""
    folder = shelf.folder(TinyModel())
    input_ids, labels = make_inputs(Case("other"))
    spec = job_of(Case("other", kind=other), folder, tmp_path)
    expected = oracle.reference(folder, spec, input_ids, labels)
    spec["method"]["kind"] = kind
    trainer.write_spec(spec, tmp_path / "spec.json")
    save_file({"input_ids": input_ids}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    done = trainer.command("probe", tmp_path / "spec.json", "--tokens", tmp_path / "in.safetensors", "--out", out)
    if done.returncode != 0:
        assert done.returncode in (2, 10) and "adapter" in done.stderr + done.stdout, trainer.report(done)
        return
    assert compare.relative_error(read_tensors(out)["logits"], expected.logits) < 1e-4


def test_group_rule_of_the_cases_covers_ragged_ends():
    """Guards the list itself: some case must have a ragged last block in either half, and one shorter than half a group."""
    sizes = [
        (case.tokens, attention.resolve_group_size(case.context, dict(case.attention).get("group_size")))
        for case in CASES
        if dict(case.attention)["kind"] == "s2"
    ]
    assert any(tokens % size and tokens > size > 1 for tokens, size in sizes)
    assert any((tokens + size // 2) % size == 1 and tokens > size > 2 for tokens, size in sizes)
    assert any(tokens < size - size // 2 for tokens, size in sizes)
