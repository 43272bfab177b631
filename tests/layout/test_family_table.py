"""The table of worker/trainer/README.md, family by property: every case that it names exists."""

import fnmatch
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = ROOT / "worker" / "trainer" / "README.md"
NO_CASE = re.compile(r"none|note (\d+)")


def table():
    """({test: {pattern of its cases}}, {note that a cell points to}, {note that is there})."""
    section = README.read_text().split("\n## Families\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 2 and len({len(row) for row in rows}) == 1, "the table is not one"
    named, used = {}, set()
    for _, test, *cells in rows[2:]:
        for cell in cells:
            if match := NO_CASE.fullmatch(cell):
                used |= {match[1]} - {None}
            else:
                assert re.fullmatch("`[^`]+`", cell), f"a cell is a case, a note or none, not {cell!r}"
                named.setdefault(test.strip("`"), set()).add(cell.strip("`"))
    return named, used, set(re.findall(r"^(\d+)\. ", section, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def collected():
    """{test: [its cases]}, as pytest finds them."""
    files = sorted({f"tests/parity/{test.split('::')[0]}" for test in table()[0]})
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *files], cwd=ROOT,
        env={"LONGSPAN_SOURCE_DIR": str(ROOT), "LONGSPAN_BUILD_DIR": str(ROOT / "build" / "release"), **os.environ},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cases = {}
    for test, case in re.findall(r"^(?:tests/parity/)?(\w+\.py::\w+)\[(.*)\]$", done.stdout, flags=re.MULTILINE):
        cases.setdefault(test, []).append(case)
    return cases


def test_every_case_of_the_family_table_exists(collected):
    missing = [
        f"{test}[{pattern}]"
        for test, patterns in table()[0].items()
        for pattern in sorted(patterns)
        if not fnmatch.filter(collected.get(test, []), pattern)
    ]
    assert missing == []


def test_every_variant_stands_in_the_matrix_under_every_method_and_attention(collected):
    """The first rows of the table say that they are one product."""
    cases = {tuple(case.split("-")) for case in collected["test_family_matrix.py::test_logits_and_every_gradient_agree"]}
    names, methods, attentions = (set(part) for part in zip(*cases))
    assert cases == {(name, method, attention) for name in names for method in methods for attention in attentions}
    assert methods == {"full", "lora", "longlora", "qlora", "qlonglora"}


def test_every_note_is_there_and_used():
    _, used, there = table()
    assert used == there
