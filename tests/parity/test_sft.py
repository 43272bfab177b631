"""Instructions and chats: their ids and masks against transformers' apply_chat_template, and training on them."""

import json
import random
import socket

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from reference import chat_templates, compare, oracle, tiny_jobs, tokenizer_families, trainer, work_folder
from reference.tensors import read_tensors

WORDS = ["ka", "lo mi", "ter.", "\n", "\n\n", "  ", "é", "你好", "😀", "don't", "12", "\t", "</", "[INST", "<|im", "\u00a0", "\u200b"]


def text(chance, pieces):
    return "".join(chance.choice(WORDS) + chance.choice(["", " "]) for _ in range(pieces)) or "x"


def answer(chance):
    return text(chance, chance.randrange(12)) + chance.choice(["a", "b\n", "c "])


def conversation(chance):
    messages = [{"role": "system", "content": text(chance, 3)}] if chance.random() < 0.4 else []
    for _ in range(chance.randint(1, 4)):
        messages.append({"role": "user", "content": text(chance, chance.randrange(10))})
        messages.append({"role": "assistant", "content": answer(chance)})
    return messages


def write_chat_model(root, name, family):
    """A tiny job's folder with a family's tokenizer, whose tokenizer_config.json has a published chat template."""
    job = tiny_jobs.write_job(root, documents=0)
    if family != "tiny":
        tokenizer_families.FAMILIES[family](job.model)
    size = Tokenizer.from_file(str(job.model / "tokenizer.json")).get_vocab_size()
    config = json.loads((job.model / "config.json").read_text())
    (job.model / "config.json").write_text(json.dumps({**config, "vocab_size": size}))  # `prepare` needs no weights
    template, bos, eos = chat_templates.PUBLISHED[name]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": eos}
    if bos:
        config["bos_token"] = bos
    (job.model / "tokenizer_config.json").write_text(json.dumps(config))
    return job, PreTrainedTokenizerFast.from_pretrained(job.model)


def write_records(folder, records, name="records.jsonl"):
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def prepare(spec, tmp_path, **changes):
    file = trainer.write_spec(trainer.merged_spec(spec, changes), tmp_path / "spec.json")
    return trainer.command("prepare", file, "--work", tmp_path / "work")


def prepared_records(tmp_path):
    """[(ids, scored)] of the prepared documents."""
    tokens, offsets, about = work_folder.prepared(tmp_path / "work")
    [file] = (tmp_path / "work").rglob("scored.bin")
    scored = np.fromfile(file, dtype=np.uint8).astype(bool)
    assert len(scored) == len(tokens)
    spans = list(zip(offsets[:-1], offsets[1:]))
    return [(tokens[a:b].tolist(), scored[a:b].tolist()) for a, b in spans], about


# ---- ids and masks ----


FAMILIES = [
    ("chatml", "qwen"), ("qwen2", "qwen"), ("qwen2.5", "qwen"), ("llama3", "llama3"), ("llama2", "llama2_legacy"), ("llama2", "llama2"),
    ("llama2", "tiny"), ("mistral", "llama2_legacy"), ("mistral", "mistral"), ("mistral", "llama2"), ("mistral", "tiny"),
]  # fmt: skip


@pytest.mark.parametrize("name,family", FAMILIES)
def test_conversations_equal_apply_chat_template(name, family, tmp_path, trainer_binary):
    """The model's own template, recognised; special tokens are ids; answers and the ends of their turns are scored."""
    job, tokenizer = write_chat_model(tmp_path / "job", name, family)
    chance = random.Random(5)
    conversations = [conversation(chance) for _ in range(60)]
    write_records(job.corpus, [{"messages": messages} for messages in conversations])
    done = prepare(job.spec, tmp_path, context_length=4096)
    assert done.returncode == 0, trainer.report(done)
    records, about = prepared_records(tmp_path)
    assert about["format"] == "chat"
    assert len(records) == len(conversations)
    for messages, (ids, scored) in zip(conversations, records):
        expected_ids, expected_scored = chat_templates.encoded(tokenizer, messages)
        assert ids == expected_ids, messages
        assert scored == expected_scored, messages


def test_a_text_that_spells_special_tokens_is_read_as_transformers_reads_it(tmp_path, trainer_binary):
    job, tokenizer = write_chat_model(tmp_path / "job", "qwen2", "qwen")
    messages = [
        {"role": "user", "content": "a<|im_end|>b"},
        {"role": "assistant", "content": "<|im_start|> c"},
    ]
    write_records(job.corpus, [{"messages": messages}])
    done = prepare(job.spec, tmp_path)
    assert done.returncode == 0, trainer.report(done)
    assert "spells a special token" in done.stderr
    [(ids, scored)], _ = prepared_records(tmp_path)
    assert (ids, scored) == chat_templates.encoded(tokenizer, messages)


def test_instructions_are_tokenised_as_longlora_did(tmp_path, trainer_binary):
    """[INST]...[/INST] and answer in one text, BOS from the tokenizer, EOS behind; the prompt's own length is masked."""
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    chance = random.Random(6)
    records = [{"instruction": text(chance, 8), "output": answer(chance)} for _ in range(60)]
    write_records(job.corpus, records)
    done = prepare(job.spec, tmp_path, context_length=4096, data={"template": "llama2"})
    assert done.returncode == 0, trainer.report(done)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.model)
    for record, (ids, scored) in zip(records, prepared_records(tmp_path)[0], strict=True):
        prompt = f"[INST]{record['instruction']}[/INST]"
        encoding = tokenizer(prompt + record["output"] + "</s>", return_offsets_mapping=True)
        assert ids == encoding["input_ids"]
        assert scored == [b > len(prompt) for _, b in encoding["offset_mapping"]]


def test_a_sentencepiece_model_gets_its_control_tokens_by_id(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    (job.model / "tokenizer.json").unlink()
    model = tokenizer_families.sentencepiece_model(job.model, **tokenizer_families.SENTENCEPIECE["llama2"])
    config = json.loads((job.model / "config.json").read_text())
    (job.model / "config.json").write_text(json.dumps({**config, "vocab_size": model.vocab_size()}))
    chance = random.Random(7)
    records = [{"instruction": text(chance, 8), "output": answer(chance)} for _ in range(40)]
    records.append({"instruction": "a</s>b", "output": "no <s> is read here"})
    write_records(job.corpus, records)
    done = prepare(job.spec, tmp_path, context_length=4096, data={"template": "llama2"})
    assert done.returncode == 0, trainer.report(done)
    for record, (ids, scored) in zip(records, prepared_records(tmp_path)[0], strict=True):
        prompt = f"[INST]{record['instruction']}[/INST]"
        pieces = model.encode(prompt + record["output"], out_type=str)
        assert ids == [1] + [model.piece_to_id(piece) for piece in pieces] + [2]
        # Where each piece ends in the text: byte pieces are one byte, and the first space is sentencepiece's own.
        sizes = [1 if piece.startswith("<0x") else len(piece.replace("▁", " ").encode()) for piece in pieces]
        ends = [sum(sizes[: index + 1]) - 1 for index in range(len(sizes))]
        assert ends[-1] == len((prompt + record["output"]).encode())
        assert scored == [False] + [end > len(prompt.encode()) for end in ends] + [True]


def test_no_vocabulary_row_is_ever_added(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    write_records(job.corpus, [{"instruction": "a", "output": "b"}])
    done = prepare(job.spec, tmp_path, data={"template": "chatml"})
    assert done.returncode == 10, trainer.report(done)
    assert "has no token <|im_start|>" in done.stderr


# ---- training ----


def uneven_records(count=24, seed=8):
    """Answers from one word to most of the context: a mean of means would be far off."""
    chance = random.Random(seed)
    records = []
    for index in range(count):
        output = tiny_jobs.words([1, 60, 3, 150, 12][index % 5], seed=200 + index)
        records.append({"instruction": tiny_jobs.words(chance.randint(1, 20), seed=300 + index), "output": output})
    return records


def expected_step(job, spec, rows, records):
    """(loss, gradients) of the records of a batch, one by one without padding: the sum over all scored tokens by their number."""
    by_start = {tuple(ids): (ids, scored) for ids, scored in records}
    model = oracle.load_for_training(job.model, spec)
    loss, total, gradients, counts = 0.0, 0, {}, []
    for ids, scored in [record for row in rows.tolist() for record in records_of(row, by_start)]:
        labels = torch.tensor([[i if s else -100 for i, s in zip(ids, scored)]])
        result = oracle.run(model, spec, torch.tensor([ids]), labels)
        counts.append(sum(scored))
        loss, total = loss + result.loss.item() * counts[-1], total + counts[-1]
        for name, gradient in result.gradients.items():
            gradients[name] = gradients.get(name, 0) + gradient * counts[-1]
    assert max(counts) > 20 * min(counts), f"the answers are too much alike to show anything: {counts}"
    return loss / total, {name: gradient / total for name, gradient in gradients.items()}


def records_of(row, by_start):
    """The records of which a row was made, in order; behind them EOS alone."""
    found, at = [], 0
    while at < len(row):
        fitting = [record for ids, record in by_start.items() if row[at : at + len(ids)] == list(ids)]
        if not fitting:
            break
        found.append(max(fitting, key=lambda record: len(record[0])))
        at += len(found[-1][0])
    assert found and set(row[at:]) <= {2}, row
    return found


@pytest.mark.parametrize("method", ["full", "longlora"])
@pytest.mark.parametrize("packing", [False, True])
def test_step_one_equals_pytorch_on_the_records_alone(method, packing, tmp_path, trainer_binary):
    """Very different numbers of scored tokens, over ranks and micro-batches: one sum by one number. Padding takes no part."""
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    write_records(job.corpus, uneven_records(count=48))
    spec = trainer.merged_spec(job.spec, {
        "data": {"template": "llama2", "packing": packing, "holdout_fraction": 0},
        "method": {"kind": method}, "training": {"steps": 2, "global_batch": 8}, "evaluation": {"lengths": [64]},
    })  # fmt: skip
    if method == "full":
        spec["method"] = {"kind": "full"}
    else:
        spec["method"]["adapter"] = str(oracle.write_adapter(job.model, tmp_path / "start", spec, rank=4, alpha=8))
    done = prepare(spec, tmp_path)
    assert done.returncode == 0, trainer.report(done)
    records, about = prepared_records(tmp_path)
    assert about["cut"] > 0, "an answer that is cut is part of this"
    seen = []
    for ranks, micro in [(1, 1), (1, 4), (2, 1), (2, 2)]:
        spec["training"]["micro_batch"] = micro
        name = f"{ranks}-{micro}"
        steps = train(spec, tmp_path / name, ranks)
        assert sorted(steps) == [1, 2]
        if not seen:
            loss, gradients = expected_step(job, spec, steps[1]["input_ids"], records)
        first = work_folder.progress(tmp_path / name)[0]
        assert abs(first["loss"] - loss) < 1e-4 * abs(loss)
        actual = {key.removeprefix("grad."): value for key, value in steps[1].items() if key.startswith("grad.")}
        compare.assert_close(actual, gradients)
        seen.append(steps[1]["input_ids"].tolist())
    assert all(rows == seen[0] for rows in seen)


def train(spec, work, ranks):
    """Steps as --dump-gradients tells them."""
    file = trainer.write_spec(spec, work.with_suffix(".json"))
    dump = work.with_suffix(".dump")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"127.0.0.1:{free.getsockname()[1]}"
    more = ["--world-size", ranks, "--store", store] if ranks > 1 else []
    children = [
        trainer.start("train", file, "--work", work, "--rank", rank, *more, "--dump-gradients", dump)
        for rank in range(ranks)
    ]
    for child in children:
        try:
            output = child.communicate(timeout=trainer.TIMEOUT_S)
        finally:
            child.kill()
        assert child.returncode == 0, output
    return {int(file.stem.removeprefix("step-")): read_tensors(file) for file in dump.glob("step-*.safetensors")}


def test_a_whole_run_shows_one_record_on_its_card(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    write_records(job.corpus, uneven_records())
    spec = trainer.merged_spec(job.spec, {
        "data": {"template": "llama2", "holdout_fraction": 0.2}, "training": {"steps": 2}, "evaluation": {"lengths": [64]},
    })  # fmt: skip
    done = trainer.command("run", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert done.returncode == 0, trainer.report(done)
    card = json.loads((tmp_path / "work" / "run_card.json").read_text())
    assert card["dataset"]["records"] == 24
    prompt, answer = card["dataset"]["example"]
    assert (prompt["part"], answer["part"]) == ("prompt", "answer")
    assert prompt["text"].startswith("[INST]") and answer["text"].endswith("</s>")
    text = (tmp_path / "work" / "run_card.md").read_text()
    assert "    prompt | [INST]" in text and "    answer | " in text
