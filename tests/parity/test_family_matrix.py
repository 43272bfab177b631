"""Every family under every method and every attention: loss, logits and every gradient against transformers and PEFT.

The whole product, so that no pair of a family's habit (a bias, a norm on every head, one layer for q, k and v, a parallel residual) with
a way of training is left to luck. LoRA sits on every linear layer of the family. The 4-bit methods are judged by the dequantised model.
"""

import pytest
import torch

from reference import compare, oracle
from reference.families import FAMILIES
from reference.nf4 import dequantized_folder

METHODS = ("full", "lora", "longlora", "qlora", "qlonglora")

# Groups of 8 and 7 in 27 tokens: the last block of every kind is ragged.
ATTENTION = {
    "full_attention": {"kind": "full"},
    "split": {"kind": "s2"},
    "wrap": {"kind": "s2", "edge": "wrap"},
    "short": {"kind": "short", "group_size": 7},
    "packed": {"kind": "s2"},  # rows of several documents
}
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 1 + [2] * 17, [0] * 20 + [1] * 7])


def ids_of(tiny):
    return torch.randint(0, tiny.vocab, DOCUMENTS.shape, generator=torch.Generator().manual_seed(17))


def job_of(folder, method, attention="split"):
    return {
        "name": "families",
        "model": {"path": str(folder)},
        "context_length": 32,
        "attention": ATTENTION[attention],
        "method": {"kind": method},
        "training": {"dtype": "fp32"},
    }


@pytest.fixture(scope="module")
def subjects(shelf, tmp_path_factory):
    """(adapter folder or None, the model in PyTorch that has the job's gradients), by family and method; each made once."""
    made = {}

    def adapter_of(name, method):
        key = (name, method.removeprefix("q"))
        if key not in made:
            folder = shelf.folder(FAMILIES[name])
            modules = oracle.linear_modules(FAMILIES[name].family)
            made[key] = oracle.write_adapter(
                folder, tmp_path_factory.mktemp("adapter"), job_of(folder, key[1]), targets=modules
            )
        return made[key]

    def base_of(name, method):
        if not method.startswith("q"):
            return shelf.folder(FAMILIES[name])
        if name not in made:
            made[name] = dequantized_folder(shelf.folder(FAMILIES[name]), tmp_path_factory.mktemp("dequantized") / "model")
        return made[name]

    def get(name, method):
        key = ("subject", name, method)
        if key not in made:
            adapter = None if method == "full" else adapter_of(name, method)
            spec = job_of(base_of(name, method), method)
            spec["method"]["adapter"] = adapter
            made[key] = (adapter, oracle.load_for_training(spec["model"]["path"], spec))
        return made[key]

    return get


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_every_gradient_agree(name, method, attention, subjects, shelf, probes):
    tiny = FAMILIES[name]
    adapter, model = subjects(name, method)
    spec = job_of(shelf.folder(tiny), method, attention)
    if adapter is not None:
        spec["method"]["adapter"] = str(adapter)
    documents = DOCUMENTS if attention == "packed" else None
    actual = probes.probe(spec, ids_of(tiny), documents)
    compare.assert_close(actual, compare.named(oracle.run(model, spec, ids_of(tiny), document_ids=documents)))
