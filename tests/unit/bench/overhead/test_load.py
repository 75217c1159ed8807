import json

from bench.overhead.engine import MODEL
from bench.overhead.load import AnswerShape
from bench.overhead.prompts import Prompt, generated_prompts, past_row

PROMPT = Prompt("You are a poet.", "Write: a poem?", "user-1")


def test_stream_request_carries_chunks_and_pace():
    body = json.loads(AnswerShape(chunks=100, pace_ms=20).body(PROMPT))
    assert (body["stream"], body["max_tokens"], body["seed"]) == (True, 100, 20)


def test_json_request_has_no_stream_field():
    body = json.loads(AnswerShape().body(PROMPT))
    assert "stream" not in body
    assert body["model"] == MODEL
    assert [message["content"] for message in body["messages"]] == [PROMPT.system, PROMPT.text]


def test_seed_determines_the_prompts():
    assert list(generated_prompts(20, seed=1)) == list(generated_prompts(20, seed=1))
    assert list(generated_prompts(20, seed=1)) != list(generated_prompts(20, seed=2))


def test_first_words_of_a_prompt_determine_the_length():
    by_cue = {}
    for prompt, tokens in generated_prompts(600):
        by_cue.setdefault(prompt.text.split(":")[0], []).append(tokens)
    mean = {cue: sum(tokens) / len(tokens) for cue, tokens in by_cue.items()}
    assert mean["Classify"] < 10 < 100 < mean["Explain in detail"]


def test_past_row_has_all_fields_of_history():
    row = past_row(PROMPT, 12, "bench")
    assert row["prompt"] == PROMPT.text
    assert (row["app"], row["user"], row["output_tokens"]) == ("bench", "user-1", 12)
