"""Small tokenizers configured as the model families configure theirs, and texts that sit on the edges of them.

Nothing of a published tokenizer is used but its settings: vocabularies are trained here on the example corpus.
"""

import functools
import gzip
import io
import json
import os
import pathlib
import random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SOURCE = pathlib.Path(os.environ["LONGSPAN_SOURCE_DIR"])
CORPUS = SOURCE / "deploy" / "examples" / "corpus" / "king-james-bible.jsonl.gz"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")

# One word of many scripts and forms; the alphabet of the character vocabularies.
SCRIPTS = (
    "straße naïve façade Ελληνικά Привет שלום العربية हिन्दी বাংলা தமிழ் ไทย ខ្មែរ ქართული հայերեն አማርኛ 日本語 カタカナ 한국어 中文 "
    "繁體字 Tiếng Việt ᚠᚢᚦ ꦗꦮ 𐍈𐌰 𝔘𝔫𝔦 ᏣᎳᎩ ᓀᐦᐃᔭᐍᐏᐣ ⠃⠗⠇ → ∑ € № ½ ² ﬁ Å"
)
MIXED = [
    "It's 1234567 o'clock, don't  you know?\n\n  Yes!\tNo...\r\n", "x = [1, 2.5e-3]; // http://a.b/c?d=e#f", "<tag attr=\"v\">&amp;</tag>",
    "WE'LL we'Ll 'S ſ 's", "a  b   c    d\n e\n\n\nf \n \n", SCRIPTS,
]  # fmt: skip


def bible_lines(count):
    with gzip.open(CORPUS, "rt", encoding="utf-8") as corpus:
        for _ in range(3):
            text = json.loads(next(corpus))["text"]
            yield from text.splitlines()[:count]


@functools.cache
def training_lines(count=700):
    return list(bible_lines(count)) + MIXED * 3


BYTE_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
# The letters of bytes that do not occur in UTF-8, which are printable in Latin-1.
NEVER_IN_UTF8 = [chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))]


def byte_level(folder, *, pre_tokenizer, normalizer=None, vocab_size=1400, ignore_merges=False, special=(), added=(), post=None,
               alphabet=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        training_lines(), trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet or BYTE_LETTERS, show_progress=False))
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    if post:
        tokenizer.post_processor = post(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)])


def template(first, last=None):
    def make(tokenizer):
        names = [name for name in (first, last) if name]
        single = " ".join(part for part in (first, "$A", last) if part)
        return processors.TemplateProcessing(single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names])

    return make


def llama3(folder):
    def post(tokenizer):
        return processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>")(tokenizer)])

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(folder, pre_tokenizer=split_then_bytes(LLAMA3), ignore_merges=True, special=special, post=post)


def qwen(folder):
    def post(tokenizer):
        return processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [AddedToken(name, normalized=False, special=False) for name in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    return byte_level(folder, pre_tokenizer=split_then_bytes(QWEN2), normalizer=normalizers.NFC(), special=special, added=added, post=post)


def gpt_neox(folder):
    special = ["<|endoftext|>", "<|padding|>"]
    # Runs of spaces, looked for in the normalised text, as the published file has them.
    added = [AddedToken(" " * count, normalized=True, special=False) for count in range(24, 1, -1)]
    return byte_level(folder, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True), normalizer=normalizers.NFC(),
                      special=special, added=added, alphabet=[letter for letter in BYTE_LETTERS if letter not in NEVER_IN_UTF8])


def train_characters(vocab_size, byte_fallback):
    """A character vocabulary laid out as Llama 2's: unknown, BOS, EOS, the bytes, then pieces that begin with a visible space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else [])
    alphabet = [chr(c) for c in range(33, 127)] + list("▁éèüßñ中文日本語Привет")
    tokenizer.train_from_iterator(training_lines(), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=180, show_progress=False))
    document = json.loads(tokenizer.to_str())
    # Runs of spaces are pieces there, too.
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    for count in (2, 4, 8, 16):
        vocab["▁" * count] = len(vocab)
        merges.append(["▁" * (count // 2), "▁" * (count // 2)])
    return vocab, [tuple(pair) for pair in merges]


def byte_fallback_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)])


def characters(folder, *, normalizer=None, pre_tokenizer=None, byte_fallback=True, fuse_unk=True, unk="<unk>", decoder=None, special=("<unk>", "<s>", "</s>"),
               added=(), post=template("<s>")):
    vocab, merges = train_characters(1500, byte_fallback)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=fuse_unk, byte_fallback=byte_fallback))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder or byte_fallback_decoder()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.add_tokens(list(added))
    tokenizer.post_processor = post(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def prepend_and_replace():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def metaspace(scheme, split=False):
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)


def gemma_like(folder):
    return characters(folder, normalizer=normalizers.Replace(" ", "▁"), pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
                      decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))


FAMILIES = {
    "llama3": llama3,
    "qwen": qwen,
    "gpt_neox": gpt_neox,
    "llama2_legacy": lambda folder: characters(folder, normalizer=prepend_and_replace()),
    "llama2": lambda folder: characters(folder, pre_tokenizer=metaspace("first")),
    "mistral": lambda folder: characters(folder, normalizer=prepend_and_replace(), post=template("<s>", "</s>"),
                                         added=[AddedToken("[INST]", normalized=False, special=True), AddedToken("[/INST]", normalized=False, special=True)]),
    "metaspace_always_split": lambda folder: characters(folder, pre_tokenizer=metaspace("always", split=True), decoder=decoders.Metaspace()),
    "metaspace_never": lambda folder: characters(folder, pre_tokenizer=metaspace("never", split=True),
                                                 decoder=decoders.Metaspace(prepend_scheme="never")),
    "gemma_like": gemma_like,
    "unknown_fused": lambda folder: characters(folder, byte_fallback=False, normalizer=prepend_and_replace()),
    "unknown_apart": lambda folder: characters(folder, byte_fallback=False, fuse_unk=False, pre_tokenizer=metaspace("first")),
}

# Normalizers in front of a byte-level model, each with the added tokens that a normalizer makes hard.
NORMALIZERS = {
    "nfc": lambda: normalizers.NFC(),
    "nfd": lambda: normalizers.NFD(),
    "nfkc": lambda: normalizers.NFKC(),
    "nfkd": lambda: normalizers.NFKD(),
    "lowercase": lambda: normalizers.Lowercase(),
    "strip": lambda: normalizers.Strip(),
    "strip_left": lambda: normalizers.Strip(left=True, right=False),
    "accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
    "replace": lambda: normalizers.Sequence([normalizers.Replace("th", "TH"), normalizers.Prepend("x"), normalizers.Replace(Regex(r"\d+"), "0")]),
}


def normalized(folder, name):
    added = [
        AddedToken("Día", normalized=True), AddedToken("LORD", normalized=True, single_word=True), AddedToken("é", normalized=False, single_word=True),
        AddedToken("<L>", normalized=False, lstrip=True, special=True), AddedToken("<R>", normalized=False, rstrip=True, special=True),
        AddedToken("<B>", normalized=True, lstrip=True, rstrip=True, single_word=True), AddedToken(" ~ ", normalized=False),
    ]  # fmt: skip
    return byte_level(folder, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=name == "nfc", use_regex=True), normalizer=NORMALIZERS[name](),
                      added=added, vocab_size=700)


def sentencepiece_model(folder, *, model_type, byte_fallback, vocab_size=900, **settings):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in training_lines(400) if line.strip()), model_writer=written, model_type=model_type, vocab_size=vocab_size,
        byte_fallback=byte_fallback, character_coverage=0.999, num_threads=1, minloglevel=2, hard_vocab_limit=False, **settings)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


AS_LLAMA = dict(normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True)
SENTENCEPIECE = {
    "llama2": dict(model_type="bpe", byte_fallback=True, **AS_LLAMA),
    "llama2_user_symbols": dict(model_type="bpe", byte_fallback=True, user_defined_symbols=["[INST]", "  ", "\n"], **AS_LLAMA),
    "no_dummy_prefix": dict(model_type="bpe", byte_fallback=True, add_dummy_prefix=False, **AS_LLAMA),
    "nfkc_bpe": dict(model_type="bpe", byte_fallback=False),
    "unigram": dict(model_type="unigram", byte_fallback=False),
    "unigram_fallback": dict(model_type="unigram", byte_fallback=True, **AS_LLAMA),
    "suffix": dict(model_type="bpe", byte_fallback=True, treat_whitespace_as_suffix=True, **AS_LLAMA),
    "across_words": dict(model_type="bpe", byte_fallback=True, split_by_whitespace=False, **AS_LLAMA),
}

EDGES = [
    " ", "  ", "   ", "    ", " " * 23, " " * 30, "\n", "\r\n", "\n\n", " \n ", "\t", "\t\t", "\u00a0", "\u3000", "\u2028", "\u0085", "\u180e", "\u200b",
    "\u200d", "\ufeff", "\x1c", "\x00", "\x07", "\x7f", "▁", "▁▁", "\ufffd", "\ue000", "\U0010ffff",
]  # fmt: skip
WORDS = [
    "the", "The", "LORD", "God", "and", "of", "'s", "'S", "'ſ", "'ll", "'LL", "'lL", "'re", "'ve", "'m", "'d", "'t", "'x", "''", "'", "it's", "WE'LL", "1",
    "12", "123", "1234567", "٣٤", "½", "Ⅷ", "!", "...", "—", "--", "#!", "http://a.b/c?d=e", "x_y", "e\u0301", "é", "ñ", "n\u0303", "a\u0323\u0302", "a\u0302\u0323",
    "ﬁ", "Å", "Å", "ǅ", "İ", "ß", "ẞ", "Σίσυφος", "ς", "한국", "\u1112\u1161\u11ab", "가\u11a8", "\u0f71\u0f72", "\u0345\u0301", "ｶﾞ", "①", "㎏",
    "😀", "👨‍👩‍👧‍👦", "👍🏽", "❤️", "❤\ufe0e", "🇩🇪", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "中文", "日本語", "العربية", "हिन्दी", "ไทย", "<0x41>", "<0xC3>", "th", "Día",
    "di\u0301a",
]  # fmt: skip
TOKENS = [
    "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|eot_id|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "[INST]", "[/INST]", "<L>",
    "<R>", "<B>", " ~ ", "<|im", "<s", "s>", "[PAD]",
]  # fmt: skip


def any_character(rng):
    while True:
        c = rng.randrange(0x110000) if rng.random() < 0.5 else rng.randrange(0x3000)
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def random_text(rng, parts=24):
    pieces = []
    for _ in range(rng.randrange(1, parts)):
        kind = rng.random()
        if kind < 0.25:
            pieces.append(rng.choice(EDGES))
        elif kind < 0.3:
            pieces.append(rng.choice(TOKENS))
        elif kind < 0.7:
            pieces.append(rng.choice(WORDS))
        elif kind < 0.8:
            pieces.append(rng.choice(SCRIPTS.split()))
        else:
            pieces.append("".join(any_character(rng) for _ in range(rng.randrange(1, 4))))
    return "".join(pieces)


def random_bytes(rng):
    """A text with bytes put in, taken away and changed: mostly not UTF-8 any more."""
    data = bytearray(random_text(rng, 10).encode())
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(3)] = bytes(rng.choice([rng.randrange(256), rng.randrange(0x80, 0xC0), rng.choice(b"\xe2\xf0\xed\xc0\xff\xf4")])
                                                 for _ in range(rng.randrange(3)))
    return bytes(data)


def fuzz_texts(seed, count):
    rng = random.Random(seed)
    return ["", " ", "a", " a"] + [random_text(rng) for _ in range(count)]


def long_lines():
    rng = random.Random(77)
    verse = " ".join(training_lines()[:200])
    base64 = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") for _ in range(60_000))
    return [verse.replace(" ", "") * 4, base64, "中文日本語" * 20_000, "ab" * 50_000, " " * 60_000 + "x", "\n" * 30_000, "😀" * 15_000, "e\u0301" * 20_000, verse * 10]
