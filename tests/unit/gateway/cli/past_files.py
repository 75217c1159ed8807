"""Small files of past requests."""

import json


def rows_file(folder, count=300):
    """Write rows with texts and without times."""
    lines = [
        json.dumps(
            {"app": "a", "prompt": f"p{i}", "input_tokens": 20, "output_tokens": 5 + 7 * i % 200, "group": str(i)}
        )
        for i in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def trace_file(folder, count=420):
    """Write arrivals and lengths of two users, one with short answers and one with long answers."""
    lines = ["arrival_s,input_tokens,output_tokens,app,user"]
    lines += [f"{0.1 * i:.1f},50,{(10, 300)[i % 2] + i % 7},chat,u{i % 2}" for i in range(count)]
    path = folder / "trace.csv"
    path.write_text("\n".join(lines))
    return path
