"""Jobs of kind evaluate, and the tasks of an extension: what they measure against transformers and PEFT."""

import dataclasses
import json
import shutil

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from reference import chat_templates, oracle, tiny_jobs, tiny_models, trainer, work_folder

CONTEXT = 448
HOTPOTQA = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the "
    "answer and do not output any other words.\n\nQuestion: {input}\nAnswer:"
)


def run(spec, folder, *flags, code=0, command="run"):
    folder.mkdir(parents=True, exist_ok=True)
    done = trainer.command(command, trainer.write_spec(spec, folder / "spec.json"), "--work", folder / "work", *flags)
    assert done.returncode == code, trainer.report(done)
    return done


def document(folder):
    return json.loads((folder / "work" / "evaluation.json").read_text())


def answers(folder, model, task):
    path = folder / "work" / "evaluation" / model / f"{task}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny model with its tokenizer and corpus, and one evaluation of everything."""
    root = tmp_path_factory.mktemp("evaluate")
    tiny = dataclasses.replace(tiny_models.TinyModel(), max_position=CONTEXT, seed=6)
    made = tiny_jobs.write_job(root / "job", tiny, documents=1, words_each=400)
    examples = [
        {"input": "ka lo?", "context": tiny_jobs.words(40, 1), "answers": ["mi ter", "ka"], "all_classes": None, "_id": "a"},
        {"input": "su rel?", "context": tiny_jobs.words(900, 2), "answers": ["ov"], "all_classes": None, "_id": "b"},
        {"input": "an?", "context": "", "answers": ["qua den pi"], "all_classes": None, "_id": "c"},
    ]
    write_lines(root / "longbench" / "hotpotqa.jsonl", examples)
    write_lines(root / "questions.jsonl", [
        {"question_id": 81, "category": "writing", "turns": ["ka lo mi", "ter an?"]},
        {"question_id": 82, "category": "maths", "turns": ["su rel ov qua"]},
    ])  # fmt: skip
    spec = {
        "kind": "evaluate",
        "name": "measure",
        "model": {"path": str(made.model)},
        "data": {"sources": [str(made.corpus)]},
        "training": {"dtype": "fp32", "seed": 3},
        "evaluation": {
            "lengths": [64, 128],
            "passkey": {"lengths": [400, CONTEXT], "depths": 3, "trials": 2},
            "topics": {"lengths": [CONTEXT], "topics": 2, "trials": 2},
            "longbench": {"path": str(root / "longbench")},
            "conversations": {"path": str(root / "questions.jsonl"), "max_new_tokens": 24},
            "generation": {"batch": 2},
        },
    }
    run(spec, root)
    return root, made, spec, examples


def greedy(model, ids, new_tokens, end=2):
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = end
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False)
    return out[0, len(ids) :].tolist()


def cut(ids, most):
    half = most // 2
    return ids if len(ids) <= most else ids[:half] + ids[-half:]


def test_all_of_the_text_is_measured_and_perplexity_is_transformers_own(job):
    root, made, _, _ = job
    rows = {(row["model"], row["length"]): row for row in document(root)["rows"]}
    assert set(rows) == {("base", 64), ("base", 128)}
    tokens, _, _ = work_folder.prepared(root / "work")
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()
    for (_, length), row in rows.items():
        count = len(tokens) // length
        windows = torch.from_numpy(tokens[: count * length].reshape(count, length).astype("int64"))
        with torch.no_grad():
            logits = model(windows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1))
        assert row["tokens"] == count * (length - 1)
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_longbench_answers_are_transformers_greedy_ones(job):
    root, made, _, examples = job
    tokenizer = Tokenizer.from_file(str(made.model / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()
    lines = answers(root, "base", "longbench/hotpotqa")
    assert [line["cut"] for line in lines] == [False, True, False]
    for line, example in zip(lines, examples, strict=True):
        prompt = HOTPOTQA.replace("{input}", example["input"]).replace("{context}", example["context"])
        ids = cut(tokenizer.encode(prompt).ids, CONTEXT - 32)
        assert line["length"] == len(ids)
        assert line["pred"] == tokenizer.decode(greedy(model, ids, 32), skip_special_tokens=True)
        assert (line["answers"], line["_id"]) == (example["answers"], example["_id"])
    row = next(row for row in document(root)["tasks"] if row["task"] == "longbench/hotpotqa")
    assert row["score"] == pytest.approx(100 * sum(line["score"] for line in lines) / 3)
    assert (row["examples"], row["cut"], row["measure"]) == (3, 1, "qa_f1")


def test_conversations_are_answered_turn_by_turn(job):
    root, made, _, _ = job
    tokenizer = Tokenizer.from_file(str(made.model / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()

    def said(prompt):
        text = tokenizer.decode(greedy(model, cut(tokenizer.encode(prompt).ids, CONTEXT - 24), 24), skip_special_tokens=True)
        return text.split("\nUSER:")[0].lstrip(" ")

    first, second = answers(root, "base", "conversations")
    one = said("USER: ka lo mi\nASSISTANT:")
    two = said(f"USER: ka lo mi\nASSISTANT: {one}\nUSER: ter an?\nASSISTANT:")
    assert first["question_id"] == 81 and first["choices"] == [{"index": 0, "turns": [one, two]}]
    assert second["question_id"] == 82 and second["choices"][0]["turns"] == [said("USER: su rel ov qua\nASSISTANT:")]
    text = (root / "work" / "evaluation.md").read_text()
    assert "no judge is included" in text and "## LongBench" in text and "passkey-base.svg" in text


def test_a_template_asks_as_transformers_and_longbench_do(job, tmp_path):
    """The model's own template (Llama 2's): turns as apply_chat_template writes them; LongBench's prompt in [INST]...[/INST], as its
    program asks Llama 2 chat models, save for the tasks that it never asks so."""
    _, made, spec, examples = job
    model_folder = tmp_path / "model"
    shutil.copytree(made.model, model_folder)
    template, bos, eos = chat_templates.PUBLISHED["llama2"]
    (model_folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "bos_token": bos, "eos_token": eos}
    ))  # fmt: skip
    for task in ("hotpotqa", "trec"):
        write_lines(tmp_path / "longbench" / f"{task}.jsonl", [{**example, "all_classes": ["ka"]} for example in examples])
    evaluation = {
        "template": "model",
        "longbench": {"path": str(tmp_path / "longbench")},
        "conversations": spec["evaluation"]["conversations"],
    }
    run({**spec, "model": {"path": str(model_folder)}, "data": {}, "evaluation": evaluation}, tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    end = tokenizer.convert_tokens_to_ids(eos)

    def said(ids, most):
        return tokenizer.decode(greedy(model, cut(ids, CONTEXT - most), most, end), skip_special_tokens=True)

    for line, example in zip(answers(tmp_path, "base", "longbench/hotpotqa"), examples, strict=True):
        prompt = HOTPOTQA.replace("{input}", example["input"]).replace("{context}", example["context"])
        ids = tokenizer(f"[INST]{prompt}[/INST]")["input_ids"]
        assert line["length"] == len(cut(ids, CONTEXT - 32))
        assert line["pred"] == said(ids, 32)
    messages, [first, _] = [], answers(tmp_path, "base", "conversations")
    for question, answer in zip(["ka lo mi", "ter an?"], first["choices"][0]["turns"], strict=True):
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert answer == said(tokenizer(text, add_special_tokens=False)["input_ids"], 24).lstrip(" ")
        messages.append({"role": "assistant", "content": answer})
    rows = {row["task"]: row for row in document(tmp_path)["tasks"]}
    assert rows["longbench/hotpotqa"]["template"] == rows["conversations"]["template"] == "llama2"
    assert "template" not in rows["longbench/trec"]
    assert "Asked in the chat template `llama2`" in (tmp_path / "work" / "evaluation.md").read_text()


def test_passkeys_stand_at_their_depths_and_answers_are_greedy(job):
    root, made, _, _ = job
    tokenizer = Tokenizer.from_file(str(made.model / "tokenizer.json"))
    rows = [row for row in document(root)["tasks"] if row["task"] == "passkey"]
    assert [row["length"] for row in rows] == [400, CONTEXT]
    for row in rows:
        assert [depth["depth"] for depth in row["depths"]] == [0, 0.5, 1] and row["examples"] == 6
        lines = answers(root, "base", f"passkey-{row['length']}")
        assert row["score"] == pytest.approx(100 * sum(line["right"] for line in lines) / 6)
        assert len({line["key"] for line in lines}) == 6
        assert all(row["length"] - 40 < line["prompt_tokens"] < row["length"] for line in lines)
    assert (root / "work" / "passkey-base.svg").read_text().startswith("<svg")
    assert tokenizer.get_vocab_size() > 0


def test_nothing_is_trained_or_exported_and_a_second_run_changes_nothing(job):
    root, _, spec, _ = job
    work = root / "work"
    unwanted = ("checkpoints", "adapter", "merged", "run_card.json", "progress.jsonl")
    assert not any((work / name).exists() for name in unwanted)
    # dataset.json says which prepared data the job has, and is written by every preparation.
    files = [path for path in work.rglob("*") if path.is_file() and path != work / "dataset.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    run(spec, root)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_lost_table_is_made_again_from_the_tasks_that_are_whole(job):
    root, _, spec, _ = job
    work = root / "work"
    old = document(root)
    (work / "evaluation.json").unlink()
    (work / "evaluation" / "base" / "topics-448.json").unlink()
    kept = work / "evaluation" / "base" / "passkey-400.json"
    before = kept.stat().st_mtime_ns
    run(spec, root)
    assert kept.stat().st_mtime_ns == before
    assert document(root) == old


def test_two_ranks_give_the_same_answers(job, tmp_path):
    root, _, spec, _ = job
    path = trainer.write_spec(spec, tmp_path / "spec.json")
    # Both take a free port of the test's own choosing.
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"127.0.0.1:{free.getsockname()[1]}"
    ranks = [
        trainer.start("run", path, "--work", tmp_path / "work", "--rank", rank, "--world-size", 2, "--store", store)
        for rank in range(2)
    ]
    outs = [rank.communicate(timeout=trainer.TIMEOUT_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outs
    ours, theirs = document(tmp_path), document(root)
    for row in ours["tasks"]:
        assert row in theirs["tasks"]
    for task in ("longbench/hotpotqa", "passkey-400", "conversations"):
        assert answers(tmp_path, "base", task) == answers(root, "base", task)


@pytest.mark.parametrize("method", ["lora", "longlora"])
def test_an_adapter_gives_base_rescaled_and_extended(method, job, tmp_path):
    root, made, spec, _ = job
    own = trainer.merged_spec(
        spec, {"context_length": 2 * CONTEXT, "method": {"kind": method}, "evaluation": {"lengths": [96]}}
    )
    own["rope"] = {"kind": "linear"}  # without it an evaluation leaves the model's positions alone
    own["evaluation"] = {"lengths": [96], "passkey": {"lengths": [400], "depths": 2, "trials": 1}}
    adapter = oracle.write_adapter(made.model, tmp_path / "adapter", own)
    own["method"]["adapter"] = str(adapter)
    run(own, tmp_path)
    tokens, _, _ = work_folder.prepared(tmp_path / "work")
    count = len(tokens) // 96
    windows = torch.from_numpy(tokens[: count * 96].reshape(count, 96).astype("int64"))
    config = oracle.extended_config(made.model, own["context_length"])

    def loss(model):
        with torch.no_grad():
            logits = model(windows).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]), windows[:, 1:].reshape(-1)
        ).item()

    rows = {row["model"]: row["loss"] for row in document(tmp_path)["rows"]}
    base = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32).eval()
    rescaled = AutoModelForCausalLM.from_pretrained(made.model, config=config, dtype=torch.float32).eval()
    assert rows["base"] == pytest.approx(loss(base), rel=1e-5)
    assert rows["rescaled"] == pytest.approx(loss(rescaled), rel=1e-5)
    extended = PeftModel.from_pretrained(rescaled, adapter, autocast_adapter_dtype=False).eval()
    assert rows["extended"] == pytest.approx(loss(extended), rel=1e-5)
    assert [row["model"] for row in document(tmp_path)["tasks"]] == ["base", "rescaled", "extended"]


@pytest.mark.parametrize("method", ["longlora", "full"])
def test_an_extension_runs_its_tasks_in_the_evaluate_phase(method, tmp_path):
    made = tiny_jobs.write_job(
        tmp_path / "job", method={"kind": method} if method != "full" else {"kind": "full", "rank": ..., "alpha": ...},
        training={"steps": 2}, evaluation={"passkey": {"lengths": [360], "depths": 2, "trials": 1}},
    )  # fmt: skip
    run(made.spec, tmp_path)
    rows = document(tmp_path)["tasks"]
    assert [(row["model"], row["task"], row["step"]) for row in rows] == [
        (model, "passkey", 2) for model in ("base", "rescaled", "extended")
    ]
    assert (tmp_path / "work" / "merged" / "config.json").exists()


@pytest.mark.parametrize(
    "changes, code, word",
    [
        ({"evaluation": ..., "data": ...}, 2, "nothing to measure"),
        ({"evaluation": {"longbench": {"path": "/nowhere"}}}, 10, "no folder"),
        ({"evaluation": {"longbench": {"tasks": ["dureader"]}}}, 10, "segmenter"),
        ({"evaluation": {"longbench": {"tasks": ["nonsense"]}}}, 10, "no task nonsense"),
        ({"evaluation": {"conversations": {"path": "/nowhere.jsonl"}}}, 10, "cannot read"),
        ({"evaluation": {"conversations": {"max_new_tokens": 4096}}}, 10, "no room"),
        ({"model": {"init": "random"}}, 2, "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_the_users_mistake(changes, code, word, job, tmp_path):
    _, _, spec, _ = job
    done = run(trainer.merged_spec(spec, changes), tmp_path, code=code)
    assert word in done.stderr


@pytest.mark.parametrize("command", ["train", "export"])
def test_an_evaluation_neither_trains_nor_exports(command, job, tmp_path):
    _, _, spec, _ = job
    done = run(spec, tmp_path, code=2, command=command)
    assert "trains nothing" in done.stderr
