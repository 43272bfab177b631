"""A backup of a running server becomes a new server: jobs go on from what the backup knows, and the ranks of the time since are
refused."""

import shutil
import subprocess

from cluster import wait_until
from jobs import fake_job


def server_command(cluster, *arguments):
    return subprocess.run([str(cluster.bin / "longspan-server"), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_a_backup_is_restored_while_workers_still_run_what_it_does_not_know(make_cluster):
    with make_cluster(trainer="longspan-fake-trainer", workers=1, slots=2) as cluster:
        job_id = cluster.submit(fake_job("long", steps=200, step_ms=20, slots=2))
        cluster.wait_for_step(job_id, 6)
        backup = cluster.folder / "backup.db"
        made = server_command(cluster, "backup", "--data-dir", cluster.folder / "server", "--to", backup)
        assert made.returncode == 0, made.stderr
        late = cluster.submit(fake_job("late", steps=5, slots=1))  # the backup knows nothing of it
        step = int(cluster.wait_for_step(job_id, 30)["progress"]["step"])

        cluster.server.kill()
        shutil.rmtree(cluster.folder / "server")
        restored = server_command(cluster, "restore", "--from", backup, "--data-dir", cluster.folder / "server")
        assert restored.returncode == 0, restored.stderr
        assert restored.stdout.startswith("restored 1 jobs, 1 of them unfinished"), restored.stdout
        again = server_command(cluster, "restore", "--from", backup, "--data-dir", cluster.folder / "server")
        assert again.returncode == 1 and "overwrites nothing" in again.stderr
        cluster.start_server()

        job = cluster.wait_for_state(job_id, "SUCCEEDED")
        assert int(job["attempt"]) > 1000 and int(job["progress"]["step"]) == 200
        resumed = job["attempts"][-1]["resumed_from"]
        assert 0 < int(resumed.split("-")[1].split(".")[0]) < step, resumed
        assert cluster.cli("describe", late, check=False).returncode == 6
        wait_until(lambda: not cluster.rank_processes(), "every rank to be gone")


def test_a_deleted_job_is_gone_and_its_files_stay(make_cluster):
    with make_cluster(trainer="longspan-fake-trainer", workers=1) as cluster:
        job_id = cluster.submit(fake_job("short", steps=3, slots=1))
        cluster.wait_for_state(job_id, "SUCCEEDED")
        cluster.cli("delete", job_id)
        assert cluster.cli("describe", job_id, check=False).returncode == 6
        assert any((cluster.storage / "jobs" / job_id).iterdir())
