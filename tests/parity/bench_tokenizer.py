"""Speed of the trainer's tokenizers beside the `tokenizers` and `sentencepiece` packages, one thread each, in one run, by processor
time. Prints JSON.

    LONGSPAN_SOURCE_DIR=$PWD LONGSPAN_BUILD_DIR=$PWD/build/release .venv/bin/python tests/parity/bench_tokenizer.py

The text is the example corpus (English, 4 MB), as documents of about 100 kB for the packages, which slow down on longer ones.
Vocabularies are small, so words take more merges than with a published tokenizer.
"""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from reference import tokenizer_families as families  # noqa: E402

PROGRAM = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-tokenize"
ROUNDS = 3


def documents(size=100_000):
    with gzip.open(families.CORPUS, "rt", encoding="utf-8") as corpus:
        text = "\n".join(json.loads(line)["text"] for line in corpus)
    parts = text.split("\n")
    done, part, length = [], [], 0
    for line in parts:
        part.append(line)
        length += len(line) + 1
        if length >= size:
            done.append("\n".join(part) + "\n")
            part, length = [], 0
    return done + ["\n".join(part)]


def best_speed(encode, texts):
    size = sum(len(text.encode()) for text in texts)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.process_time()
        for text in texts:
            encode(text)
        best = max(best, size / 1e6 / (time.process_time() - start))
    return best


def measure(name, make, encode_of):
    texts = documents()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        package = best_speed(encode_of(make(folder)), texts)
        (folder / "text.txt").write_text("".join(texts))
        done = subprocess.run([PROGRAM, folder, "bench", folder / "text.txt"], capture_output=True, text=True, check=True)
    ours = json.loads(done.stdout)["megabytes_per_second"]
    return {"tokenizer": name, "ours_mb_per_second": round(ours, 1), "package_mb_per_second": round(package, 2), "ratio": round(ours / package, 1)}


def main():
    for name in ("llama3", "qwen", "gpt_neox", "llama2_legacy", "llama2"):
        print(json.dumps(measure(name, families.FAMILIES[name], lambda tokenizer: lambda text: tokenizer.encode(text, add_special_tokens=False))))
    for name in ("llama2", "unigram"):
        made = families.SENTENCEPIECE[name]
        print(json.dumps(measure(f"tokenizer.model {name}", lambda folder: families.sentencepiece_model(folder, **made), lambda processor: processor.encode)))


if __name__ == "__main__":
    main()
