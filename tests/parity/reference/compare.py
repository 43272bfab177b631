"""How near is near enough: per tensor, relative to the largest value of the reference."""

import torch

TOLERANCE = 1e-4  # in fp32


def relative_error(actual, expected):
    """max|a − b| / max|b|; 0 when both are exactly zero, infinite when only the reference is."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    actual, expected = actual.double(), expected.double()
    if not torch.isfinite(actual).all():
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    largest, difference = expected.abs().max().item(), (actual - expected).abs().max().item()
    if largest == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / largest


def errors(actual, expected):
    """Relative error by name; the names must be the same."""
    assert set(actual) == set(expected), (
        f"missing: {sorted(set(expected) - set(actual))}; not expected: {sorted(set(actual) - set(expected))}"
    )
    return {name: relative_error(actual[name], expected[name]) for name in expected}


def assert_close(actual, expected, tolerance=TOLERANCE):
    wrong = {name: error for name, error in errors(actual, expected).items() if not error < tolerance}
    worst = sorted(wrong.items(), key=lambda item: -item[1])[:12]
    assert not wrong, f"{len(wrong)} of {len(expected)} tensors differ: {worst}"


def named(result):
    """A reference result under the names that the probe writes."""
    tensors = {"loss": result.loss, "logits": result.logits}
    tensors.update({f"grad.{name}": gradient for name, gradient in result.gradients.items()})
    return tensors
