"""The trainer's tokenizers against the `tokenizers` and `sentencepiece` packages, family by family, token for token.

LONGSPAN_NIGHTLY=1 gives each family forty times as many texts.
"""

import json
import os
import pathlib
import random
import subprocess

import pytest
from tokenizers import Tokenizer

from reference import tokenizer_families as families

PROGRAM = pathlib.Path(os.environ["LONGSPAN_BUILD_DIR"]) / "tests" / "longspan-tokenize"
TEXTS = 800 * (40 if os.environ.get("LONGSPAN_NIGHTLY") == "1" else 1)


def ours(folder, lines, mode):
    written = "".join(json.dumps(list(line) if isinstance(line, bytes) else line) + "\n" for line in lines)
    done = subprocess.run([PROGRAM, folder, mode], input=written, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


def assert_same(inputs, expected, got):
    assert len(expected) == len(got)
    for text, want, have in zip(inputs, expected, got, strict=True):
        assert have == want, f"{text!r}"


def assert_same_ids(folder, tokenizer, texts):
    for special in (False, True):
        expected = [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=special)]
        assert_same(texts, expected, ours(folder, texts, "special" if special else "plain"))


def assert_same_texts(folder, tokenizer, id_lists):
    for skip in (False, True):
        expected = tokenizer.decode_batch(id_lists, skip_special_tokens=skip)
        assert_same(id_lists, expected, ours(folder, id_lists, "decode-skip" if skip else "decode"))


def random_ids(rng, size):
    return [rng.randrange(size) for _ in range(rng.randrange(12))]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_family_gives_the_same_ids_and_texts(family, tmp_path):
    tokenizer = families.FAMILIES[family](tmp_path)
    texts = families.fuzz_texts(family, TEXTS)
    assert_same_ids(tmp_path, tokenizer, texts)
    rng = random.Random(family)
    broken = [families.random_bytes(rng) for _ in range(TEXTS // 4)]
    assert_same(broken, [tokenizer.encode(data.decode(errors="replace"), add_special_tokens=False).ids for data in broken], ours(tmp_path, broken, "plain"))
    # Ids of texts, and any ids at all: bytes that make no character, ids that no token has.
    encoded = [tokenizer.encode(text).ids for text in texts[:200]]
    anything = [random_ids(rng, tokenizer.get_vocab_size() + 3) for _ in range(TEXTS // 2)] + [random_ids(rng, 262) for _ in range(TEXTS // 2)]
    assert_same_texts(tmp_path, tokenizer, encoded + anything)


@pytest.mark.parametrize("family", ["llama3", "qwen", "gpt_neox", "llama2_legacy", "llama2", "unknown_fused"])
def test_very_long_lines_give_the_same_ids(family, tmp_path):
    tokenizer = families.FAMILIES[family](tmp_path)
    lines = families.long_lines()
    assert_same(["(a long line)"] * len(lines), [tokenizer.encode(line, add_special_tokens=False).ids for line in lines], ours(tmp_path, lines, "plain"))


@pytest.mark.parametrize("name", families.NORMALIZERS)
def test_normalizer_gives_the_same_ids(name, tmp_path):
    tokenizer = families.normalized(tmp_path, name)
    assert_same_ids(tmp_path, tokenizer, families.fuzz_texts(name, TEXTS))


@pytest.mark.parametrize("name", ["nfc", "nfd", "nfkc", "nfkd", "accents"])
def test_normalizer_knows_every_character(name, tmp_path):
    """Every code point behind a letter, before and behind marks of the lowest and highest class."""
    tokenizer = families.normalized(tmp_path, name)
    step = 1 if os.environ.get("LONGSPAN_NIGHTLY") == "1" else 7
    texts = []
    for first in range(0, 0x40000, 4096):
        characters = [chr(c) for c in range(first + random.Random(first).randrange(step), first + 4096, step) if not 0xD800 <= c <= 0xDFFF]
        texts.append("".join(f"a{c}\u0345{c}\u0334 o\u0307{c}\u0301" for c in characters))
    assert_same(["(code points)"] * len(texts), [tokenizer.encode(text).ids for text in texts], ours(tmp_path, texts, "plain"))


@pytest.mark.parametrize("name", families.SENTENCEPIECE)
def test_sentencepiece_model_gives_the_same_ids_and_texts(name, tmp_path):
    processor = families.sentencepiece_model(tmp_path, **families.SENTENCEPIECE[name])
    texts = families.fuzz_texts(name, TEXTS) + ["a b", " a  b ", "a \x07 b", "the\u3000 LORD  God\n and \n of"]
    assert_same(texts, [processor.encode(text) for text in texts], ours(tmp_path, texts, "plain"))
    assert_same(texts, [[processor.bos_id()] + processor.encode(text) for text in texts], ours(tmp_path, texts, "special"))
    rng = random.Random(name)
    id_lists = [processor.encode(text) for text in texts[:200]] + [random_ids(rng, processor.get_piece_size()) for _ in range(TEXTS // 2)]
    assert_same(id_lists, [processor.decode(ids) for ids in id_lists], ours(tmp_path, id_lists, "decode"))


def test_sentencepiece_model_takes_bos_and_eos_from_tokenizer_config_and_finds_added_tokens(tmp_path):
    processor = families.sentencepiece_model(tmp_path, **families.SENTENCEPIECE["llama2"])
    size = processor.get_piece_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": size}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "add_eos_token": True, "eos_token": {"content": "</s>"}}))
    texts = ["In the beginning", "a[PAD] b[PAD][PAD]c", "[PAD]"]

    def expected(text):
        parts = [processor.encode(part) for part in text.split("[PAD]")]
        return [number for index, part in enumerate(parts) for number in ([size] if index else []) + part] + [processor.eos_id()]

    assert_same(texts, [expected(text) for text in texts], ours(tmp_path, texts, "special"))


def test_the_tokenizers_package_alone_counts_where_both_files_lie(tmp_path):
    families.sentencepiece_model(tmp_path, **families.SENTENCEPIECE["unigram"])
    tokenizer = families.FAMILIES["llama2"](tmp_path)
    assert_same_ids(tmp_path, tokenizer, ["In the beginning God created the heaven and the earth."])
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == tokenizer.get_vocab_size()


def test_a_damaged_tokenizer_model_is_refused_or_read(tmp_path):
    families.sentencepiece_model(tmp_path, **families.SENTENCEPIECE["llama2"])
    whole = (tmp_path / "tokenizer.model").read_bytes()
    for size in (0, 1, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "tokenizer.model").write_bytes(whole[:size])
        done = subprocess.run([PROGRAM, tmp_path], input='"a b"\n', capture_output=True, text=True, timeout=60)
        assert done.returncode == 10 and "tokenizer.model" in done.stderr, done.stderr
