"""The service with the fake trainer: faults that need no mathematics, and what a user sees of them."""

import json
import os
import signal
import urllib.request

from cluster import wait_until
from jobs import fake_job


def fake_cluster(make_cluster, **options):
    return make_cluster(trainer="longspan-fake-trainer", **options)


def test_job_runs_to_its_end(make_cluster):
    with fake_cluster(make_cluster) as cluster:
        job_id = cluster.submit(fake_job("plain"))
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert int(job["progress"]["step"]) == 40
        log = cluster.cli("logs", job_id, "--rank", "1").stdout
        assert log, "the log of every rank is uploaded"
    assert not cluster.trainer_pids(), "no rank outlives its cluster"


def test_submit_twice_with_one_request_id_is_one_job(make_cluster):
    with fake_cluster(make_cluster, workers=0) as cluster:
        path = cluster.folder / "job.json"
        path.write_text(json.dumps(fake_job("once")))
        first, second = (cluster.items("submit", path, "--request-id", "r-1")[0]["job_id"] for _ in range(2))
        assert first == second
        path.write_text(json.dumps(fake_job("once", steps=41)))
        refused = cluster.cli("submit", path, "--request-id", "r-1", check=False)
        assert refused.returncode == 6 and "request" in refused.stderr


def test_plan_says_what_a_job_takes_and_submit_refuses_what_fits_nowhere(make_cluster):
    with fake_cluster(make_cluster, workers=1) as cluster:
        model = cluster.folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000, "rms_norm_eps": 1e-5, "max_position_embeddings": 256}))
        path = cluster.folder / "job.json"

        def write(context, memory=None):
            spec = {**fake_job("planned"), "model": {"path": str(model)}, "context_length": context, "memory": memory}
            path.write_text(json.dumps(spec))

        write(1024)
        wait_until(lambda: cluster.items("workers"), "the worker")
        plan, = cluster.items("plan", path)
        assert plan["verdict"] == "FITS" and plan["place"].endswith("worker-0 (cpu)")
        assert plan["device_bytes"] == sum(plan["memory_bytes"].values())
        small = cluster.cli("plan", path, "--device-memory", "1MiB", check=False)
        assert small.returncode == 6 and "does not fit" in small.stdout
        write(16_777_216, {"checkpoint_every": 1, "keep": "gate_up"})  # 16 GiB of layer input alone, for each layer
        refused = cluster.cli("submit", path, check=False)
        assert refused.returncode == 6 and "would fit" in refused.stderr, refused.stderr


def test_more_slots_than_the_cluster_waits_with_a_reason(make_cluster):
    with fake_cluster(make_cluster) as cluster:
        job_id = cluster.submit(fake_job("too-large", slots=3))
        job = wait_until(lambda: (j := cluster.job(job_id))["reason"] == "GANG_EXCEEDS_CLUSTER" and j, "the reason")
        assert job["state"] == "QUEUED"
        assert "3 slots" in job["status_message"]
        cluster.start_worker("worker-2")
        cluster.wait_for_state(job_id, "SUCCEEDED")


def test_user_error_fails_at_once_and_quotes_the_log(make_cluster):
    with fake_cluster(make_cluster) as cluster:
        job_id = cluster.submit(fake_job("bad-data", **{"fake.fail_at_step": "3", "fake.exit_code": "10"}))
        job = cluster.wait_for_state(job_id, "FAILED")
        assert job["attempts"][-1]["failure_class"] == "USER"
        assert "rank" in job["status_message"]


def test_cancel_ends_every_rank(make_cluster):
    with fake_cluster(make_cluster) as cluster:
        job_id = cluster.submit(fake_job("cancelled", steps=100000))
        cluster.wait_for_step(job_id, 2)
        cluster.cli("cancel", job_id)
        cluster.wait_for_state(job_id, "CANCELLED")
        wait_until(lambda: not cluster.trainer_pids(), "the ranks to end")


def test_worker_that_is_gone_for_good_is_replaced(make_cluster):
    with fake_cluster(make_cluster, workers=3) as cluster:
        job_id = cluster.submit(fake_job("moved", steps=300))
        cluster.wait_for_step(job_id, 10)
        rank = cluster.job(job_id)["attempts"][-1]["ranks"][0]
        cluster.workers[rank["worker_id"]].kill()
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert rank["worker_id"] not in {r["worker_id"] for r in job["attempts"][-1]["ranks"]}


def test_frozen_daemon_loses_its_ranks(make_cluster):
    with fake_cluster(make_cluster, workers=3) as cluster:
        job_id = cluster.submit(fake_job("frozen", steps=300))
        cluster.wait_for_step(job_id, 10)
        worker = cluster.job(job_id)["attempts"][-1]["ranks"][0]["worker_id"]
        os.kill(cluster.workers[worker].pid, signal.SIGSTOP)
        try:
            cluster.wait_for_state(job_id, "SUCCEEDED")
        finally:
            os.kill(cluster.workers[worker].pid, signal.SIGCONT)


def test_endpoints(make_cluster):
    with fake_cluster(make_cluster) as cluster:
        base = f"http://127.0.0.1:{cluster.http_port}"
        assert urllib.request.urlopen(f"{base}/healthz").status == 200
        assert urllib.request.urlopen(f"{base}/readyz").status == 200

        def targets():
            return [target for group in json.load(urllib.request.urlopen(f"{base}/targets")) for target in group["targets"]]

        wait_until(lambda: len(targets()) == 2, "both workers in /targets")
        assert "longspan_worker_up" in urllib.request.urlopen(f"{base}/metrics").read().decode()


def test_port_in_use_is_a_clear_error(make_cluster):
    with fake_cluster(make_cluster, workers=0) as cluster:
        import subprocess
        result = subprocess.run(
            [str(cluster.bin / "longspan-server"), "--data-dir", str(cluster.folder / "second"), "--storage",
             str(cluster.storage), "--listen", f"127.0.0.1:{cluster.grpc_port}", "--http-listen", "127.0.0.1:0",
             "--port-file", str(cluster.folder / "second.json")], capture_output=True, text=True, timeout=30)
        assert result.returncode == 1
        assert f"127.0.0.1:{cluster.grpc_port}" in result.stderr + result.stdout
