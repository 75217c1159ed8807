"""Past requests for simulations that are small enough to check by hand."""

from gateway.training.rows import PastRow


def rows(count, *, output_tokens=200, input_tokens=100, t=None, app="chat"):
    return [
        PastRow(
            app=app,
            prompt=f"p{i}",
            input_tokens=input_tokens,
            output_tokens=output_tokens(i) if callable(output_tokens) else output_tokens,
            t=t and t(i),
        )
        for i in range(count)
    ]


def two_apps(count):
    """Return rows of two applications in turn: one with short answers, one with long ones."""
    return [
        PastRow(app=("short", "long")[i % 2], prompt=f"p{i}", input_tokens=10, output_tokens=(8, 400)[i % 2] + i % 5)
        for i in range(count)
    ]
