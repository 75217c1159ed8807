import json

from bench.overhead.client import Prompt, Shape
from bench.overhead.engine import MODEL
from bench.overhead.prompts import made_up, past_row

PROMPT = Prompt("You are a poet.", "Write: a poem?", "user-1")


def test_a_stream_tells_the_engine_its_chunks_and_its_pace():
    body = json.loads(Shape(chunks=100, pace_ms=20).body(PROMPT))
    assert (body["stream"], body["max_tokens"], body["seed"]) == (True, 100, 20)


def test_a_json_request_asks_for_no_stream():
    body = json.loads(Shape().body(PROMPT))
    assert "stream" not in body
    assert body["model"] == MODEL
    assert [message["content"] for message in body["messages"]] == [PROMPT.system, PROMPT.text]


def test_prompts_are_the_same_for_a_seed_and_others_for_another():
    assert list(made_up(20, seed=1)) == list(made_up(20, seed=1))
    assert list(made_up(20, seed=1)) != list(made_up(20, seed=2))


def test_answers_are_as_long_as_their_prompt_asks_for():
    by_cue = {}
    for prompt, tokens in made_up(600):
        by_cue.setdefault(prompt.text.split(":")[0], []).append(tokens)
    mean = {cue: sum(tokens) / len(tokens) for cue, tokens in by_cue.items()}
    assert mean["Classify"] < 10 < 100 < mean["Explain in detail"]


def test_a_past_row_names_all_that_history_remembers():
    row = past_row(PROMPT, 12, "bench")
    assert row["prompt"] == PROMPT.text
    assert (row["app"], row["user"], row["output_tokens"]) == ("bench", "user-1", 12)
