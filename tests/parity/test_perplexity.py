"""Perplexity by the paper's protocol, and of a bounded text, against transformers window by window."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from reference import tiny_jobs, trainer, work_folder
from reference.tiny_models import TinyModel
from test_export import evaluation_rows, held_out_stream, logits_of

STRIDE = 256  # tokens from one window of the paper to the next
LENGTHS = [64, 300]  # shorter and longer than the stride

# Keys of `evaluation`.
PLANS = {
    "paper": {"protocol": "paper", "max_tokens": 0},
    "paper_bounded": {"protocol": "paper", "max_tokens": 300 + 2 * STRIDE - 1},
    "windows_bounded": {"protocol": "windows", "max_tokens": 650},
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, trainer_binary):
    """(job, work folder) of a job whose evaluation ran under a plan; trained once, evaluated anew for each."""
    root = tmp_path_factory.mktemp("perplexity")
    job = tiny_jobs.write_job(
        root, TinyModel(), documents=1, words_each=4200, data={"holdout_fraction": 0.2},
        training={"steps": 2}, evaluation={"lengths": LENGTHS, "every_steps": 1, **PLANS["paper"]},
    )  # fmt: skip
    work, last = root / "work", []

    def get(name):
        if last != [name]:
            spec = trainer.merged_spec(job.spec, {"evaluation": PLANS[name]})
            path = trainer.write_spec(spec, root / "spec.json")
            for command in ("evaluate", "export") if last else ("run",):
                done = trainer.command(command, path, "--work", work)
                assert done.returncode == 0, trainer.report(done)
            last[:] = [name]
        return job, work

    return get


def windows_of(stream, length, plan):
    """(n, length): where the protocol cuts the text."""
    text = stream[: plan["max_tokens"] or None]
    step = STRIDE if plan["protocol"] == "paper" else length
    return torch.stack([text[start : start + length] for start in range(0, len(text) - length + 1, step)])


def mean_of_window_means(model, windows):
    losses = []
    for window in windows:
        logits = logits_of(model, window[None])[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:]).double().item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", PLANS)
def test_rows_are_transformers_own(name, evaluated):
    job, work = evaluated(name)
    stream, plan = held_out_stream(work), PLANS[name]
    assert len(stream) > 1000
    rescaled = AutoConfig.from_pretrained(work / "adapter" / "extended_config")
    models = {
        "base": AutoModelForCausalLM.from_pretrained(job.model),
        "rescaled": AutoModelForCausalLM.from_pretrained(job.model, config=rescaled),
        "extended": AutoModelForCausalLM.from_pretrained(work / "merged"),
    }
    rows = evaluation_rows(work)
    assert set(rows) == {(model, length) for model in models for length in LENGTHS}
    for (model, length), row in rows.items():
        windows = windows_of(stream, length, plan)
        assert (row["protocol"], row["windows"]) == (plan["protocol"], len(windows))
        assert row["tokens"] == len(windows) * (length - 1)
        assert row["loss"] == pytest.approx(mean_of_window_means(models[model], windows), rel=1e-5), (model, length)
        assert row["perplexity"] == pytest.approx(torch.tensor(row["loss"]).exp().item(), rel=1e-5)


def test_every_result_names_the_protocol(evaluated):
    _, work = evaluated("paper_bounded")
    assert json.loads((work / "evaluation.json").read_text())["protocol"] == "paper"
    assert "protocol `paper`" in (work / "run_card.md").read_text()
    lines = [json.loads(line) for line in (work / "progress.jsonl").read_text().splitlines()]
    during = [line for line in lines if line.get("phase") == "evaluate"]
    assert [line["length"] for line in during] == LENGTHS and {line["protocol"] for line in during} == {"paper"}
    assert work_folder.checkpoints(work)


def test_a_limit_below_the_windows_is_refused(evaluated, tmp_path):
    job, _ = evaluated("paper_bounded")
    spec = trainer.merged_spec(job.spec, {"evaluation": {"max_tokens": 299}})
    done = trainer.command("prepare", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", tmp_path / "work")
    assert done.returncode == 2 and "evaluation.max_tokens" in done.stderr + done.stdout, trainer.report(done)
