"""A job that ran to its end, and the ways in which its results are read: as a user would, and as files."""

import json
import re

import torch

from . import tiny_jobs, trainer, work_folder
from .tensors import read_tensors


class ExportedJob:
    """`commands`: of the trainer, in their order; by default all phases in one process."""

    def __init__(self, root, tiny, commands=("run",), **changes):
        self.job = tiny_jobs.write_job(root, tiny, **changes)
        self.tiny = tiny
        self.work = root / "work"
        spec = trainer.write_spec(self.job.spec, root / "spec.json")
        for command in commands:
            done = trainer.command(command, spec, "--work", self.work)
            assert done.returncode == 0, f"{command}: {trainer.report(done)}"
        self.method = self.job.spec["method"]["kind"]

    def base_tensors(self):
        return folder_tensors(self.job.model)

    def merged_tensors(self):
        return folder_tensors(self.work / "merged")


def folder_tensors(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in read_tensors(file).items()}


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.float()


def documented_lines(readme):
    """The one block of Python that the adapter's README shows."""
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1, f"{len(blocks)} blocks of Python in {readme}"
    return blocks[0]


def load_as_documented(folder, monkeypatch):
    """Runs the README's lines as they stand, in the adapter's folder, as a user would paste them."""
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(documented_lines(folder / "README.md"), str(folder / "README.md"), "exec"), names)
    return names["model"]


def fp32(model):
    return model.to(torch.float32)


def evaluation_rows(work):
    """{(model, length): row} of evaluation.json, wherever its list of rows stands."""
    document = json.loads((work / "evaluation.json").read_text())
    rows = document if isinstance(document, list) else next(v for v in document.values() if isinstance(v, list))
    return {(row["model"], row["length"]): row for row in rows}


def held_out_stream(work):
    """The held-out tokens: of a single document its tail, as many as dataset.json says."""
    tokens, offsets, _ = work_folder.prepared(work)
    assert len(offsets) == 2
    count = json.loads((work / "dataset.json").read_text())["holdout"]["tokens"]
    return torch.from_numpy(tokens[len(tokens) - count :].copy())
