"""What `longspan describe` and the run card show of a job that trains on instructions or chats."""

import json
import pathlib

from jobs import tiny_job

ESCAPE = "\x1b]0;owned\x07"


def test_one_record_is_shown_as_it_is_trained(make_cluster, source_dir, tmp_path):
    records = tmp_path / "records.jsonl"
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": f"Who spoke?{ESCAPE}"},
        {"role": "assistant", "content": "The king.\nAnd he spoke. " + "word " * 400},
    ]
    records.write_text((json.dumps({"messages": messages}) + "\n") * 8)
    spec = tiny_job(
        source_dir, "chats", steps=2, slots=1,
        data={"sources": [str(records)], "template": "llama2", "holdout_fraction": 0.25},
        output={"merged": False},
    )  # fmt: skip
    with make_cluster(workers=1) as cluster:
        job_id = cluster.submit(spec)
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        shown = cluster.cli("describe", job_id).stdout
        work = pathlib.Path(job["folder"])
    example = [
        "prompt | <s>[INST] <<SYS>>",
        "prompt | Be kind.",
        "prompt | <</SYS>>",
        "prompt | ",
        "prompt | Who spoke?\N{SYMBOL FOR ESCAPE}]0;owned\N{SYMBOL FOR BELL} [/INST]",
        "answer |  The king.",
    ]
    assert "One record as it is trained" in shown
    assert "\n".join("  " + line for line in example) + "\n" in shown
    assert " bytes ...] " in shown and "word </s>\n" in shown
    assert "\x1b" not in shown and "\x07" not in shown
    card = (work / "run_card.md").read_text()
    assert "Template `llama2`" in card
    assert "\n".join("    " + line for line in example) + "\n" in card
    assert "\x1b" not in card
    [dataset] = [artifact for artifact in job["artifacts"] if artifact["kind"] == "dataset"]
    assert dataset["excerpt"].startswith("\n".join(example) + "\n")
    assert all("excerpt" not in artifact or not artifact["excerpt"] for artifact in job["artifacts"] if artifact != dataset)
