"""LongBench's scores against what its program uses (the package `rouge`, and Python's difflib through fuzzywuzzy) and against
its formulae, written here in Python's own terms."""

import collections
import difflib
import json
import os
import pathlib
import random
import re
import string
import subprocess

import pytest
from rouge import Rouge

PROGRAM = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-score"

WORDS = (
    "the a an The AN of 42 7 007 paragraph Paragraph theme cat's U.S. don't x_y_ _the the_ naïve ÉCOLE straße ΑΒΓ Жук "
    "日本 段落3 段落 ½ ² ٤٥ co-operate e.g. é́ ..."
).split()
SPACES = [" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\x1c", ". ", ".", ", ", "! ", " - "]
CODE = ["x = f(y)", "return self.x", "# note", "// note", "`", "```python", "if a:", "    pass", "λ = 1", "foo(bar, 'baz')"]


def text(chance, words=14):
    count = chance.randint(0, words)
    return "".join(chance.choice(WORDS) + chance.choice(SPACES) for _ in range(count))


def scores_of(cases):
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([str(PROGRAM)], input=lines, capture_output=True, text=True, timeout=60, check=True)
    return [float(line) for line in done.stdout.splitlines()]


def case(task, prediction, answer, classes=None):
    return {"task": task, "pred": prediction, "answers": [answer], "all_classes": classes}


def check(cases, expected, tolerance=1e-12):
    for item, actual, right in zip(cases, scores_of(cases), expected, strict=True):
        assert actual == pytest.approx(right, abs=tolerance), item


def test_question_answer_f1():
    def plain(s):
        s = "".join(c for c in s.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split()).split()

    def f1(prediction, answer):
        said, right = plain(prediction), plain(answer)
        same = sum((collections.Counter(said) & collections.Counter(right)).values())
        if same == 0:
            return 0
        precision, recall = same / len(said), same / len(right)
        return 2 * precision * recall / (precision + recall)

    chance = random.Random(1)
    cases = [case("hotpotqa", text(chance), text(chance)) for _ in range(2000)]
    check(cases, [f1(c["pred"], c["answers"][0]) for c in cases])


def test_rouge_l():
    def rouge_l(prediction, answer):
        try:
            return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
        except ValueError:  # an empty side, which LongBench's program scores 0
            return 0.0

    chance = random.Random(2)
    cases = [case("gov_report", text(chance, 60), text(chance, 60)) for _ in range(400)]
    cases += [case("gov_report", a, b) for a in ("", ".", " ", "a. .b", "...") for b in ("", "a", " .", "b.a")]
    check(cases, [rouge_l(c["pred"], c["answers"][0]) for c in cases])


def test_code_similarity():
    def similarity(prediction, answer):
        lines = [s for s in prediction.lstrip("\n").split("\n") if "`" not in s and "#" not in s and "//" not in s]
        said = lines[0] if lines else ""
        return 1 if said == answer else int(round(100 * difflib.SequenceMatcher(None, said, answer).ratio())) / 100

    chance = random.Random(3)
    cases = []
    for _ in range(2000):
        prediction = "\n".join(chance.choices([*CODE, ""], k=chance.randint(0, 4)))
        answer = chance.choice([*CODE, "", "return self.y", "x = g(y) + λ"])
        cases.append(case("lcc", prediction, answer))
    for _ in range(200):  # long enough for difflib's rule about characters that are everywhere
        letters = [chr(chance.choice([97, 98, 99, 100, 120 + chance.randint(0, 300)])) for _ in range(400)]
        said = [c for c in letters if chance.random() < 0.8]
        cases.append(case("lcc", "".join(said), "".join(letters[: chance.randint(150, 400)])))
    check(cases, [similarity(c["pred"], c["answers"][0]) for c in cases])


def test_classification():
    def classification(prediction, answer, classes):
        found = [name for name in classes if name in prediction]
        for name in found:  # the list changes while it is walked, as in the original
            if name in answer and name != answer:
                found.remove(name)
        return 1 / len(found) if answer in found else 0

    chance = random.Random(4)
    names = ["A", "AB", "ABC", "B", "BC", "C", "D", "A B"]
    cases = []
    for _ in range(2000):
        classes = chance.sample(names, chance.randint(1, len(names)))
        prediction = "".join(chance.choices([*names, " "], k=chance.randint(0, 4)))
        cases.append(case("lsht", prediction.replace("\n", " "), chance.choice(names), classes))
    check(cases, [classification(c["pred"], c["answers"][0], c["all_classes"]) for c in cases])


def test_count_and_retrieval():
    def share(number, prediction):
        numbers = re.findall(r"\d+", prediction)
        return numbers.count(number) / len(numbers) if numbers else 0

    chance = random.Random(5)
    cases, expected = [], []
    for _ in range(1000):
        prediction, number = text(chance), chance.choice(["7", "42", "007", "3"])
        cases.append(case("passage_count", prediction, number))
        cases.append(case("passage_retrieval_en", prediction, f"Paragraph {number}"))
        cases.append(case("passage_retrieval_zh", prediction, f"段落{number}"))
        expected += [share(number, prediction)] * 3
    check(cases, expected)


def test_first_lines_and_several_answers():
    cases = [
        {"task": "triviaqa", "pred": "\n\nblue\nred", "answers": ["red", "blue"], "all_classes": None},
        {"task": "triviaqa", "pred": "\n\nblue\nred", "answers": ["red"], "all_classes": None},
        {"task": "hotpotqa", "pred": "\n\nblue\nred", "answers": ["red"], "all_classes": None},
    ]
    check(cases, [1, 0, 2 / 3])


def test_small_letters_are_pythons():
    every = [chr(c) for c in range(0x20000) if not 0xD800 <= c <= 0xDFFF and c != 0x3A3]
    blocks = ["x".join(every[i : i + 4096]) + "x" for i in range(0, len(every), 4096)]
    lines = "".join(json.dumps({"task": "lower", "pred": block}) + "\n" for block in blocks)
    done = subprocess.run([str(PROGRAM)], input=lines, capture_output=True, text=True, timeout=60, check=True)
    for block, line in zip(blocks, done.stdout.split("\n")[:-1], strict=True):
        assert json.loads(line) == block.lower()
