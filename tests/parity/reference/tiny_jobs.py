"""A whole tiny job: a model folder with a byte-level BPE tokenizer, a corpus, and the job file over both."""

import dataclasses
import json
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .tiny_models import TinyModel, write_model

VOCAB = 320
SYLLABLES = ["ka", "lo", "mi", "ter", "an", "su", "rel", "ov", "ing", "qua", "den", "pi"]


def words(count, seed):
    """Plain text with some structure, so that a loss can fall."""
    chance = random.Random(seed)
    lexicon = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(80)]
    text = []
    for index in range(count):
        text.append(chance.choice(lexicon))
        text.append(".\n" if index % 11 == 10 else " ")
    return "".join(text)


def write_tokenizer(folder):
    """tokenizer.json as GPT-2-like models have it, with BOS and EOS; TinyModel's config has 1 and 2 for these."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([words(3000, seed=1)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


@dataclasses.dataclass
class TinyJob:
    model: object  # folder
    corpus: object  # file
    spec: dict


def write_job(root, tiny=None, documents=6, words_each=700, **changes):
    """Writes model, tokenizer and corpus below `root`; the job file extends 64 tokens to 128."""
    root.mkdir(parents=True, exist_ok=True)
    tiny = dataclasses.replace(tiny or TinyModel(), vocab=VOCAB)
    model = write_model(tiny, root / "model")
    write_tokenizer(model)
    corpus = root / "corpus"
    corpus.mkdir()
    for index in range(documents):
        (corpus / f"document-{index}.txt").write_text(words(words_each, seed=100 + index))
    spec = {
        "name": "tiny",
        "model": {"path": str(model)},
        "data": {"sources": [str(corpus)], "holdout_fraction": 0.1},
        "context_length": 128,
        "attention": {"kind": "s2"},
        "method": {"kind": "longlora", "rank": 4, "alpha": 8},
        "training": {
            "steps": 4,
            "global_batch": 4,
            "micro_batch": 2,
            "learning_rate": 2e-3,
            "warmup_steps": 2,
            "seed": 11,
            "dtype": "fp32",
        },
        "evaluation": {"lengths": [64, 128]},
        "checkpoint": {"every_steps": 2, "keep_last": 10},
    }
    from .trainer import merged_spec

    return TinyJob(model, corpus, merged_spec(spec, changes))
