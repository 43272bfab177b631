"""Rows packed from documents: `probe` with document_ids against a mask that is one block per document."""

import dataclasses

import pytest
import torch

from reference import compare, oracle, trainer
from reference.tiny_models import TinyModel
from test_causality import tokens
from test_probe import ODD_KV, TIED, Case, job_of, make_labels

PACKINGS = {
    "ragged": [[5, 1, 14, 9], [29], [3, 20, 6]],
    "equal": [[8, 8, 8, 8]],
    "single_tokens": [[1, 1, 1, 1, 11, 1], [1, 14, 1]],
    "two_halves": [[16, 16], [16, 16]],
    "long_then_short": [[31, 1], [1, 31]],
}
KINDS = {
    "split": {"kind": "s2"},
    "split_group_5": {"kind": "s2", "group_size": 5},
    "wrap": {"kind": "s2", "edge": "wrap"},
    "wrap_group_5": {"kind": "s2", "edge": "wrap", "group_size": 5},
    "short": {"kind": "short", "group_size": 7},
    "full": {"kind": "full"},
}


def document_ids(lengths, values=None):
    """One value per document; two values in turn are enough, since a new document starts where the value changes."""
    rows = []
    for row in lengths:
        names = values or [index % 2 for index in range(len(row))]
        rows.append(torch.cat([torch.full((length,), name) for length, name in zip(row, names, strict=False)]))
    return torch.stack(rows).long()


def inputs(lengths, vocab=131, labels="absent"):
    documents = document_ids(lengths)
    ids = tokens(documents.shape, vocab)
    return ids, make_labels(labels, ids), documents


def check(case, lengths, shelf, tmp_path, labels="absent"):
    folder = shelf.folder(case.model)
    spec = job_of(case, folder, tmp_path)
    ids, label, documents = inputs(lengths, case.model.vocab, labels)
    actual = trainer.probe(spec, ids, label, tmp_path, documents)
    expected = compare.named(oracle.reference(folder, spec, ids, label, document_ids=documents))
    actual["loss"] = actual["loss"].reshape(())
    compare.assert_close(actual, expected)
    return spec, actual


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_probe_agrees(packing, kind, shelf, tmp_path, trainer_binary):
    check(Case("packed", ODD_KV, "full", tuple(KINDS[kind].items())), PACKINGS[packing], shelf, tmp_path)


@pytest.mark.parametrize(
    "case",
    [Case("lora", kind="lora"), Case("longlora"), Case("tied", TIED), Case("three_layers", TinyModel(layers=3), "full")],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("labels", ["absent", "some"])
def test_every_method_agrees(case, labels, shelf, tmp_path, trainer_binary):
    check(case, PACKINGS["ragged"], shelf, tmp_path, labels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_batch_is_its_documents_one_by_one(kind, shelf, tmp_path, trainer_binary):
    lengths = PACKINGS["ragged"]
    case = Case("packed", ODD_KV, attention=tuple(KINDS[kind].items()))
    spec, together = check(case, lengths, shelf, tmp_path)
    ids, _, _ = inputs(lengths)
    sums, scored = {}, 0
    for row, of_row in enumerate(lengths):
        begin = 0
        for length in of_row:
            alone = trainer.probe(spec, ids[row : row + 1, begin : begin + length], None, tmp_path)
            logits = together["logits"][row : row + 1, begin : begin + length]
            assert compare.relative_error(alone["logits"], logits) < 1e-5
            for name, tensor in alone.items():
                if name != "logits":
                    sums[name] = sums.get(name, 0) + tensor.double().reshape(together[name].shape) * (length - 1)
            scored += length - 1
            begin += length
    del together["logits"]
    compare.assert_close({name: tensor / scored for name, tensor in sums.items()}, together)


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_never_changes_another(kind, shelf, tmp_path, trainer_binary):
    folder = shelf.folder(dataclasses.replace(ODD_KV, layers=6))
    spec = job_of(Case("apart", kind="full", attention=tuple(KINDS[kind].items())), folder, tmp_path)
    lengths = [[9, 1, 14, 8]]
    documents = document_ids(lengths * 5)
    ids = tokens((1, 32), 131).repeat(5, 1)
    begin = 0
    for row, length in enumerate(lengths[0], start=1):
        ids[row, begin : begin + length] = (ids[row, begin : begin + length] + 1) % 131
        begin += length
    logits = trainer.probe(spec, ids, None, tmp_path, documents)["logits"]
    begin = 0
    for row, length in enumerate(lengths[0], start=1):
        moved = (logits[row] != logits[0]).any(dim=1).nonzero().flatten().tolist()
        assert moved == list(range(begin, begin + length))
        begin += length


def test_only_where_the_ids_change_matters(shelf, tmp_path, trainer_binary):
    """Any values, also large and negative ones, also ones that come back."""
    folder = shelf.folder(TinyModel())
    spec = job_of(Case("values", kind="full"), folder, tmp_path)
    lengths = [[4, 10, 3, 11]]
    ids = tokens((1, 28), 131)
    first = trainer.probe(spec, ids, None, tmp_path, document_ids(lengths, [0, 1, 2, 3]))
    again = trainer.probe(spec, ids, None, tmp_path, document_ids(lengths, [2**62, -7, 2**62, 0]))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_one_document_per_row_is_no_packing(shelf, tmp_path, trainer_binary):
    spec = job_of(Case("whole", kind="full"), shelf.folder(TinyModel()), tmp_path)
    ids = tokens((2, 29), 131)
    plain = trainer.probe(spec, ids, None, tmp_path)
    packed = trainer.probe(spec, ids, None, tmp_path, document_ids([[29], [29]]))
    assert all(torch.equal(plain[name], packed[name]) for name in plain)


def test_padding_is_a_document_that_moves_nothing(shelf, tmp_path, trainer_binary):
    spec = job_of(Case("padded", kind="full"), shelf.folder(TinyModel()), tmp_path)
    lengths = [[12, 9, 8], [20, 3, 6]]  # the last of each is padding
    documents = document_ids(lengths)
    ids = tokens((2, 29), 130)
    labels = ids.clone()
    for row, padding in enumerate((8, 6)):
        ids[row, -padding:], labels[row, -padding:] = 130, -100
    padded = trainer.probe(spec, ids, labels, tmp_path, documents)
    assert not padded["grad.model.embed_tokens.weight"][130].any()
    ids[ids == 130] = 5
    other = trainer.probe(spec, ids, labels, tmp_path, documents)
    for name in padded:
        if name != "logits":
            assert torch.equal(padded[name], other[name]), name
