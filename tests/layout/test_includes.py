"""Which folder may include what. The table is the architecture: a wrong arrow fails here, with the file and the line."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Families of foreign headers.
GRPC = r"(grpc|grpcpp|grpc\+\+|google/(protobuf|rpc)|longspan/v1)/"
ABSL = r"absl/"
TORCH = r"(ATen|torch|c10|caffe2)/"
HTTP = r"(httplib\.h|prometheus/)"
SQLITE = r"sqlite3\.h"
OPENSSL = r"openssl/"
CURL = r"curl/"
FORMATS = r"(nlohmann|fmt)/"
LOG = r"spdlog/"
TEXT = r"(pcre2\.h|zlib\.h|zstd\.h|sentencepiece_processor\.h|utf8proc\.h)"
CLI = r"(CLI/|yaml-cpp/)"
CUDA = r"(cuda|cub/|nccl\.h|cudnn)"

PURE_SUPPORT = r"proto/support/(ids|check|first_bytes|mutex)\.h"

# folder: (own folders it may include, foreign families it may include). The longest matching folder decides. The standard
# library is always allowed, and so is the folder itself.
ARROWS = {
    "proto/support": (["proto/jobfile"], [GRPC, ABSL, FORMATS]),
    "proto/jobfile": ([PURE_SUPPORT], [FORMATS]),
    "proto/trainer_lines": ([PURE_SUPPORT], [FORMATS]),
    "worker/model_config": (["proto/jobfile", r"worker/trainer/errors\.h"], [FORMATS]),
    "worker/planner": (["proto/jobfile", PURE_SUPPORT, "worker/model_config"], [FORMATS, OPENSSL, CURL]),
    "worker/storage": ([PURE_SUPPORT], [FORMATS, OPENSSL, CURL]),
    "server/core": ([r"proto/support/(ids|check|first_bytes)\.h", "server/scheduler"], [ABSL, FORMATS]),
    "server/scheduler": ([r"proto/support/(ids|check)\.h"], [ABSL, FORMATS]),
    "server/simulator": ([r"proto/support/(ids|check)\.h", "server/scheduler"], [ABSL, FORMATS, CLI]),
    "server/store": (["proto/support", "server/core"], [ABSL, FORMATS, LOG, SQLITE]),
    "server/restore": (["server/core", "server/store"], [ABSL]),
    "server/rpc": (["proto", "server", "worker/model_config", "worker/planner", "worker/storage"], [GRPC, ABSL, FORMATS, LOG, HTTP, OPENSSL]),
    **{f"server/rpc/durable_core{ending}": (["server/core", "server/store", r"server/rpc/(durable_core|observer)\.h"], [ABSL, FORMATS])
       for ending in (".h", ".cc")},
    "server/http": (["proto", "server", "worker/planner", "worker/storage"], [GRPC, ABSL, FORMATS, LOG, HTTP]),
    "worker/daemon": (["proto", "worker/storage"], [GRPC, ABSL, FORMATS, LOG, HTTP, OPENSSL, CLI]),
    "worker/trainer": (["proto/jobfile", "proto/trainer_lines", r"proto/support/(check|mutex)\.h", "worker/model_config", "worker/planner", "worker/storage",
                        "worker/trainer", "kernels"], [TORCH, FORMATS, LOG, TEXT, OPENSSL, CLI, r"gloo/", CUDA]),
    "kernels": ([], [CUDA]),
    "kernels/bench": (["kernels"], [CUDA, FORMATS]),
    "client": (["proto", "worker/storage"], [GRPC, ABSL, FORMATS, LOG, CLI]),
    "server/main.cc": (["proto", "server"], [GRPC, ABSL, FORMATS, LOG, CLI]),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
STANDARD = re.compile(r"^(c?[a-z_0-9]+|[a-z_0-9]+\.h|(sys|linux|netinet|arpa|net|bits)/[a-z_0-9]+\.h)$")
FOREIGN = re.compile("|".join([GRPC, ABSL, TORCH, HTTP, SQLITE, OPENSSL, CURL, FORMATS, LOG, TEXT, CLI, CUDA, r"gloo/"]))


def sources():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.h", "*.cc", "*.cu", "*.cuh"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split()
    return [path for path in listed if not path.startswith("tests/")]


def rule_of(path):
    folders = [folder for folder in ARROWS if path == folder or path.startswith(folder + "/")]
    return max(folders, key=len) if folders else None


def test_every_source_has_a_rule():
    assert [path for path in sources() if rule_of(path) is None] == []


def test_includes_follow_the_arrows():
    wrong = []
    for path in sources():
        rule = rule_of(path)
        if rule is None:
            continue
        own, foreign = ARROWS[rule]
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            name = match.group(2)
            if FOREIGN.match(name):
                right = any(re.match(family, name) for family in foreign)
            elif re.match(r"(proto|server|worker|client|kernels)/", name):
                right = name.startswith(rule + "/") or any(re.match(folder, name) for folder in own)
            else:
                right = match.group(1) == "<" and bool(STANDARD.match(name))
            if not right:
                wrong.append(f"{path}:{number}: {rule} may not include {name}")
    assert wrong == []
