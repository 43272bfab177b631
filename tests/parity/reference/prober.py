"""Many probes by one process: what `longspan-trainer probe` runs, without a start of a third of a second for each.

For matrices of cases. That the program itself does the same is what test_probe.py shows, which starts it every time.
"""

import json
import os
import pathlib
import select
import subprocess
import tempfile

from safetensors.torch import save_file

from . import trainer
from .tensors import read_tensors


class ProbeError(Exception):
    """The words with which a probe was refused."""


class Prober:
    """Owns the process and the folder through which it talks; closed by the end of a `with`. One probe at a time."""

    def __init__(self):
        program = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-probes"
        if not program.is_file():
            raise RuntimeError(f"{program} does not exist: build it first (tests/run.sh does)")
        # In memory where that is possible: the trainer syncs what it writes, and a disk takes longer for it than the probe itself.
        memory = pathlib.Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
        self._process = subprocess.Popen(
            [program], env=trainer.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._folder.cleanup()
        self._process.stdin.close()
        assert self._process.wait(timeout=trainer.TIMEOUT_S) == 0

    def probe(self, spec, input_ids, document_ids=None):
        """{"loss", "logits", "grad.…"}; ProbeError when the trainer refuses."""
        folder = pathlib.Path(self._folder.name)
        tensors = {"input_ids": input_ids.contiguous()}
        if document_ids is not None:
            tensors["document_ids"] = document_ids.contiguous()
        save_file(tensors, folder / "in.safetensors")
        request = {
            "spec": str(trainer.write_spec(spec, folder / "spec.json")),
            "tokens": str(folder / "in.safetensors"),
            "out": str(folder / "out.safetensors"),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        # One line an answer, so nothing is left in the buffer that `select` does not see.
        ready, _, _ = select.select([self._process.stdout], [], [], trainer.TIMEOUT_S)
        assert ready, f"no answer within {trainer.TIMEOUT_S} s"
        line = self._process.stdout.readline()
        assert line, f"longspan-probes ended with {self._process.wait(timeout=trainer.TIMEOUT_S)}"
        answer = json.loads(line)
        if "error" in answer:
            raise ProbeError(answer["error"])
        result = read_tensors(folder / "out.safetensors")
        result["loss"] = result["loss"].reshape(())
        return result
