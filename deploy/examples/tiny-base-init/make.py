#!/usr/bin/env python3
"""Trains the tokenizer of the tiny model on ../corpus and writes the folder's Hugging Face files.

Needs the `tokenizers` package (deploy/setup.sh installs it). The same corpus and package version give the same bytes.
"""
import gzip
import json
import pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 2048
FOLDER = pathlib.Path(__file__).parent
CORPUS = FOLDER.parent / "corpus" / "king-james-bible.jsonl.gz"


def train_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken("<s>", special=True), AddedToken("</s>", special=True)],
        show_progress=False,
    )
    with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in file), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def write_json(name, value):
    (FOLDER / name).write_text(json.dumps(value, indent=2) + "\n")


def main():
    tokenizer = train_tokenizer()
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    write_json("special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    write_json("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
    })


if __name__ == "__main__":
    main()
