"""Writes the inputs that fuzzing starts from: make_seeds.py FOLDER makes FOLDER/<fuzzer>/<name>."""

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
    for kind, extra in (
        ("linear", {"factor": 2.0}), ("dynamic", {"factor": 2.0}),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}),
        ("llama3", {"factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ):
        yield f"llama_{kind}", {**llama, "rope_scaling": {"type": kind, "rope_type": kind, **extra}}
    yield "parameters", {**llama, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    yield "mistral", {**llama, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 128}
    yield "qwen2", {**llama, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    yield "qwen3", {**llama, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
    yield "gpt_neox", {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 256, "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "use_parallel_residual": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def tokenizers():
    def added(token, number):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {"id": number, "content": token, **flags}

    letters = "abcdefghijklmnopqrstuvwxyzĠĊ"
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


def corpora():
    yield "text", b'{"text": "In the beginning"}\n\n{"text": "was\\u00e9 \\ud83d\\ude00", "n": [1, {}]}\n'
    yield "mark", b'\xef\xbb\xbf{"text": ""}\r\n{"text": "x"}'
    yield "instruction", b'{"instruction": "Add.", "input": "1 1", "output": "2"}\n'
    yield "chat", b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def job_files():
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
        "corpus_fuzzer": corpora(), "job_file_fuzzer": job_files(), "trainer_lines_fuzzer": lines(),
    }.items():
        (folder / fuzzer).mkdir(parents=True, exist_ok=True)
        for name, value in seeds:
            (folder / fuzzer / name).write_bytes(value)


if __name__ == "__main__":
    main()
