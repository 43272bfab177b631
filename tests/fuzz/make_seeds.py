"""Writes the inputs that fuzzing starts from: make_seeds.py FOLDER makes FOLDER/<fuzzer>/<name>."""

import gzip
import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def safetensors(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights():
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    yield "one", safetensors({"a": entry}, bytes(24))
    many = {"__metadata__": {"format": "pt"}, "a": entry}
    for name, dtype, size in (("b", "BF16", 2), ("c", "F16", 2), ("d", "I64", 8), ("e", "U8", 1), ("f", "BOOL", 1)):
        many[name] = {"dtype": dtype, "shape": [1], "data_offsets": [24, 24 + size]}
        yield f"two_{name}", safetensors({"a": entry, name: many[name]}, bytes(24 + size))
    yield "empty_tensor", safetensors({"a": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]}}, b"")
    yield "scalar", safetensors({"a": {"dtype": "F64", "shape": [], "data_offsets": [0, 8]}}, bytes(8))


def configs():
    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }
    yield "llama", llama
    scalings = {
        "linear": {"factor": 2.0}, "dynamic": {"factor": 2.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "attention_factor": 1.1,
                 "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
        "llama3": {"factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    }
    for kind, extra in scalings.items():
        yield f"llama_{kind}", {**llama, "rope_scaling": {"type": kind, "rope_type": kind, **extra}}
        yield f"parameters_{kind}", {**llama, "rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **extra}}
    yield "linear_known", {**llama, "original_max_position_embeddings": 128, "rope_scaling": {"type": "linear", "factor": 2.0}}
    yield "mistral", {**llama, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128}
    yield "qwen2", {**llama, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    yield "qwen3", {**llama, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
    layers = ["full_attention", "sliding_attention"]
    yield "qwen2_window", {**llama, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    yield "qwen3_layers", {**llama, "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "sliding_window": 32, "layer_types": layers}
    yield "by_model_type", {key: value for key, value in {**llama, "model_type": "mistral"}.items() if key != "architectures"}
    neox = {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 256, "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "use_parallel_residual": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    yield "gpt_neox", neox
    for kind, extra in scalings.items():
        yield f"gpt_neox_{kind}", {**neox, "hidden_act": "gelu_fast", "rope_scaling": {"type": kind, "rope_type": kind, **extra}}


def tokenizers():
    def added(token, number):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {"id": number, "content": token, **flags}

    # As byte-level BPE writes bytes: themselves where they can be seen, else from U+0100 on. A vocabulary needs all of them.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = [chr(byte) for byte in visible] + [chr(256 + index) for index in range(len(hidden))]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w"]
    for merge in merges:
        vocabulary.setdefault(merge.replace(" ", ""), len(vocabulary))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": False}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing", "single": single, "pair": single,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [len(vocabulary)], "tokens": ["<s>"]}},
    }
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges,
    }
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added("<s>", len(vocabulary))],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": template, "decoder": {"type": "ByteLevel"}, "model": model,
    }
    yield "byte_level", tokenizer
    digits = {"type": "Digits", "individual_digits": True}
    yield "sequence", {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        split, digits, {**byte_level, "use_regex": False}]}}
    yield "pairs", {**tokenizer, "model": {**model, "merges": [merge.split(" ") for merge in merges], "ignore_merges": True}}
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}, "▁": 259, "a": 260, "▁a": 261}
    yield "sentencepiece_like", {
        **tokenizer, "added_tokens": [added("<unk>", 0), added("<s>", 1), added("</s>", 2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {**model, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": pieces, "merges": ["▁ a"]},
    }
    yield "metaspace", {**tokenizer, "pre_tokenizer": {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    yield "metaspace_decoded", {**tokenizer, "pre_tokenizer": metaspace, "decoder": metaspace}
    # The patterns of GPT-2, Llama 3 and Qwen, which have scanners of their own; and every behaviour of another.
    shared = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for name, pattern in (("llama3", shared % "{1,3}"), ("qwen", shared % "")):
        yield name, {**tokenizer, "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {**split, "pattern": {"Regex": pattern}}, {**byte_level, "use_regex": False}]}}
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield f"split_{behavior}", {**tokenizer, "decoder": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {**split, "pattern": {"String": "l"}, "behavior": behavior}, {**split, "behavior": behavior, "invert": True}, byte_level]}}
    normalizers = [{"type": name} for name in ("NFD", "NFKD", "NFC", "NFKC", "Lowercase", "StripAccents")]
    normalizers += [{"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Prepend", "prepend": "a"},
                    {"type": "Replace", "pattern": {"Regex": "b+"}, "content": "c"}]
    for normalizer in normalizers:
        yield f"normalizer_{normalizer['type']}", {**tokenizer, "normalizer": normalizer}
    yield "normalizers", {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": normalizers}}
    wide = {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True, "special": False}
    yield "added", {**tokenizer, "normalizer": {"type": "Lowercase"}, "post_processor": {"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, template]}, "added_tokens": [
            added("<s>", len(vocabulary)), {**wide, "id": len(vocabulary) + 1, "content": "world"}]}


def field(number, value):
    """One field of a protobuf message: an int as varint, a float as four bytes, else bytes."""
    def varint(rest):
        out = b""
        while rest >= 0x80:
            out += bytes([rest & 0x7F | 0x80])
            rest >>= 7
        return out + bytes([rest])
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def charsmap():
    """Rewrites "A" to "b": a double array in which 'A' is the child of the root at 1 ^ 0x41, with one leaf."""
    units = [0] * 256
    units[0] = 1 << 10                            # the root's children are at 0 ^ 1 ^ byte
    units[0x40] = 0x41 | 1 << 8 | 2 << 10         # 'A', which ends a key: its value is at 0x40 ^ 2
    units[0x42] = 1 << 31 | 0                     # the value: offset 0 of the texts below
    trie = struct.pack("<256I", *units)
    return struct.pack("<I", len(trie)) + trie + b"b\0"


def sentencepiece_models():
    unknown, control, user_defined, byte = 2, 3, 4, 6
    pieces = [("<unk>", 0.0, unknown), ("<s>", 0.0, control), ("</s>", 0.0, control)]
    pieces += [(f"<0x{number:02X}>", 0.0, byte) for number in range(256)]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,é"
    words = ["he", "ll", "hell", "hello", "▁hello", "▁w", "lo▁wo"]
    text = [(piece, -float(rank), 1) for rank, piece in enumerate([*letters, *words])]

    def model(kind, *, fallback=True, normalizer=b"", trainer=b"", drop=(), more=()):
        kept = [piece for piece in (pieces if fallback else pieces[:3]) + text + list(more) if piece[0] not in drop]
        parts = [field(1, field(1, name.encode()) + field(2, score) + field(3, kind_of)) for name, score, kind_of in kept]
        spec = field(3, kind) + field(35, int(fallback)) + field(40, 0) + field(41, 1) + field(42, 2) + trainer
        return b"".join(parts) + field(2, spec) + field(3, normalizer)

    unigram, bpe = 1, 2
    as_llama = field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1)
    yield "llama2", model(bpe, normalizer=as_llama, drop=["lo▁wo"])
    yield "across_words", model(bpe, normalizer=as_llama)
    yield "unigram", model(unigram, fallback=False, drop=["lo▁wo"])
    yield "no_dummy_prefix", model(bpe, normalizer=field(3, 0) + field(4, 0))
    yield "suffix", model(bpe, normalizer=as_llama, trainer=field(24, 1))
    yield "unescaped", model(bpe, normalizer=field(5, 0))
    yield "user_defined", model(unigram, normalizer=as_llama, more=[("[A]", 0.0, user_defined), ("\n", 0.0, user_defined)])
    yield "charsmap", model(bpe, normalizer=as_llama + field(2, charsmap()))
    yield "words", model(3, fallback=False)
    yield "characters", model(4, fallback=False)


def zstd(data):
    """One frame with one block that is not compressed; less than 256 bytes."""
    return bytes([0x28, 0xB5, 0x2F, 0xFD, 0x20, len(data)]) + (1 | len(data) << 3).to_bytes(3, "little") + data


def corpora():
    """The first byte is template + 5 * (0 lines, 1 json, 2 text) + 15 * (0 plain, 1 gzip, 2 zstd)."""
    for name, data in documents():
        kind = 1 if name == "array" else 0
        for template in range(5):
            yield f"{name}_{template}", bytes([template + 5 * kind]) + data
        yield f"{name}_gzip", bytes([5 * kind + 15]) + gzip.compress(data, mtime=0)
        yield f"{name}_zstd", bytes([5 * kind + 30]) + zstd(data)
    for packing, pack in enumerate((bytes, lambda data: gzip.compress(data, mtime=0), zstd)):
        yield f"plain_{packing}", bytes([10 + 15 * packing]) + pack("In the beginning\nwas é <s>".encode())


def documents():
    yield "text", b'{"text": "In the beginning"}\n\n{"text": "was\\u00e9 \\ud83d\\ude00", "n": [1, {}]}\n'
    yield "mark", b'\xef\xbb\xbf{"text": ""}\r\n{"text": "x"}'
    yield "instruction", b'{"instruction": "Add.", "input": "1 1", "output": "2"}\n'
    yield "sharegpt", b'{"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}\n'
    yield "array", b'[{"instruction": "Add.", "input": "", "output": "2</s>"}, {"text": "x"}, {"messages": []}]'
    yield "chat", b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def job_files():
    text = (ROOT / "deploy/examples/reference.yaml").read_text()
    # Every key that is null in the reference, with a value; those of one kind of rope beside that kind.
    given = {"format": "chat", "template": "chatml", "group_size": "2048", "rank": "16", "alpha": "32", "targets": "[q_proj, v_proj]",
             "adapter": "a", "rslora": "true", "train_norms": "true", "train_embeddings": "false", "train_head": "false", "factor": "2",
             "original_length": "4096", "micro_batch": "2", "dtype": "bf16", "lengths": "[4096, 8192]", "path": "l", "tasks": "[hotpotqa]",
             "max_run_time": "2h30m", "keep": "residual", "checkpoint_every": "4", "host_layers": "2", "tile_tokens": "512",
             "loss_tile_tokens": "256", "tile_heads": "2", "device_bytes": "80GiB", "host_bytes": "1024"}
    of_kind = {"yarn": {"beta_fast": "32", "beta_slow": "1", "attention_factor": "1.2"},
               "llama3": {"low_freq_factor": "1", "high_freq_factor": "4"}, "dynamic": {}, "ntk": {}}
    for kind, keys in of_kind.items():
        for job in ("extend", "evaluate"):
            filled = text.replace("kind: extend", f"kind: {job}").replace("kind: linear", f"kind: {kind}")
            filled = filled.replace("rank_pattern: {}", "rank_pattern: {q_proj: 4}").replace("alpha_pattern: {}", "alpha_pattern: {q_proj: 8.0}")
            for key, value in {**given, **keys}.items():
                filled = filled.replace(f" {key}: null", f" {key}: {value}")
            yield f"all_{kind}_{job}", filled.encode()
    yield "theta", b"{name: a, model: {path: /m}, data: {sources: [/d]}, context_length: 8, rope: {kind: theta, theta: 1e6}}"
    for path in sorted((ROOT / "deploy/examples").glob("*.yaml")):
        yield path.stem, path.read_bytes()
    yield "json", b'{"name": "a", "model": {"path": "/m"}, "data": {"sources": ["/d"]}, "context_length": 8, "rope": {"factor": 2}}'
    yield "anchors", b"name: &n a\nmodel: {path: *n}\ndata:\n  sources: [x]\ncontext_length: 0x10\nlabels: {a: 1, b: true}\n"


def lines():
    text = (ROOT / "proto/trainer_lines/README.md").read_text()
    session = [line[2:] for line in text.splitlines() if line.startswith(("< {", "> {"))]
    yield "session", ("\n".join(session) + "\n").encode()
    for index, line in enumerate(session):
        yield f"line_{index}", (line + "\n").encode()


def main():
    folder = pathlib.Path(sys.argv[1])
    as_json = lambda pairs: ((name, json.dumps(value).encode()) for name, value in pairs)  # noqa: E731
    for fuzzer, seeds in {
        "safetensors_fuzzer": weights(), "model_config_fuzzer": as_json(configs()), "tokenizer_fuzzer": as_json(tokenizers()),
        "sentencepiece_fuzzer": sentencepiece_models(),
        "corpus_fuzzer": corpora(), "job_file_fuzzer": job_files(), "trainer_lines_fuzzer": lines(),
    }.items():
        (folder / fuzzer).mkdir(parents=True, exist_ok=True)
        for name, value in seeds:
            (folder / fuzzer / name).write_bytes(value)


if __name__ == "__main__":
    main()
