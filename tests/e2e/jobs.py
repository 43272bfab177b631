"""Job files of the end-to-end tests, as dictionaries."""


def fake_job(name, steps=40, step_ms=20, slots=2, **labels):
    """For longspan-fake-trainer: its behaviour is told by labels."""
    return {
        "name": name,
        "labels": {"fake.steps": str(steps), "fake.step_ms": str(step_ms), **labels},
        "model": {"path": "/nonexistent/model"},
        "data": {"sources": ["/nonexistent/data"]},
        "context_length": 64,
        "training": {"steps": steps},
        "checkpoint": {"every_steps": 5},
        "resources": {"slots": slots},
    }


def tiny_job(source_dir, name, steps=30, slots=2, **changes):
    """For the real trainer: the example model and corpus, a short context, a checkpoint every five steps."""
    examples = source_dir / "deploy" / "examples"
    spec = {
        "name": name,
        "model": {"path": str(examples / "tiny-base")},
        "data": {"sources": [str(examples / "corpus")], "holdout_fraction": 0.004},
        "context_length": 512,
        "method": {"kind": "longlora"},
        "training": {"steps": steps, "global_batch": 4, "learning_rate": 1e-3, "warmup_steps": 5, "seed": 7},
        "evaluation": {"lengths": [256, 512]},
        "checkpoint": {"every_steps": 5},
        "resources": {"slots": slots},
    }
    spec.update(changes)
    return spec
