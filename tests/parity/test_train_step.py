"""What `train` computes: the gradients it reduces, its updates, two ranks as one, and resume to the bit."""

import shutil
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import save_file

from reference import compare, oracle, tiny_jobs, trainer, work_folder
from reference.tensors import read_tensors
from reference.tiny_models import TinyModel

SMALL = TinyModel(hidden=36, heads=9, kv_heads=3, intermediate=48)
WAIT_S = 60


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory):
    return tiny_jobs.write_job(tmp_path_factory.mktemp("job"), SMALL)


@pytest.fixture(scope="module")
def tied_job(tmp_path_factory):
    return tiny_jobs.write_job(tmp_path_factory.mktemp("job"), TinyModel(tied=True))


def train(spec, work, *more, code=0):
    work.parent.mkdir(parents=True, exist_ok=True)
    file = trainer.write_spec(spec, work.with_suffix(".json"))
    done = trainer.command("train", file, "--work", work, *more)
    assert done.returncode == code, trainer.report(done)
    return done


def start_two_ranks(spec, work, *more):
    work.parent.mkdir(parents=True, exist_ok=True)
    file = trainer.write_spec(spec, work.with_suffix(".json"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        trainer.start("train", file, "--work", work, "--rank", rank, "--world-size", 2, "--store", store, *more)
        for rank in range(2)
    ]


def end(children):
    """(exit code, output) of each; none outlives the test."""
    try:
        outputs = [child.communicate(timeout=WAIT_S) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    return [(child.returncode, (out + err)[-4000:]) for child, (out, err) in zip(children, outputs)]


def train_two_ranks(spec, work, *more, code=0):
    ends = end(start_two_ranks(spec, work, *more))
    assert [exit_code for exit_code, _ in ends] == [code, code], ends


def wait_for_steps(work, steps, children):
    """Returns once progress.jsonl has `steps` lines."""
    deadline, lines = time.monotonic() + WAIT_S, work / "progress.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") >= steps):
        if any(child.poll() is not None for child in children) or time.monotonic() > deadline:
            raise AssertionError(f"no progress to interrupt: {end(children)}")
        time.sleep(0.002)


def with_changes(job, **changes):
    return trainer.merged_spec(job.spec, changes)


def dumped(folder):
    """By step: input_ids, loss and gradients of every step that ran."""
    steps = {int(file.stem.removeprefix("step-")): read_tensors(file) for file in folder.glob("step-*.safetensors")}
    assert steps, "--dump-gradients wrote nothing"
    return steps


def gradients_of(step):
    return {name.removeprefix("grad."): tensor for name, tensor in step.items() if name.startswith("grad.")}


def trained_tensors(checkpoint):
    files = [file for name in ("adapter_model.safetensors", "model.safetensors") if (file := checkpoint / name).exists()]
    assert len(files) == 1, sorted(file.name for file in checkpoint.iterdir())
    return read_tensors(files[0])


METHODS = [
    pytest.param({"kind": "full"}, id="full"),
    pytest.param({"kind": "lora", "rank": 4, "alpha": 8}, id="lora"),
    pytest.param({"kind": "longlora", "rank": 4, "alpha": 8}, id="longlora"),
]


def without_method(spec):
    return {key: value for key, value in spec.items() if key != "method"}


# ---- one step ----


@pytest.mark.parametrize("method", METHODS)
def test_step_one_reduces_the_gradients_of_the_probe(method, tiny_job, tmp_path, trainer_binary):
    spec = {**without_method(tiny_job.spec), "method": method}
    spec["training"] = {**spec["training"], "steps": 1}
    train(spec, tmp_path / "work", "--dump-gradients", tmp_path / "dump")
    step = dumped(tmp_path / "dump")[1]
    assert step["input_ids"].shape == (4, 128)
    probed = trainer.probe(spec, step["input_ids"], None, tmp_path)
    expected = {name.removeprefix("grad."): tensor for name, tensor in probed.items() if name.startswith("grad.")}
    compare.assert_close(gradients_of(step), expected, 1e-5)
    first = work_folder.progress(tmp_path / "work")[0]
    assert first["step"] == 1
    assert abs(first["loss"] - probed["loss"].item()) < 1e-5 * abs(first["loss"])


@pytest.mark.parametrize("method", METHODS)
def test_updates_follow_torch_adamw(method, tiny_job, tmp_path, trainer_binary):
    """Three steps of clip, warm-up and AdamW with decay, fed with the same sequences."""
    training = {
        "steps": 3, "warmup_steps": 2, "learning_rate": 3e-3, "clip_norm": 0.3, "weight_decay": 0.1, "epsilon": 1e-6,
    }  # fmt: skip
    spec = {**without_method(tiny_job.spec), "method": method}
    spec = trainer.merged_spec(spec, {"training": training, "checkpoint": {"every_steps": 1}})
    if method["kind"] != "full":
        spec["method"]["adapter"] = str(oracle.write_adapter(tiny_job.model, tmp_path / "start", spec, rank=4, alpha=8))
    train(spec, tmp_path / "work", "--dump-gradients", tmp_path / "dump")
    steps, lines = dumped(tmp_path / "dump"), work_folder.progress(tmp_path / "work")
    assert [line["learning_rate"] for line in lines] == pytest.approx([1.5e-3, 3e-3, 3e-3])

    model = oracle.load_for_training(tiny_job.model, spec)
    parameters = {oracle.saved_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=0.0, betas=(0.9, 0.95), eps=training["epsilon"], weight_decay=training["weight_decay"]
    )
    for number, line in enumerate(lines, start=1):
        result = oracle.run(model, spec, steps[number]["input_ids"])
        assert abs(line["loss"] - result.loss.item()) < 1e-4 * abs(line["loss"])
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), training["clip_norm"])
        assert norm > training["clip_norm"], "the case must clip"
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        for group in optimizer.param_groups:
            group["lr"] = line["learning_rate"]
        optimizer.step()
        expected = {name: parameter.detach() for name, parameter in parameters.items()}
        compare.assert_close(trained_tensors(work_folder.checkpoints(tmp_path / "work")[number]), expected)


def test_micro_batches_and_a_batch_that_they_do_not_divide(tiny_job, tmp_path, trainer_binary):
    """The step's loss and gradients do not depend on how it is cut."""
    seen = []
    for micro in (1, 2, 3, 4):
        spec = with_changes(tiny_job, training={"steps": 1, "micro_batch": micro})
        train(spec, tmp_path / f"micro-{micro}", "--dump-gradients", tmp_path / f"dump-{micro}")
        seen.append(dumped(tmp_path / f"dump-{micro}")[1])
    for other in seen[1:]:
        assert torch.equal(other["input_ids"], seen[0]["input_ids"])
        compare.assert_close(gradients_of(other), gradients_of(seen[0]), 1e-5)


def test_sequences_come_from_the_prepared_tokens(tiny_job, tmp_path, trainer_binary):
    spec = with_changes(tiny_job, training={"steps": 3})
    train(spec, tmp_path / "work", "--dump-gradients", tmp_path / "dump")
    tokens, _, _ = work_folder.prepared(tmp_path / "work")
    text = tokens.tobytes()
    rows = [row for step in dumped(tmp_path / "dump").values() for row in step["input_ids"]]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows), "a sequence came twice within an epoch"
    inside = sum(text.find(row.numpy().tobytes()) >= 0 for row in rows)
    # A held-out stretch cut from the middle leaves at most some sequences that span its place.
    assert inside >= len(rows) - 2


# ---- ranks ----


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one(method, tiny_job, tmp_path, trainer_binary):
    spec = {**without_method(tiny_job.spec), "method": method}
    # Five sequences: the ranks' shares are not equal.
    spec = trainer.merged_spec(spec, {"training": {"steps": 3, "global_batch": 5}, "checkpoint": {"every_steps": 3}})
    train(spec, tmp_path / "one", "--dump-gradients", tmp_path / "dump-one")
    train_two_ranks(spec, tmp_path / "two", "--dump-gradients", tmp_path / "dump-two")
    one, two = dumped(tmp_path / "dump-one"), dumped(tmp_path / "dump-two")
    compare.assert_close(gradients_of(two[1]), gradients_of(one[1]), 1e-5)
    losses = [[line["loss"] for line in work_folder.progress(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# ---- resume ----


def final_tensors(work, step):
    return work_folder.checkpoint_tensors(work_folder.checkpoints(work)[step])


def assert_bit_equal(actual, expected):
    assert set(actual) == set(expected)
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different, different


@pytest.fixture(scope="module")
def straight(tiny_job, tmp_path_factory):
    """Six steps without interruption, with dropout, which must resume as well."""
    spec = with_changes(tiny_job, training={"steps": 6}, method={"dropout": 0.1}, checkpoint={"every_steps": 2})
    work = tmp_path_factory.mktemp("straight") / "work"
    train(spec, work)
    return spec, work


def test_checkpoint_holds_moments_and_masters(straight, trainer_binary):
    tensors = final_tensors(straight[1], 6)
    trained = [name for name in tensors if name.startswith("adapter_model.safetensors:")]
    assert len(tensors) >= 3 * len(trained)


def test_the_same_run_twice_is_bit_equal(straight, tmp_path, trainer_binary):
    spec, work = straight
    train(spec, tmp_path / "again")
    assert_bit_equal(final_tensors(tmp_path / "again", 6), final_tensors(work, 6))


@pytest.mark.parametrize("stop", [2, 3])
def test_resume_is_bit_equal(stop, straight, tmp_path, trainer_binary):
    spec, work = straight
    train(trainer.merged_spec(spec, {"training": {"steps": stop}}), tmp_path / "resumed")
    train(spec, tmp_path / "resumed")
    assert_bit_equal(final_tensors(tmp_path / "resumed", 6), final_tensors(work, 6))
    losses = [[line["loss"] for line in work_folder.progress(folder)] for folder in (work, tmp_path / "resumed")]
    assert losses[0] == losses[1]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(straight, tmp_path, trainer_binary):
    spec, work = straight
    resumed = tmp_path / "resumed"
    train(trainer.merged_spec(spec, {"training": {"steps": 4}}), resumed)
    file = work_folder.checkpoints(resumed)[4] / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    train(spec, resumed)
    assert_bit_equal(final_tensors(resumed, 6), final_tensors(work, 6))


def test_checkpoint_without_manifest_does_not_exist(straight, tmp_path, trainer_binary):
    spec, work = straight
    resumed = tmp_path / "resumed"
    train(trainer.merged_spec(spec, {"training": {"steps": 4}}), resumed)
    (work_folder.checkpoints(resumed)[4] / "MANIFEST.json").unlink()
    train(spec, resumed)
    assert_bit_equal(final_tensors(resumed, 6), final_tensors(work, 6))


def test_resume_with_another_number_of_ranks(straight, tmp_path, trainer_binary):
    spec, work = straight
    resumed = tmp_path / "resumed"
    train(trainer.merged_spec(spec, {"training": {"steps": 4}}), resumed)
    train_two_ranks(spec, resumed)
    actual, expected = trained_tensors(work_folder.checkpoints(resumed)[6]), trained_tensors(work_folder.checkpoints(work)[6])
    compare.assert_close(actual, expected, 1e-3)


def test_sigterm_saves_and_resume_is_bit_equal(tiny_job, tmp_path, trainer_binary):
    spec = with_changes(tiny_job, training={"steps": 120, "global_batch": 2}, checkpoint={"every_steps": 60})
    train(spec, tmp_path / "straight")
    stopped = tmp_path / "stopped"
    child = trainer.start("train", trainer.write_spec(spec, tmp_path / "spec.json"), "--work", stopped)
    wait_for_steps(stopped, 3, [child])
    child.send_signal(signal.SIGTERM)
    [(exit_code, output)] = end([child])
    assert exit_code == 40, output
    [step] = work_folder.checkpoints(stopped)
    assert 3 <= step < 120
    train(spec, stopped)
    assert_bit_equal(final_tensors(stopped, 120), final_tensors(tmp_path / "straight", 120))


def test_sigterm_of_one_rank_stops_both_after_a_checkpoint(tiny_job, tmp_path, trainer_binary):
    """No rank acts alone: the wish travels with the gradients, and both stop at the same step."""
    spec = with_changes(tiny_job, training={"steps": 2000, "global_batch": 2}, checkpoint={"every_steps": 1000})
    ranks = start_two_ranks(spec, tmp_path / "work")
    wait_for_steps(tmp_path / "work", 3, ranks)
    ranks[1].send_signal(signal.SIGTERM)
    ends = end(ranks)
    assert [exit_code for exit_code, _ in ends] == [40, 40], ends
    assert len(work_folder.checkpoints(tmp_path / "work")) == 1


def test_killed_rank_ends_the_other_and_the_rest_is_bit_equal(tiny_job, tmp_path, trainer_binary):
    spec = with_changes(tiny_job, training={"steps": 200, "global_batch": 2}, checkpoint={"every_steps": 20})
    train_two_ranks(spec, tmp_path / "straight")
    ranks = start_two_ranks(spec, tmp_path / "killed")
    wait_for_steps(tmp_path / "killed", 25, ranks)
    ranks[1].kill()
    (survivor, output), _ = end(ranks)
    # The other rank may notice by an error that it reports or by the collective's own abort, but never hangs.
    assert survivor == 30 or survivor < 0, output
    train_two_ranks(spec, tmp_path / "killed")
    assert_bit_equal(final_tensors(tmp_path / "killed", 200), final_tensors(tmp_path / "straight", 200))


def test_bf16_values_are_rounded_fp32_masters(tiny_job, tmp_path, trainer_binary):
    spec = with_changes(tiny_job, training={"dtype": "bf16", "learning_rate": 1e-4})
    train(spec, tmp_path / "work")
    checkpoint = work_folder.checkpoints(tmp_path / "work")[4]
    values, state = trained_tensors(checkpoint), read_tensors(checkpoint / "optimizer.safetensors")
    masters = {name.removeprefix("master."): tensor for name, tensor in state.items() if name.startswith("master.")}
    assert set(masters) == set(values)
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())
    assert all(torch.equal(values[name], masters[name].to(torch.bfloat16)) for name in values)
    # Steps this small would be lost in bf16: the masters keep them.
    norm = "base_model.model.model.norm.weight"
    assert not torch.equal(masters[norm], values[norm].float())


def test_weights_that_are_not_finite_fail_the_job(tmp_path, trainer_binary):
    job = tiny_jobs.write_job(tmp_path / "job", SMALL)
    file = job.model / "model.safetensors"
    tensors = read_tensors(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    spec = trainer.write_spec(trainer.merged_spec(job.spec, {"training": {"steps": 500}}), tmp_path / "spec.json")
    done = trainer.command("train", spec, "--work", tmp_path / "work")
    assert done.returncode == 10 and "in a row" in done.stderr and "loss nan" in done.stderr, trainer.report(done)


def test_work_folder_may_move(straight, tmp_path, trainer_binary):
    """A job's folder on shared storage is mounted where it is mounted."""
    spec, work = straight
    train(trainer.merged_spec(spec, {"training": {"steps": 4}}), tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    train(spec, tmp_path / "there")
    assert_bit_equal(final_tensors(tmp_path / "there", 6), final_tensors(work, 6))


# ---- tied embeddings ----


def test_tied_step_one_reduces_one_embedding_gradient(tied_job, tmp_path, trainer_binary):
    spec = with_changes(tied_job, training={"steps": 1})
    train(spec, tmp_path / "work", "--dump-gradients", tmp_path / "dump")
    step = dumped(tmp_path / "dump")[1]
    expected = oracle.reference(tied_job.model, spec, step["input_ids"]).gradients
    actual = gradients_of(step)
    assert set(actual) == set(expected)
    shared = [name for name in expected if ".lora_B." not in name]
    compare.assert_close({n: actual[n] for n in shared}, {n: expected[n] for n in shared})
