"""Reads a job's folder as the trainer leaves it."""

import json

import numpy as np

from .tensors import read_tensors


def progress(work):
    """One dict a step, in order, with the values flat."""
    lines = [json.loads(line) for line in (work / "progress.jsonl").read_text().splitlines() if line.strip()]
    flat = [{**line, **line.get("values", {})} for line in lines]
    return [line for line in flat if "loss" in line and "step" in line and line.get("phase", "train") == "train"]


def checkpoints(work):
    """Complete checkpoint folders by step: those with a manifest."""
    found = {}
    for folder in sorted((work / "checkpoints").glob("step-*")):
        if (folder / "MANIFEST.json").is_file():
            found[int(folder.name.split(".")[0].removeprefix("step-"))] = folder
    return found


def checkpoint_tensors(folder):
    """{"file:name": tensor} over all safetensors files: adapter or model, optimizer moments, masters."""
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(file).items()
    }


def prepared(work):
    """(tokens, offsets of the documents) of the data that dataset.json names."""
    named = json.loads((work / "dataset.json").read_text())
    [folder] = {file.parent for root in (work, work.parent) for file in root.rglob("tokens.bin")}
    del named
    description = json.loads((folder / "dataset.json").read_text())
    offsets = np.fromfile(folder / "documents.bin", dtype=np.uint64).astype(np.int64)
    size = (folder / "tokens.bin").stat().st_size // max(int(offsets[-1]), 1)
    tokens = np.fromfile(folder / "tokens.bin", dtype={2: np.uint16, 4: np.uint32}[size]).astype(np.int64)
    return tokens, offsets, description
