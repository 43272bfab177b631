"""A real Prometheus finds the workers through /targets and reads loss and tokens of a running job."""

import json
import shutil
import urllib.error
import urllib.parse
import urllib.request

import pytest
from cluster import Process, wait_until
from jobs import tiny_job


@pytest.fixture
def prometheus(tmp_path):
    program = shutil.which("prometheus")
    assert program, "prometheus is not installed: deploy/setup.sh --tests installs it"
    started = []

    def start(http_port):
        config = tmp_path / "prometheus.yml"
        config.write_text(json.dumps({
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [
                {"job_name": "longspan-server", "static_configs": [{"targets": [f"127.0.0.1:{http_port}"]}]},
                {"job_name": "longspan-workers",
                 "http_sd_configs": [{"url": f"http://127.0.0.1:{http_port}/targets", "refresh_interval": "1s"}]},
            ]}))
        log = tmp_path / "prometheus.log"
        process = Process("prometheus", [program, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                                         "--web.listen-address=127.0.0.1:0", "--log.level=info"], log)
        started.append(process)

        def address():
            assert process.alive(), log.read_text()
            for line in log.read_text().splitlines():
                # ts=... component=web msg="Listening on" address=127.0.0.1:34567
                if 'msg="Listening on"' in line and "component=web" in line:
                    return line.rsplit("address=", 1)[1].split()[0]
            return None

        found = wait_until(address, "prometheus to listen")

        def ready():  # it answers 503 until its storage is open
            try:
                return urllib.request.urlopen(f"http://{found}/-/ready").status == 200
            except urllib.error.HTTPError:
                return False

        wait_until(ready, "prometheus to be ready")
        return found

    yield start
    for process in started:
        process.stop()


def test_prometheus_reads_loss_and_tokens(make_cluster, source_dir, prometheus):
    with make_cluster() as cluster:
        address = prometheus(cluster.http_port)

        def value(expression):
            query = urllib.parse.urlencode({"query": expression})
            answer = json.load(urllib.request.urlopen(f"http://{address}/api/v1/query?{query}"))
            return [float(series["value"][1]) for series in answer["data"]["result"]]

        wait_until(lambda: value("sum(up)") == [3.0], "the coordinator and two workers to be scraped")
        job_id = cluster.submit(tiny_job(source_dir, "scraped", steps=60))
        selector = f'{{job_id="{job_id}"}}'
        loss = wait_until(lambda: value(f"longspan_train_loss{selector}"), "the loss in Prometheus")
        tokens = wait_until(lambda: [v for v in value(f"longspan_train_tokens_total{selector}") if v > 0], "the tokens")
        assert 0 < loss[0] < 12
        assert tokens[0] % 512 == 0
        assert value('longspan_worker_up') == [1.0, 1.0]
        assert value(f'longspan_job_info{selector}') == [1.0]
        cluster.wait_for_state(job_id, "SUCCEEDED")
