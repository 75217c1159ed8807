"""Past requests for the paper's comparison."""

from gateway.training.rows import PastRow


def rows(count=400):
    """Return rows with short answers mostly, and some long ones."""
    return [
        PastRow(app="a", prompt=f"p{i}", input_tokens=20 + i % 90, output_tokens=10 + 7 * (i % 9) + 400 * (i % 8 == 0))
        for i in range(count)
    ]
