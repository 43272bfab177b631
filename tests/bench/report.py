"""Results as JSON, and as tables between two markers of README.md, so that no number is typed by hand."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import statistics

FOLDER = pathlib.Path(__file__).resolve().parent
README = FOLDER / "README.md"
MEGABYTE = 1e6


def machine():
    """What the numbers depend on and a reader can look up."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()

    def first(key):
        match = re.search(rf"^{key}\s*:\s*(.+)$", cpuinfo, flags=re.MULTILINE)
        return match[1].strip() if match else "unknown"

    name, flags = first("model name"), first("flags").split()
    known = {("AuthenticAMD", "26"): "Zen 5", ("AuthenticAMD", "25"): "Zen 3 or 4", ("AuthenticAMD", "23"): "Zen 1 or 2"}
    generation = known.get((first("vendor_id"), first("cpu family")))
    widest = next((word for word in ("avx512f", "avx2") if word in flags), "neither AVX2 nor AVX-512")
    return {
        "processor": f"{name} ({generation})" if generation else name,
        "cores": len(os.sched_getaffinity(0)),
        "vectors": widest,
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "date": datetime.date.today().isoformat(),
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "peft")},
    }


def machine_text(facts):
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['vectors']}, {facts['memory_gb']} GB; torch {facts['torch']}, "
        f"transformers {facts['transformers']}, PEFT {facts['peft']}; {facts['date']}."
    )


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def megabytes(count):
    return f"{count / MEGABYTE:,.0f}"


def seconds(value):
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def add_flags(parser, name, contexts, threads=2):
    parser.add_argument("--contexts", type=int, nargs="+", default=contexts, help="tokens")
    if threads is not None:
        parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--model", choices=("25m", "small"), default="25m")
    parser.add_argument(
        "--out", type=pathlib.Path,
        help=f"JSON; default: {name}.json in results/, and the tables of README.md are written again from it",
    )  # fmt: skip
    return parser


def publish(name, result, tables, out):
    """Writes `result` to `out`; without one to results/, with `tables` (Markdown) in README.md."""
    path = out or FOLDER / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    text = f"{machine_text(result['machine'])}\n\n{tables}"
    print(text)
    if out is not None:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = README.read_text().split(begin)
    README.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
