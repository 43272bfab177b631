"""What a user can get wrong: a sentence that names it and an exit code; never a signal, never a hang."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from reference import compare, oracle, tiny_jobs, trainer
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel, config_of, randomise, write_model

BAD_SPEC, USER_DATA = 2, 10


def assert_refused(done, code, *words):
    assert done.returncode >= 0, f"ended by a signal: {trainer.report(done)}"
    assert done.returncode == code, trainer.report(done)
    said = (done.stderr + done.stdout).lower()
    missing = [word for word in words if word.lower() not in said]
    assert not missing, f"the message lacks {missing}: {trainer.report(done)}"


@pytest.fixture
def folder(tmp_path):
    """A model folder of the test's own, to be damaged."""
    return write_model(TinyModel(), tmp_path / "model")


def job(folder, **changes):
    spec = {
        "name": "bad-input",
        "model": {"path": str(folder)},
        "context_length": 32,
        "method": {"kind": "longlora"},
        "training": {"dtype": "fp32"},
    }
    return trainer.merged_spec(spec, changes)


def probe(spec, tmp_path, tensors=None):
    tensors = {"input_ids": torch.arange(20).reshape(2, 10)} if tensors is None else tensors
    save_file(tensors, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    done = trainer.command(
        "probe", trainer.write_spec(spec, tmp_path / "spec.json"), "--tokens", tmp_path / "in.safetensors", "--out", out
    )
    assert done.returncode == 0 or not out.exists(), "a failed probe left a result"
    return done


def test_the_undamaged_folder_works(folder, tmp_path, trainer_binary):
    done = probe(job(folder), tmp_path)
    assert done.returncode == 0, trainer.report(done)


# ---- the job file ----


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"training": {"learning_rat": 1e-3}}, ["training.learning_rat", "learning_rate"]),
        ({"atention": {"kind": "s2"}}, ["atention", "attention"]),
        ({"method": {"rnak": 8}}, ["rnak", "rank"]),
        ({"contxt_length": 8}, ["contxt_length", "context_length"]),
        ({"method": {"kind": "longlra"}}, ["method.kind", "longlora"]),
        ({"attention": {"kind": "ATTENTION_KIND_S2"}}, ["attention.kind", "s2"]),
        ({"attention": {"group_size": 8, "group_ratio": 0.5}}, ["group_size", "group_ratio"]),
        ({"attention": {"group_size": 0}}, ["group_size"]),
        ({"attention": {"group_ratio": 1.5}}, ["group_ratio"]),
        ({"context_length": "32"}, ["context_length"]),
        ({"context_length": -4}, ["context_length"]),
        ({"context_length": 1.5}, ["context_length"]),
        ({"training": {"dtype": "fp16"}}, ["dtype", "fp32"]),
        ({"method": {"targets": ["q_porj"]}}, ["q_porj"]),
        ({"rope": {"factor": 0}}, ["factor"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_wrong_keys_and_values_are_named(changes, words, folder, tmp_path, trainer_binary):
    assert_refused(probe(job(folder, **changes), tmp_path), BAD_SPEC, *words)


def test_all_mistakes_come_in_one_answer(folder, tmp_path, trainer_binary):
    spec = job(folder, context_length=-1, method={"knid": "lora"}, training={"dtype": "fp8"})
    assert_refused(probe(spec, tmp_path), BAD_SPEC, "context_length", "knid", "dtype")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 3}', "\x00\x01", '{"a":' * 100000], ids=range(6))
def test_text_that_is_no_job_file(text, tmp_path, trainer_binary):
    (tmp_path / "spec.json").write_text(text)
    assert_refused(trainer.command("train", tmp_path / "spec.json", "--work", tmp_path / "work"), BAD_SPEC)


def test_absent_job_file(tmp_path, trainer_binary):
    assert_refused(trainer.command("train", tmp_path / "none.json", "--work", tmp_path / "work"), BAD_SPEC, "none.json")


# ---- the tokens of a probe ----


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"labels": torch.zeros(1, 4, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 4)},
        {"input_ids": torch.zeros(4, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 0, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 33, dtype=torch.int64)},
        {"input_ids": torch.full((1, 4), 131)},
        {"input_ids": torch.full((1, 4), -1)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.zeros(1, 5, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "document_ids": torch.zeros(1, 5, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "document_ids": torch.zeros(4, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "document_ids": torch.zeros(1, 4, dtype=torch.int32)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.full((1, 4), 131)},
        {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.full((1, 4), -7)},
    ],
    ids=[
        "nothing", "no_input_ids", "floats", "one_dimension", "no_tokens", "longer_than_context", "id_beyond_vocabulary",
        "negative_id", "labels_of_other_shape", "documents_of_other_shape", "documents_without_rows", "documents_of_other_type",
        "label_beyond_vocabulary", "negative_label",
    ],
)  # fmt: skip
def test_tokens_that_cannot_be(tensors, folder, tmp_path, trainer_binary):
    assert_refused(probe(job(folder), tmp_path, tensors), USER_DATA)


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(1, 31, dtype=torch.int64), torch.zeros(0, 32, dtype=torch.int64), torch.zeros(32, dtype=torch.int64), torch.zeros(1, 32)],
    ids=["length", "no-row", "one-dimension", "float"],
)
def test_tokens_that_cannot_be_measured_on(folder, tmp_path, ids):
    save_file({"input_ids": ids}, tmp_path / "in.safetensors")
    spec = trainer.write_spec(job(folder, data={"sources": [str(folder)]}), tmp_path / "spec.json")
    done = trainer.command("measure", spec, "--tokens", tmp_path / "in.safetensors")
    assert_refused(done, USER_DATA, "in.safetensors", "input_ids", "(rows, 32)")


# ---- the model folder ----


def rewrite_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_folder_without_weights(folder, tmp_path, trainer_binary):
    (folder / "model.safetensors").unlink()
    assert_refused(probe(job(folder), tmp_path), USER_DATA, str(folder), "safetensors")


def test_folder_without_config(folder, tmp_path, trainer_binary):
    (folder / "config.json").unlink()
    assert_refused(probe(job(folder), tmp_path), USER_DATA, "config.json")


def test_missing_shard(tmp_path, trainer_binary):
    folder = write_model(TinyModel(sharded=True), tmp_path / "model")
    lost = sorted(folder.glob("model-0*.safetensors"))[1]
    lost.unlink()
    assert_refused(probe(job(folder), tmp_path), USER_DATA, lost.name)


def test_unknown_architecture(folder, tmp_path, trainer_binary):
    rewrite_config(folder, architectures=["FalconForCausalLM"], model_type="falcon")
    assert_refused(probe(job(folder), tmp_path), USER_DATA, "falcon")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"intermediate_size": 81},
        {"vocab_size": 130},
        {"num_key_value_heads": 4},
        {"num_hidden_layers": 3},
        {"head_dim": 16},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_size": "48"},
        {"hidden_size": 1 << 62},
        {"vocab_size": ...},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_type": "spiral", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 0.0, "rope_theta": 10000.0}},
        {"rope_scaling": [1, 2]},
        {"rope_scaling": {"type": "yarn", "factor": "4"}},
        {"rope_scaling": {"type": "dynamic"}},
        {"rope_scaling": {"type": ["linear"], "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    ],
    ids=str,
)
def test_config_that_disagrees_with_the_weights_or_itself(changes, folder, tmp_path, trainer_binary):
    rewrite_config(folder, **changes)
    assert_refused(probe(job(folder), tmp_path), USER_DATA)


def test_shape_that_disagrees_is_named(folder, tmp_path, trainer_binary):
    rewrite_config(folder, intermediate_size=81)
    done = probe(job(folder), tmp_path)
    assert_refused(done, USER_DATA, "mlp", "81", "80")


def test_scaling_of_another_kind_is_refused_naming_both(folder, tmp_path, trainer_binary):
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    rewrite_config(folder, rope_parameters=yarn)
    done = probe(job(folder, rope={"kind": "linear", "factor": 2.0}), tmp_path)
    assert done.returncode in (BAD_SPEC, USER_DATA), trainer.report(done)
    assert "yarn" in done.stderr + done.stdout and "linear" in done.stderr + done.stdout


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_are_computed_or_refused_never_dropped(key, tmp_path, trainer_binary):
    config = config_of(TinyModel())
    setattr(config, key, True)
    model = LlamaForCausalLM(config)
    randomise(model, 0)
    model.save_pretrained(tmp_path / "model")
    spec = job(tmp_path / "model", method={"kind": "full"}, rope={"factor": 1.0})
    done = probe(spec, tmp_path)
    if done.returncode != 0:
        assert_refused(done, USER_DATA, "bias")
        return
    ids = torch.arange(20).reshape(2, 10)
    expected = compare.named(oracle.reference(tmp_path / "model", spec, ids))
    actual = read_tensors(tmp_path / "out.safetensors")
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, expected)


def weights_with(folder, **tensors):
    stored = read_tensors(folder / "model.safetensors")
    for name, tensor in tensors.items():
        stored.pop(name) if tensor is None else stored.update({name: tensor})
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_missing_tensor_is_named(name, folder, tmp_path, trainer_binary):
    weights_with(folder, **{name: None})
    assert_refused(probe(job(folder), tmp_path), USER_DATA, name)


def test_integer_weights_are_refused(folder, tmp_path, trainer_binary):
    weights_with(folder, **{"model.norm.weight": torch.ones(48, dtype=torch.int32)})
    assert_refused(probe(job(folder), tmp_path), USER_DATA, "model.norm.weight")


def damaged(data, how):
    """A safetensors file: 8 bytes of header length, the JSON header, the bytes of the tensors."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    first = next(name for name in header if name != "__metadata__")
    begin, end = header[first]["data_offsets"]

    def file(text=None):
        text = json.dumps(header).encode() if text is None else text
        return struct.pack("<Q", len(text)) + text + body

    if how == "empty":
        return b""
    if how == "seven_bytes":
        return data[:7]
    if how == "header_cut":
        return data[: 8 + size // 2]
    if how == "body_cut":
        return data[:-5]
    if how == "body_gone":
        return data[: 8 + size]
    if how == "header_length_huge":
        return struct.pack("<Q", 1 << 62) + data[8:]
    if how == "header_length_all_ones":
        return b"\xff" * 8 + data[8:]
    if how == "header_length_beyond_file":
        return struct.pack("<Q", len(data)) + data[8:]
    if how == "header_no_json":
        return file(b"{" + b"x" * 60)
    if how == "header_an_array":
        return file(b"[1, 2, 3]")
    if how == "header_nested_deeply":
        return file(b'{"a":' * 200000 + b"1" + b"}" * 200000)
    if how == "header_invalid_utf8":
        return file(b'{"\xff\xfe": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}')
    if how == "offsets_beyond_file":
        header[first]["data_offsets"] = [begin + len(body), end + len(body)]
    if how == "offsets_reversed":
        header[first]["data_offsets"] = [end, begin]
    if how == "offsets_negative":
        header[first]["data_offsets"] = [-4, end - begin - 4]
    if how == "offsets_wrap_around":
        header[first]["data_offsets"] = [2**64 - 4, 2**64 - 4 + end - begin]
    if how == "offsets_of_other_size":
        header[first]["data_offsets"] = [begin, end - 4]
    if how == "offsets_one_number":
        header[first]["data_offsets"] = [begin]
    if how == "shape_overflows":
        header[first]["shape"] = [1 << 33, 1 << 33]
    if how == "shape_negative":
        header[first]["shape"] = [-1, -1 * ((end - begin) // 4)]
    if how == "shape_of_words":
        header[first]["shape"] = ["48"]
    if how == "dtype_unknown":
        header[first]["dtype"] = "F13"
    if how == "dtype_of_other_size":
        header[first]["dtype"] = "F64"
    if how == "entry_no_object":
        header[first] = 7
    return file()


@pytest.mark.parametrize(
    "how",
    [
        "empty", "seven_bytes", "header_cut", "body_cut", "body_gone", "header_length_huge", "header_length_all_ones",
        "header_length_beyond_file", "header_no_json", "header_an_array", "header_nested_deeply", "header_invalid_utf8",
        "offsets_beyond_file", "offsets_reversed", "offsets_negative", "offsets_wrap_around", "offsets_of_other_size",
        "offsets_one_number", "shape_overflows", "shape_negative", "shape_of_words", "dtype_unknown", "dtype_of_other_size",
        "entry_no_object",
    ],
)  # fmt: skip
def test_safetensors_file_that_is_cut_or_lies(how, folder, tmp_path, trainer_binary):
    file = folder / "model.safetensors"
    file.write_bytes(damaged(file.read_bytes(), how))
    assert_refused(probe(job(folder), tmp_path), USER_DATA, "model.safetensors")


def test_index_that_names_a_file_outside(tmp_path, trainer_binary):
    folder = write_model(TinyModel(sharded=True), tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(probe(job(folder), tmp_path), USER_DATA, "model.safetensors.index.json")


def test_adapter_folder_that_is_none(folder, tmp_path, trainer_binary):
    (tmp_path / "adapter").mkdir()
    spec = job(folder, method={"adapter": str(tmp_path / "adapter")})
    assert_refused(probe(spec, tmp_path), USER_DATA, "adapter_config.json")


def adapter_of(folder, tmp_path, change):
    """A PEFT folder over `folder` whose tensors went through `change`."""
    adapter = oracle.write_adapter(folder, tmp_path / "adapter", job(folder))
    file = adapter / "adapter_model.safetensors"
    tensors = read_tensors(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return job(folder, method={"adapter": str(adapter)})


FACTOR = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(FACTOR),
        lambda tensors: tensors.update({FACTOR: tensors[FACTOR][:, :3].contiguous()}),
        lambda tensors: tensors.update({FACTOR: tensors[FACTOR].to(torch.int32)}),
        lambda tensors: tensors.update({FACTOR.replace("layers.1", "layers.9"): tensors[FACTOR].clone()}),
    ],
    ids=["tensor_missing", "rank_disagrees", "integers", "layer_that_the_model_lacks"],
)
def test_adapter_tensors_that_cannot_be(change, folder, tmp_path, trainer_binary):
    assert_refused(probe(adapter_of(folder, tmp_path, change), tmp_path), USER_DATA, "v_proj.lora_B.weight")


def test_truncated_adapter(folder, tmp_path, trainer_binary):
    spec = adapter_of(folder, tmp_path, lambda tensors: None)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    assert_refused(probe(spec, tmp_path), USER_DATA, "adapter_model.safetensors")


# ---- the corpus ----


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory):
    return tiny_jobs.write_job(tmp_path_factory.mktemp("job"))


def prepare(tiny_job, sources, tmp_path, **changes):
    spec = trainer.merged_spec(tiny_job.spec, {"data": {"sources": [str(source) for source in sources]}, **changes})
    return trainer.command("prepare", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")


def test_the_undamaged_corpus_is_prepared(tiny_job, tmp_path, trainer_binary):
    done = prepare(tiny_job, [tiny_job.corpus], tmp_path)
    assert done.returncode == 0, trainer.report(done)


def test_absent_corpus(tiny_job, tmp_path, trainer_binary):
    assert_refused(prepare(tiny_job, [tmp_path / "nothing-here"], tmp_path), USER_DATA, "nothing-here")


def test_empty_file(tiny_job, tmp_path, trainer_binary):
    (tmp_path / "empty.txt").write_text("")
    assert_refused(prepare(tiny_job, [tmp_path / "empty.txt"], tmp_path), USER_DATA)


def test_empty_folder(tiny_job, tmp_path, trainer_binary):
    (tmp_path / "vacant").mkdir()
    assert_refused(prepare(tiny_job, [tmp_path / "vacant"], tmp_path), USER_DATA, "vacant")


def test_unreadable_corpus(tiny_job, tmp_path, trainer_binary):
    # A link to itself: unreadable also for root, whom permissions do not stop.
    (tmp_path / "link.txt").symlink_to(tmp_path / "link.txt")
    assert_refused(prepare(tiny_job, [tmp_path / "link.txt"], tmp_path), USER_DATA, "link.txt")


@pytest.mark.parametrize(
    "data",
    [b"plain \xff\xfe bytes " * 500, b"cut \xe2\x82", b"surrogate \xed\xa0\x80 half " * 500, b"overlong \xc0\xaf " * 500],
    ids=["stray_bytes", "cut_at_the_end", "surrogate", "overlong"],
)
def test_invalid_utf8_is_named_with_its_place(data, tiny_job, tmp_path, trainer_binary):
    (tmp_path / "broken.txt").write_bytes(tiny_jobs.words(500, seed=3).encode() + data)
    assert_refused(prepare(tiny_job, [tmp_path / "broken.txt"], tmp_path), USER_DATA, "broken.txt", "utf-8")


def test_fewer_tokens_than_one_context(tiny_job, tmp_path, trainer_binary):
    (tmp_path / "short.txt").write_text("ka lo mi")
    done = prepare(tiny_job, [tmp_path / "short.txt"], tmp_path)
    assert_refused(done, USER_DATA, "128")


@pytest.mark.parametrize(
    "line", ["{", '{"other": "text"}', '{"text": 7}', '"text"', '{"text": "\\ud800"}'],
    ids=["cut", "other_field", "number", "no_object", "half_surrogate"],
)  # fmt: skip
def test_bad_record_is_named_with_its_line(line, tiny_job, tmp_path, trainer_binary):
    good = json.dumps({"text": tiny_jobs.words(300, seed=4)})
    (tmp_path / "records.jsonl").write_text("\n".join([good, good, line, good]) + "\n")
    assert_refused(prepare(tiny_job, [tmp_path / "records.jsonl"], tmp_path), USER_DATA, "records.jsonl", "3")


def test_model_without_tokenizer(tiny_job, tmp_path, trainer_binary):
    bare = write_model(TinyModel(vocab=tiny_jobs.VOCAB), tmp_path / "bare")
    done = prepare(tiny_job, [tiny_job.corpus], tmp_path, model={"path": str(bare)})
    assert_refused(done, USER_DATA, "tokenizer.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "Unigram", "vocab": []}}'], ids=range(4))
def test_tokenizer_that_is_none_or_unknown(text, tiny_job, tmp_path, trainer_binary):
    bare = write_model(TinyModel(vocab=tiny_jobs.VOCAB), tmp_path / "bare")
    (bare / "tokenizer.json").write_text(text)
    done = prepare(tiny_job, [tiny_job.corpus], tmp_path, model={"path": str(bare)})
    assert_refused(done, USER_DATA, "tokenizer.json")


def test_tokenizer_with_more_tokens_than_the_model(tiny_job, tmp_path, trainer_binary):
    small = write_model(TinyModel(vocab=100), tmp_path / "small")
    (small / "tokenizer.json").write_bytes((tiny_job.model / "tokenizer.json").read_bytes())
    spec = trainer.merged_spec(tiny_job.spec, {"model": {"path": str(small)}})
    done = trainer.command("train", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert_refused(done, USER_DATA)
