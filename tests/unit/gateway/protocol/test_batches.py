import json

import pytest

from gateway.errors import ProtocolError
from gateway.protocol.batches import DONE, batch_body, split_answer
from gateway.protocol.openai import read_completion


def body(**fields):
    return json.dumps({"model": "llama", "prompt": "a", "max_tokens": 9, **fields}).encode()


def choice(text, index=None, finish_reason="stop", **fields):
    told = {} if index is None else {"index": index}
    return {"text": text, **told, "logprobs": None, "finish_reason": finish_reason, **fields}


def answer(*choices, prompt_tokens=None, completion_tokens=None, **fields):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": 0}
    told = {"usage": usage} if prompt_tokens is not None else {}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "llama"}
    return json.dumps({**head, "choices": list(choices), **told, **fields}).encode()


def counts(shares):
    return [(share.usage.prompt_tokens, share.usage.completion_tokens) for share in shares]


def test_the_body_of_a_batch_has_all_prompts_and_no_member_fields():
    bodies = [body(prompt='a "quoted" ü', stream=True, user="ann", top_k=5), body(prompt="b", top_k=5)]
    assert json.loads(batch_body([read_completion(body) for body in bodies])) == {
        "model": "llama",
        "prompt": ['a "quoted" ü', "b"],
        "max_tokens": 9,
        "top_k": 5,
    }


def test_each_request_gets_the_answer_to_its_own_prompt_in_any_order():
    told = answer(choice("two", 1), choice("one", 0), prompt_tokens=30, completion_tokens=6, extra={"x": 1})
    shares = split_answer(told, [10, 20], max_tokens=9)
    first, second = (json.loads(share.whole()) for share in shares)
    assert first == {
        "id": "cmpl-1-0",
        "object": "text_completion",
        "created": 7,
        "model": "llama",
        "extra": {"x": 1},
        "choices": [choice("one", 0)],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }
    assert second["choices"] == [choice("two", 0)]
    assert second["id"] == "cmpl-1-1"
    assert second["usage"]["prompt_tokens"] == 20


def test_tokens_are_divided_by_the_texts_and_the_predicted_prompts_and_sum_to_the_engine_s():
    told = answer(choice("x" * 100), choice("x" * 10), choice(""), prompt_tokens=101, completion_tokens=33)
    shares = split_answer(told, [1, 1, 2], max_tokens=None)
    assert counts(shares) == [(25, 30), (25, 3), (51, 0)]


def test_a_cut_answer_has_max_tokens():
    long_words = choice("x" * 1000, finish_reason="length")
    shares = split_answer(answer(long_words, choice("short"), prompt_tokens=2, completion_tokens=14), [1, 1], 9)
    assert [share.usage.completion_tokens for share in shares] == [9, 5]
    assert [share.finish_reason for share in shares] == ["length", "stop"]


@pytest.mark.parametrize("total", [4, 19])
def test_a_sum_that_cuts_cannot_explain_is_divided_by_the_texts(total):
    cut = choice("xx", finish_reason="length")
    shares = split_answer(answer(cut, cut, prompt_tokens=2, completion_tokens=total), [1, 1], 9)
    assert sum(share.usage.completion_tokens for share in shares) == total


def test_an_engine_s_counts_for_each_answer_are_used():
    told = answer(
        choice("xxxx", usage={"prompt_tokens": 3, "completion_tokens": 1}),
        choice("x", usage={"prompt_tokens": 4, "completion_tokens": 8}),
        prompt_tokens=7,
        completion_tokens=9,
    )
    assert counts(split_answer(told, [1, 1], 9)) == [(3, 1), (4, 8)]
    assert "usage" not in json.loads(split_answer(told, [1, 1], 9)[0].whole())["choices"][0]


def test_without_the_engine_s_counts_there_are_none():
    share = split_answer(answer(choice("a"), choice("b")), [1, 1], 9)[0]
    assert share.usage is None
    assert json.loads(share.whole())["usage"] is None


def test_a_streaming_request_gets_its_text_in_one_event():
    share = split_answer(answer(choice("a"), choice("b"), prompt_tokens=2, completion_tokens=4), [1, 1], 9)[1]
    event, done, rest = share.stream(with_usage=False).split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["choices"] == [choice("b", 0)]
    assert (done + b"\n\n", rest) == (DONE, b"")


def test_a_request_for_token_counts_gets_them_in_the_last_event():
    share = split_answer(answer(choice("a"), choice("b"), prompt_tokens=2, completion_tokens=4), [1, 1], 9)[1]
    text, usage, _, _ = share.stream(with_usage=True).split(b"\n\n")
    assert json.loads(text.removeprefix(b"data: "))["usage"] is None
    last = json.loads(usage.removeprefix(b"data: "))
    assert (last["choices"], last["usage"]["completion_tokens"], last["id"]) == ([], 2, "cmpl-1-1")


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"<html>", "not one of its API"),
        (b'{"choices": [7]}', "not one of its API"),
        (b'{"choices": [{"index": 0}]}', "1 answers to 2 prompts"),
        (b'{"error": {"message": "no luck"}}', "no luck"),
        (answer(choice("a")), "1 answers to 2 prompts"),
        (answer(choice("a", 1), choice("b", 1)), "2 answers to 2 prompts"),
        (answer(choice("a", 1), choice("b", 2)), "2 answers to 2 prompts"),
    ],
)
def test_a_wrong_number_of_answers_is_a_protocol_error(told, why):
    with pytest.raises(ProtocolError, match=why):
        split_answer(told, [1, 1], 9)
