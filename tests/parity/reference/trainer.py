"""Runs longspan-trainer as a child process and reads what it wrote."""

import copy
import json
import os
import pathlib
import subprocess

from safetensors.torch import save_file

from .tensors import read_tensors

TIMEOUT_S = 60


def binary():
    build = os.environ.get("LONGSPAN_BUILD_DIR")
    if not build:
        raise RuntimeError("LONGSPAN_BUILD_DIR is not set: the build folder whose bin/ holds longspan-trainer")
    path = pathlib.Path(build) / "bin" / "longspan-trainer"
    if not path.is_file():
        raise RuntimeError(f"{path} does not exist: build the trainer first (tests/run.sh does)")
    return path


def environment():
    # One thread: tests share the machine, and the thread count changes the last bits.
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def command(*arguments, timeout=TIMEOUT_S):
    """The finished process, with its output as text; a hang is an error of the test."""
    return subprocess.run(
        [str(binary()), *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )


def start(*arguments):
    """A running process, for the tests that interrupt one or start several; the caller waits for it."""
    return subprocess.Popen(
        [str(binary()), *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def report(done):
    return f"exit code {done.returncode}\n--- stdout\n{done.stdout[-4000:]}\n--- stderr\n{done.stderr[-4000:]}"


def merged_spec(base, changes):
    """`base` with the keys of `changes` laid over it, section by section; `...` takes a key away."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is ...:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged_spec(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def write_spec(spec, path):
    pathlib.Path(path).write_text(json.dumps(spec, indent=2, default=str))
    return path


def probe(spec, input_ids, labels, folder, document_ids=None):
    """{"loss", "logits", "grad.…"} of one probe; asserts that it succeeds."""
    tensors = {"input_ids": input_ids.contiguous()}
    if labels is not None:
        tensors["labels"] = labels.contiguous()
    if document_ids is not None:
        tensors["document_ids"] = document_ids.contiguous()
    save_file(tensors, folder / "in.safetensors")
    done = command(
        "probe", write_spec(spec, folder / "spec.json"),
        "--tokens", folder / "in.safetensors", "--out", folder / "out.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, report(done)
    return read_tensors(folder / "out.safetensors")
