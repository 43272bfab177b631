"""Every memory policy and tile size against an fp64 reference: at most twice the error of PyTorch's own fp32 computation.

What is kept, computed again or moved to host memory and back changes no bit (causal_lm_test.cc). The size of a tile does, for sums are
taken in another order; tiles of one row are products of a matrix and a vector, tiles of five leave a ragged one.
"""

import pytest
import torch

from reference import compare, oracle
from reference.families import FAMILIES

NAMES = ("llama_mlp_bias", "qwen3", "gpt_neox")
POLICIES = {
    "planned": {},
    "lean_one_row": {"keep": "input", "tile_tokens": 1, "loss_tile_tokens": 1},
    "lean_two_rows": {"keep": "input", "checkpoint_every": 2, "tile_tokens": 2, "loss_tile_tokens": 3, "tile_heads": 1},
    "output_ragged": {"keep": "attention_output", "tile_tokens": 5, "loss_tile_tokens": 7, "host_layers": 1},
    "projections": {"keep": "query_key_value", "checkpoint_every": 3, "tile_tokens": 16, "loss_tile_tokens": 16},
    "residual": {"keep": "residual", "host_layers": 2, "tile_tokens": 64, "loss_tile_tokens": 64},
    "all": {"keep": "gate_up", "checkpoint_every": 2, "host_layers": 1, "tile_tokens": 9, "loss_tile_tokens": 54},
}
# Of tensors that PyTorch's fp32 happens to hit almost exactly.
ROUNDING = 2e-6


def job_of(folder, adapter):
    return {
        "name": "policies",
        "model": {"path": str(folder)},
        "context_length": 32,
        "attention": {"kind": "s2"},
        "method": {"kind": "longlora", "adapter": str(adapter)},
        "training": {"dtype": "fp32"},
    }


@pytest.fixture(scope="module")
def subjects(shelf, tmp_path_factory):
    """(job, tokens, fp64 result, errors of PyTorch's fp32 against it) by family."""
    made = {}

    def get(name):
        if name not in made:
            tiny = FAMILIES[name]
            folder = shelf.folder(tiny)
            job = job_of(folder, "")
            adapter = oracle.write_adapter(
                folder, tmp_path_factory.mktemp("adapter"), job, targets=oracle.linear_modules(tiny.family)
            )
            job = job_of(folder, adapter)
            ids = torch.randint(0, tiny.vocab, (2, 27), generator=torch.Generator().manual_seed(23))
            exact = compare.named(oracle.reference(folder, job, ids, dtype=torch.float64))
            plain = compare.named(oracle.reference(folder, job, ids, dtype=torch.float32))
            made[name] = (job, ids, exact, compare.errors(plain, exact))
        return made[name]

    return get


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_no_policy_and_no_tile_is_less_exact_than_twice_pytorchs_fp32(name, policy, subjects, probes):
    job, ids, exact, plain = subjects(name)
    actual = compare.errors(probes.probe({**job, "memory": POLICIES[policy]}, ids), exact)
    worse = {tensor: (error, plain[tensor]) for tensor, error in actual.items() if error > 2 * plain[tensor] + ROUNDING}
    assert not worse, f"{len(worse)} of {len(actual)} tensors, (error, PyTorch's fp32): {worse}"
