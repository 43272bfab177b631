"""Two workers in two network namespaces whose own host name resolves to the loopback address, as Debian sets it up: ranks that
trust the host name instead of the advertised address would find nobody, and hang."""

import os
import shutil
import subprocess

import pytest
from jobs import tiny_job

MACHINES = {"worker-0": "10.213.7.2", "worker-1": "10.213.7.3"}
COORDINATOR = "10.213.7.1"


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


@pytest.fixture
def two_machines():
    """Namespaces joined by a bridge; removed afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command")
    tag = f"ls{os.getpid() % 10000}"
    bridge = f"{tag}br"
    if run("ip", "link", "add", bridge, "type", "bridge", check=False).returncode != 0:
        pytest.skip("this machine does not let us make network links (a container without CAP_NET_ADMIN)")
    namespaces, prefixes = [], {}
    try:
        run("ip", "address", "add", f"{COORDINATOR}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for index, (worker, address) in enumerate(MACHINES.items()):
            namespace, outer, inner = f"{tag}n{index}", f"{tag}o{index}", f"{tag}i{index}"
            run("ip", "netns", "add", namespace)
            namespaces.append(namespace)
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
            run("ip", "link", "set", outer, "master", bridge, "up")
            within = ["ip", "netns", "exec", namespace]
            trial = run(*within, "true", check=False)
            if trial.returncode != 0:
                pytest.skip(f"no command can be run in a network namespace here: {trial.stderr.strip()}")
            run(*within, "ip", "address", "add", f"{address}/24", "dev", inner)
            run(*within, "ip", "link", "set", inner, "up")
            run(*within, "ip", "link", "set", "lo", "up")
            # A host name of its own that resolves to loopback: `ip netns exec` mounts this over /etc/hosts.
            folder = f"/etc/netns/{namespace}"
            os.makedirs(folder)
            with open(f"{folder}/hosts", "w") as hosts:
                hosts.write(f"127.0.0.1 localhost\n127.0.1.1 {namespace}\n")
            prefixes[worker] = (["unshare", "--uts", *within, "sh", "-c", f'hostname {namespace} && exec "$@"', "sh"], address,
                                COORDINATOR)
        yield prefixes
    finally:
        for namespace in namespaces:
            run("ip", "netns", "delete", namespace, check=False)
            shutil.rmtree(f"/etc/netns/{namespace}", ignore_errors=True)
        run("ip", "link", "delete", bridge, check=False)


def test_gang_across_two_machines(make_cluster, source_dir, two_machines):
    with make_cluster(machines=two_machines) as cluster:
        job_id = cluster.submit(tiny_job(source_dir, "two-machines", steps=6))
        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert {rank["worker_id"] for rank in job["attempts"][-1]["ranks"]} == set(MACHINES)
        assert job["attempt"] == 2, "one attempt to prepare, one to train"
