"""TLS, client certificates and tokens between real processes: who is let in, and what the others are told."""

import os
import subprocess

import pytest

from cluster import wait_until
from jobs import fake_job

CALLER, WORKER = "token-of-callers", "token-of-workers"


class Keys:
    """Authorities, certificates and tokens of one test, made by openssl."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.ca, self.other_ca = self._authority("ca"), self._authority("other-ca")
        self.server = self._certificate("server", "subjectAltName=IP:127.0.0.1")
        self.member = self._certificate("member", "subjectAltName=DNS:member")
        self.callers, self.workers, self.wrong = (self._token(text) for text in (CALLER, WORKER, "guessed"))

    def _openssl(self, *words):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, cwd=self.folder)

    def _authority(self, name):
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                      "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
        return self.folder / f"{name}.pem"

    def _certificate(self, name, extension):
        self._openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (self.folder / f"{name}.ext").write_text(extension + "\n")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                      "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _token(self, text):
        path = self.folder / f"{text}.token"
        path.touch(0o600)
        path.write_text(text + "\n")
        return path


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path / "keys")


def server_flags(keys, *more):
    return ["--tls-cert", keys.server[0], "--tls-key", keys.server[1], "--token-file", keys.callers,
            "--worker-token-file", keys.workers, *more]  # fmt: skip


def refused(cluster, *flags):
    """What a caller with these flags is told; always within the client's own time, never a hang."""
    result = cluster.cli("list", check=False, flags=flags)
    assert result.returncode == 3, (result.returncode, result.stdout, result.stderr)
    for secret in (CALLER, WORKER, "guessed"):
        assert secret not in result.stdout + result.stderr
    return result.stderr


def test_a_job_runs_over_tls_and_only_callers_with_the_token_are_let_in(make_cluster, keys):
    caller = ["--ca", keys.ca, "--token-file", keys.callers]
    worker = ["--tls-ca", keys.ca, "--token-file", keys.workers]
    with make_cluster(trainer="longspan-fake-trainer", server_flags=server_flags(keys), worker_flags=worker,
                      client_flags=caller) as cluster:  # fmt: skip
        job_id = cluster.submit(fake_job("over-tls", steps=10))
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert cluster.cli("logs", job_id, "--rank", "1").stdout

        assert "wants a token" in refused(cluster, "--ca", keys.ca)
        assert "not one this server accepts" in refused(cluster, "--ca", keys.ca, "--token-file", keys.wrong)
        # A worker's token opens the workers' door alone.
        assert "not one this server accepts" in refused(cluster, "--ca", keys.ca, "--token-file", keys.workers)
        assert "cannot reach" in refused(cluster, "--token-file", keys.callers)  # plain text to a TLS port
        assert "cannot reach" in refused(cluster, "--ca", keys.other_ca, "--token-file", keys.callers)

        # A caller's token is none for a worker: the daemon says so and never appears.
        cluster.start_worker("intruder", ["--tls-ca", keys.ca, "--token-file", keys.callers])
        log = cluster.folder / "intruder.log"
        wait_until(lambda: "not one this server accepts" in log.read_text(), "the daemon to tell that it is not let in")
        assert {item["worker_id"] for item in cluster.items("workers")} == {"worker-0", "worker-1"}
        told = "".join(path.read_text() for path in cluster.folder.glob("*.log"))
        assert CALLER not in told and WORKER not in told


def test_with_client_certificates_nobody_without_one_is_let_in(make_cluster, keys):
    certificate, key = keys.member
    caller = ["--ca", keys.ca, "--certificate", certificate, "--key", key, "--token-file", keys.callers]
    worker = ["--tls-ca", keys.ca, "--tls-certificate", certificate, "--tls-key", key, "--token-file", keys.workers]
    with make_cluster(workers=1, trainer="longspan-fake-trainer", server_flags=server_flags(keys, "--tls-ca", keys.ca),
                      worker_flags=worker, client_flags=caller) as cluster:  # fmt: skip
        job_id = cluster.submit(fake_job("mutual", steps=5, slots=1))
        cluster.wait_for_state(job_id, "SUCCEEDED")
        assert "cannot reach" in refused(cluster, "--ca", keys.ca, "--token-file", keys.callers)


def test_a_token_file_that_everybody_may_read_is_refused_at_the_start(make_cluster, keys):
    os.chmod(keys.callers, 0o644)
    cluster = make_cluster(workers=0, server_flags=["--token-file", keys.callers])
    with pytest.raises(AssertionError, match="chmod 600"):
        cluster.__enter__()
