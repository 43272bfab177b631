"""`data.packing` and `data.bucketing` in a whole job: what a step trains on, what is counted, what is measured."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from reference import attention, compare, oracle, tiny_jobs, trainer, work_folder
from reference.exported_job import evaluation_rows
from reference.families import FAMILIES
from reference.nf4 import dequantized_folder
from test_train_step import dumped, gradients_of, train, train_two_ranks

CONTEXT = 64


def write_documents(corpus):
    """30 documents of 3 to 90 words."""
    for file in corpus.iterdir():
        file.unlink()
    texts = [tiny_jobs.words(3 + (index * 37) % 88, seed=200 + index) for index in range(30)]
    (corpus / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def packed_job(tmp_path_factory):
    job = tiny_jobs.write_job(
        tmp_path_factory.mktemp("packed"),
        data={"packing": True, "holdout_fraction": 0.05},
        context_length=CONTEXT,
        training={"steps": 1},
        evaluation={"lengths": [CONTEXT]},
    )
    write_documents(job.corpus)
    return job


def pieces_of(step):
    """Token lists of all documents in a step's rows; padding, which is never scored, left out."""
    pieces = []
    for ids, labels, documents in zip(step["input_ids"], step["labels"], step["document_ids"], strict=True):
        spans = attention.documents_of(documents)
        for begin, end in spans:
            if (labels[begin:end] == -100).all():
                assert (begin, end) == spans[-1], "padding stands at the end"
            else:
                assert torch.equal(labels[begin:end], ids[begin:end])
                pieces.append(ids[begin:end].tolist())
    return pieces


@pytest.mark.parametrize("options", [{"kind": "s2"}, {"kind": "s2", "edge": "wrap"}, {"kind": "full"}], ids=["split", "wrap", "full"])
def test_a_step_trains_on_documents_as_the_probe_does(options, packed_job, tmp_path, trainer_binary):
    spec = trainer.merged_spec(packed_job.spec, {"attention": options})
    train(spec, tmp_path / "work", "--dump-gradients", tmp_path / "dump")
    step = dumped(tmp_path / "dump")[1]
    probed = trainer.probe(spec, step["input_ids"], step["labels"], tmp_path, step["document_ids"])
    expected = {name.removeprefix("grad."): tensor for name, tensor in probed.items() if name.startswith("grad.")}
    compare.assert_close(gradients_of(step), expected, 1e-5)
    [line] = work_folder.progress(tmp_path / "work")
    assert line["loss"] == pytest.approx(probed["loss"].item(), rel=1e-5)
    assert line["tokens_total"] == sum(len(piece) for piece in pieces_of(step))


@pytest.mark.parametrize("bucketing", [False, True], ids=["any_order", "buckets"])
def test_an_epoch_is_every_training_token_once(bucketing, packed_job, tmp_path, trainer_binary):
    changes = {"data": {"bucketing": bucketing}}
    train(trainer.merged_spec(packed_job.spec, changes), tmp_path / "first" / "work")
    facts = json.loads((tmp_path / "first" / "work" / "dataset.json").read_text())
    assert facts["rows"] == "packed" and facts["dropped_tokens"] == 0
    rows = facts["training_sequences"]
    assert rows * CONTEXT == facts["training_tokens"] + facts["padding_tokens"]
    changes["training"] = {"steps": rows, "global_batch": 1, "micro_batch": 1}
    train(trainer.merged_spec(packed_job.spec, changes), tmp_path / "second" / "work", "--dump-gradients", tmp_path / "dump")
    trained = [piece for step in dumped(tmp_path / "dump").values() for piece in pieces_of(step)]
    assert sum(map(len, trained)) == facts["training_tokens"]

    tokens, offsets, _ = work_folder.prepared(tmp_path / "second" / "work")
    documents = [tokens[begin:end].tolist() for begin, end in zip(offsets, offsets[1:], strict=False)]
    for piece in trained:  # a whole document, a context of a longer one, or the head of the one that is half held out
        assert any(piece == d[at : at + len(piece)] for d in documents for at in range(0, len(d), CONTEXT))
    whole = sum(document in trained for document in documents if len(document) <= CONTEXT)
    assert whole >= sum(len(document) <= CONTEXT for document in documents) - 8


def test_two_ranks_are_one(packed_job, tmp_path, trainer_binary):
    spec = trainer.merged_spec(packed_job.spec, {"data": {"bucketing": True}})
    train(spec, tmp_path / "one", "--dump-gradients", tmp_path / "dump-one")
    train_two_ranks(spec, tmp_path / "two", "--dump-gradients", tmp_path / "dump-two")
    one, two = dumped(tmp_path / "dump-one")[1], dumped(tmp_path / "dump-two")[1]
    assert torch.equal(one["input_ids"], two["input_ids"]) and torch.equal(one["document_ids"], two["document_ids"])
    compare.assert_close(gradients_of(two), gradients_of(one), 1e-5)


def test_held_out_documents_are_measured_within_their_borders(tmp_path, trainer_binary):
    """One document: its held-out tail is cut into rows, and what is left over is a row of its own length."""
    job = tiny_jobs.write_job(
        tmp_path / "job", documents=1, data={"packing": True, "holdout_fraction": 0.2},
        training={"steps": 1}, evaluation={"lengths": [50]}, output={"adapter": False},
    )  # fmt: skip
    work = tmp_path / "work"
    done = trainer.command("run", trainer.write_spec(job.spec, tmp_path / "spec.json"), "--work", work)
    assert done.returncode == 0, trainer.report(done)
    tokens, _, _ = work_folder.prepared(work)
    count = json.loads((work / "dataset.json").read_text())["holdout"]["tokens"]
    stream = torch.from_numpy(tokens[len(tokens) - count :].copy())
    assert count % 50 > 1
    model = AutoModelForCausalLM.from_pretrained(work / "merged")
    total, scored = 0.0, 0
    for row in stream.split(50):
        logits = model(input_ids=row[None]).logits[0, :-1].detach()
        total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
        scored += len(row) - 1
    [found] = [row for row in json.loads((work / "evaluation.json").read_text())["rows"] if row["model"] == "extended"]
    assert found["tokens"] == scored and found["windows"] == -(-count // 50)
    assert found["loss"] == pytest.approx(total / scored, rel=1e-5)


def test_buckets_of_joined_text_are_refused(packed_job, tmp_path, trainer_binary):
    spec = trainer.merged_spec(packed_job.spec, {"data": {"packing": False, "bucketing": True}})
    done = trainer.command("prepare", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert done.returncode == 2 and "data.bucketing" in done.stderr + done.stdout, trainer.report(done)


# ---- documents in rows longer than a model's sliding window ----

WINDOWED = {
    "mistral_outgrown": ("mistral_window_outgrown", "lora", True),
    "mistral_kept": ("mistral_window_kept", "longlora", False),
    "qwen2_in_one_layer": ("qwen2_window_in_one_layer", "qlonglora", True),
}


def without_window(config):
    config.sliding_window = None
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    return config


@pytest.mark.parametrize("name", WINDOWED)
def test_a_sliding_window_counts_within_each_document(name, tmp_path, trainer_binary):
    """Base, rescaled and extended over all documents; the window goes where the job's context outgrows it, and not from the base."""
    family, method, outgrown = WINDOWED[name]
    job = tiny_jobs.write_job(tmp_path / "job", FAMILIES[family], data={"packing": True, "holdout_fraction": ...})
    write_documents(job.corpus)
    longest = json.dumps({"text": tiny_jobs.words(250, seed=9)})
    (job.corpus / "long.jsonl").write_text(longest + "\n")
    spec = trainer.merged_spec(job.spec, {
        "kind": "evaluate", "rope": {"kind": "linear"}, "method": {"kind": method, "rank": ..., "alpha": ...},
        "evaluation": {"lengths": [50, 200]}, "training": {"steps": ..., "global_batch": ..., "micro_batch": ...}, "checkpoint": ...,
    })  # fmt: skip
    adapted = {**spec, "method": {"kind": method.removeprefix("q")}}
    spec["method"]["adapter"] = str(oracle.write_adapter(job.model, tmp_path / "adapter", adapted))
    done = trainer.command("run", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert done.returncode == 0, trainer.report(done)

    tokens, offsets, _ = work_folder.prepared(tmp_path / "work")
    documents = [torch.from_numpy(tokens[a:b].astype("int64")) for a, b in zip(offsets, offsets[1:], strict=False)]
    assert max(map(len, documents)) > 200
    folder = dequantized_folder(job.model, tmp_path / "dequantized") if method.startswith("q") else job.model
    config = oracle.extended_config(job.model, 128)
    own = AutoModelForCausalLM.from_pretrained(folder)
    rescaled = AutoModelForCausalLM.from_pretrained(folder, config=without_window(config) if outgrown else config)

    def loss_of(model, length):
        total, scored = 0.0, 0
        for piece in (piece for document in documents for piece in document.split(length) if len(piece) > 1):
            with torch.no_grad():
                logits = model(input_ids=piece[None]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
            scored += len(piece) - 1
        return total / scored

    rows = evaluation_rows(tmp_path / "work")
    expected = {("base", length): loss_of(own, length) for length in (50, 200)}
    expected |= {("rescaled", length): loss_of(rescaled, length) for length in (50, 200)}
    extended = PeftModel.from_pretrained(rescaled, spec["method"]["adapter"], autocast_adapter_dtype=False).eval()
    expected |= {("extended", length): loss_of(extended, length) for length in (50, 200)}
    assert {key: row["loss"] for key, row in rows.items()} == pytest.approx(expected, rel=1e-5)
    blind = AutoModelForCausalLM.from_pretrained(folder, config=without_window(AutoConfig.from_pretrained(job.model)))
    assert abs(loss_of(blind, 200) / expected["base", 200] - 1) > 1e-4, "the window hides nothing here"
