"""`prepare` against the tokenizers package: the ids of every document, with BOS and EOS, one after another."""

import json
import os
import random

import pytest
from tokenizers import Tokenizer

from reference import tiny_jobs, trainer, work_folder

PIECES = [
    "don't", "It's", "WE'LL", " \n", "\r\n", "\t", "  ", "   ", "1234", "٣٤", "Ⅷ", "ß", "ﬁ", "é", "e\u0301", "你好", "日本語",
    "😀", "👨‍👩‍👧", "\u200b", "\u00a0", "\u3000", "\ufeff", "…", "—", "<s>", "</s>", "<unk>", "ka", "lo", "mi", "...", "!?", "\u0000",
    "\U0010ffff", "ǅ", "\u180e", "a\u0300\u0301", "İ", "x_y", "http://a.b/c?d=e", "\x7f", "\u2028",
]  # fmt: skip


def random_text(chance, pieces):
    text = []
    for _ in range(pieces):
        if chance.random() < 0.5:
            text.append(chance.choice(PIECES))
        elif chance.random() < 0.5:
            text.append(chance.choice(["ka", "lo mi", " ter", "an", "su "]))
        else:
            code = chance.randrange(0x110000)
            text.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(text)


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_ids_equal_those_of_the_tokenizers_package(form, tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    chance = random.Random(2024)
    texts = [random_text(chance, 400) for _ in range(12)] + [tiny_jobs.words(600, seed=9)]
    if form == "txt":
        for index, text in enumerate(texts):
            (job.corpus / f"{index:03}.txt").write_bytes(text.encode())
    else:
        lines = (json.dumps({"text": text}, ensure_ascii=index % 2 == 0) for index, text in enumerate(texts))
        (job.corpus / "records.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    spec = trainer.write_spec(job.spec, tmp_path / "spec.json")
    done = trainer.command("prepare", spec, "--work", tmp_path / "work")
    assert done.returncode == 0, trainer.report(done)
    tokens, offsets, _ = work_folder.prepared(tmp_path / "work")
    tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
    expected = [tokenizer.encode(text).ids + [2] for text in texts]
    assert len(offsets) == len(texts) + 1
    for index, ids in enumerate(expected):
        assert tokens[offsets[index] : offsets[index + 1]].tolist() == ids, f"document {index}"


def peak_memory_bytes(job, tmp_path, name, copies):
    """Of `prepare` over a corpus of so many copies of some megabyte: one text, and as many lines."""
    text = tiny_jobs.words(130_000, seed=3)
    with (job.corpus / "text.txt").open("w") as file:
        for _ in range(copies):
            file.write(text)
    with (job.corpus / "lines.jsonl").open("w") as file:
        for _ in range(copies):
            file.writelines(json.dumps({"text": line}) + "\n" for line in text.splitlines())
    spec = trainer.merged_spec(job.spec, {"resources": {"threads_per_slot": 2}, "data": {"holdout_fraction": 0}})
    file = trainer.write_spec(spec, tmp_path / f"{name}.json")
    child = trainer.start("prepare", file, "--work", tmp_path / name)
    output = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, output
    return usage.ru_maxrss * 1024


def test_memory_does_not_grow_with_the_corpus(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", documents=0)
    small = peak_memory_bytes(job, tmp_path, "small", copies=4)
    large = peak_memory_bytes(job, tmp_path, "large", copies=40)
    corpus = sum(file.stat().st_size for file in job.corpus.iterdir())
    assert corpus > 60e6
    assert large - small < 24e6, f"{small / 1e6:.0f} MB for a tenth of the corpus, {large / 1e6:.0f} MB for {corpus / 1e6:.0f} MB"
