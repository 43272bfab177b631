"""Child processes that train one step for every line they are sent, and answer each with a line of JSON.

Two programs speak so: `longspan-trainer measure` and transformers_side.py. They live through all rounds and wait in between, so that
several can be measured in turn: what else the machine does falls on all of them.
"""

import json
import os
import pathlib
import re
import select
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
STEP_SECONDS_MAX = 1800


def trainer():
    """LONGSPAN_BIN_DIR, else LONGSPAN_BUILD_DIR/bin, else build/release/bin of the clone."""
    build = os.environ.get("LONGSPAN_BUILD_DIR") or FOLDER.parents[1] / "build" / "release"
    path = pathlib.Path(os.environ.get("LONGSPAN_BIN_DIR") or pathlib.Path(build) / "bin") / "longspan-trainer"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: build longspan-trainer first, or set LONGSPAN_BIN_DIR")
    return path


class ChildFailed(RuntimeError):
    pass


class Stepper:
    """One child; `hello` is its first line. Ends with its `with` block."""

    def __init__(self, name, command, log, threads, hello=True):
        self.name, self._log = name, pathlib.Path(log)
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive",
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with open(self._log, "wb") as errors:
            self._child = subprocess.Popen(
                [str(word) for word in command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, bufsize=0,
            )  # fmt: skip
        self.hello = self.answer() if hello else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._child.stdin.close()
        try:
            self._child.wait(60)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()

    def send(self, line="step"):
        self._child.stdin.write(line.encode() + b"\n")

    def answer(self):
        ready, _, _ = select.select([self._child.stdout], [], [], STEP_SECONDS_MAX)
        line = self._child.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        what = "ended" if ready else f"has not answered for {STEP_SECONDS_MAX} s"
        raise ChildFailed(f"{self.name} {what}:\n{self.log()[-2000:]}")

    def step(self, line="step"):
        """The child's answer, with the most memory that was resident meanwhile."""
        self._write_proc("clear_refs", "5")  # VmHWM starts again
        before = self._status("VmRSS")
        self.send(line)
        answer = self.answer()
        return {**answer, "resident_before_bytes": before, "resident_peak_bytes": self._status("VmHWM")}

    def log(self):
        return self._log.read_text(errors="replace")

    def wait_for_log(self, pattern, seconds=60):
        """The first match of `pattern` in what the child logs."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.log())):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} never logged {pattern!r}:\n{self.log()[-2000:]}")
            time.sleep(0.02)
        return match

    def _write_proc(self, file, text):
        pathlib.Path(f"/proc/{self._child.pid}/{file}").write_text(text)

    def _status(self, key):
        status = pathlib.Path(f"/proc/{self._child.pid}/status").read_text()
        return int(re.search(rf"^{key}:\s+(\d+) kB", status, flags=re.MULTILINE)[1]) * 1024


def ours(name, job, folder, threads, tokens=None, rank=None):
    """A trainer on `job`; `rank` is (number, ranks, store) where there are several."""
    spec = folder / f"{name}.json"
    spec.write_text(json.dumps(job, indent=2))
    command = [trainer(), "measure", spec, "--threads", threads]
    if tokens is not None:
        command += ["--tokens", tokens]
    if rank is not None:
        command += ["--rank", rank[0], "--world-size", rank[1], "--store", rank[2]]
    return Stepper(name, command, folder / f"{name}.log", threads, hello=rank is None)


def theirs(name, model, adapter, tokens, folder, threads, checkpointing):
    """transformers and PEFT on the same files."""
    command = [sys.executable, FOLDER / "transformers_side.py", model, adapter, tokens, "--threads", threads]
    return Stepper(name, command + (["--checkpointing"] if checkpointing else []), folder / f"{name}.log", threads)
