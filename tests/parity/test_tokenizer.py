"""The trainer's byte-level BPE against the `tokenizers` package, token for token."""
import json
import os
import pathlib
import random
import subprocess

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SOURCE = pathlib.Path(os.environ["LONGSPAN_SOURCE_DIR"])
PROGRAM = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-tokenize"
TINY = SOURCE / "deploy" / "examples" / "tiny-base-init"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
# No known pattern, so PCRE2 runs it; characters that are younger than a system's PCRE2 are kept out of its test.
UNKNOWN = r"\p{Lu}?\p{Ll}+|\d{2}|[^\S\n]+|[^\p{L}\d\s]|\n"


def byte_level(use_regex=False, add_prefix_space=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def sequence(*members):
    return pre_tokenizers.Sequence(list(members))


PRE_TOKENIZERS = {
    "gpt2": byte_level(use_regex=True),
    "gpt2_prefix_space": byte_level(use_regex=True, add_prefix_space=True),
    "gpt2_split": sequence(pre_tokenizers.Split(Regex(GPT2), "isolated"), byte_level()),
    "llama3": sequence(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level()),
    "llama3_removed_inverted": sequence(pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), byte_level()),
    "qwen2": sequence(pre_tokenizers.Split(Regex(QWEN2), "isolated"), byte_level()),
    "digits": sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(use_regex=True)),
    "digit_runs": sequence(pre_tokenizers.Digits(individual_digits=False), byte_level()),
    "literal": sequence(pre_tokenizers.Split("th", "isolated"), byte_level(use_regex=True)),
    "literal_removed": sequence(pre_tokenizers.Split("e", "removed"), byte_level(add_prefix_space=True)),
    "unknown": sequence(pre_tokenizers.Split(Regex(UNKNOWN), "isolated"), byte_level()),
}
SPECIALS = ["<s>", "</s>", "<|x|>", "<|xyz|>"]


def any_character(rng):
    while True:
        c = rng.randrange(0x110000)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def random_text(rng, whole_unicode=True):
    """Pieces that sit on the edges of the patterns, glued in random order."""
    edges = [" ", "  ", "   ", "\n", "\r\n", "\n\n", " \n ", "\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e", "\u200b", "\x1c"]
    words = ["the", "The", "God", "and", "'s", "'S", "'\u017f", "'ll", "'LL", "'lL", "'re", "'ve", "'m", "'d", "'t", "'x", "''", "'", "it's",
             "na\u00efve", "e\u0301", "\u4e2d\u6587", "\u0627\u0644", "\U0001f600", "\U0001f468\u200d\U0001f469", "1", "12", "123", "1234567", "\u0663\u0664", "\u00bd",
             "\u2163", "!", "...", "\u2014", "--", "#!", "\x00", "\x7f"] + SPECIALS + ["<|x", "<s", "s>"]
    parts = []
    for _ in range(rng.randrange(1, 24)):
        kind = rng.randrange(4 if whole_unicode else 3)
        if kind == 0:
            parts.append(rng.choice(edges))
        elif kind in (1, 2):
            parts.append(rng.choice(words))
        else:
            parts.append("".join(any_character(rng) for _ in range(rng.randrange(1, 4))))
    return "".join(parts)


def ours(folder, texts, mode):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    done = subprocess.run([PROGRAM, folder, mode], input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_equal(folder, texts, specials=(False, True)):
    package = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for special in specials:
        expected = [package.encode(text, add_special_tokens=special).ids for text in texts]
        got = ours(folder, texts, "special" if special else "plain")
        for text, want, have in zip(texts, expected, got, strict=True):
            assert have == want, f"{text!r}"


def build(tmp_path, pre_tokenizer, *, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(7)
    corpus = [(SOURCE / "tests" / "parity" / "test_tokenizer.py").read_text(), "the God of gods and the Gods' the "]
    corpus += [random_text(rng, whole_unicode=False) for _ in range(400)]
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIALS[:2], show_progress=False))
    tokenizer.add_special_tokens([AddedToken("<|x|>", special=True, lstrip=True), AddedToken("<|xyz|>", special=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("naive"), AddedToken("the The", normalized=False)])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
    ])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_random_text_gives_the_same_ids(name, tmp_path):
    folder = build(tmp_path, PRE_TOKENIZERS[name])
    rng = random.Random(name)
    texts = [""] + [random_text(rng, whole_unicode=name != "unknown") for _ in range(1000)]
    assert_equal(folder, texts)


def test_ignore_merges_gives_the_same_ids(tmp_path):
    folder = build(tmp_path, PRE_TOKENIZERS["llama3"], ignore_merges=True)
    # Without the merges that lead to some words, only ignore_merges finds these words.
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][::2]
    document["model"]["merges"] = [
        pair for pair in document["model"]["merges"] if all(part in document["model"]["vocab"] for part in pair)]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    rng = random.Random(3)
    assert_equal(folder, [random_text(rng) for _ in range(1000)])


@pytest.mark.parametrize("name", ["gpt2", "llama3", "digits"])
def test_every_code_point_gives_the_same_ids(name, tmp_path):
    """Each between letters, digits and spaces, so that a wrong class moves a border. Of the planes without any letter, a few."""
    folder = build(tmp_path, PRE_TOKENIZERS[name])
    texts = []
    for first in range(0, 0x110000, 512):
        step = 64 if first >= 0x40000 else 1
        characters = [chr(c) for c in range(first, first + 512, step) if not 0xD800 <= c <= 0xDFFF]
        texts.append("".join(f"a{c}1{c} {c}." for c in characters))
    assert_equal(folder, texts, specials=(False,))


def test_the_example_tokenizer_on_its_own_corpus_and_random_text():
    rng = random.Random(11)
    text = (SOURCE / "README.md").read_text() if (SOURCE / "README.md").exists() else ""
    long_word = "ab" * 5000 + "\u4e2d" * 3000
    assert_equal(TINY, [text, long_word, " " * 5000 + "x", "\n" * 3000] + [random_text(rng) for _ in range(1000)])


@pytest.mark.parametrize("change, said", [
    ({"normalizer": {"type": "BertNormalizer"}}, "normalizer BertNormalizer"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
    ({"decoder": {"type": "CTC"}}, "decoder CTC"),
    ({"post_processor": {"type": "BertProcessing"}}, "post_processor BertProcessing"),
    ({"model": {"type": "Unigram", "vocab": []}}, "model is Unigram"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "model is WordPiece"),
])
def test_what_is_not_supported_is_refused_by_name(change, said, tmp_path):
    document = json.loads((TINY / "tokenizer.json").read_text())
    document.update(change)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    done = subprocess.run([PROGRAM, tmp_path], input="", capture_output=True, text=True, timeout=60)
    assert done.returncode == 10
    assert said in done.stderr and "tokenizer.json" in done.stderr
