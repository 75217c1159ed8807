"""Which prompt prefixes of chats are equal."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.openai import MAX_TURNS, read_chat

texts = st.text(max_size=30)
messages = st.builds(
    lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "tool", "assistant"]), texts
)
systems = texts.map(lambda text: {"role": "system", "content": text})
turns = st.lists(messages, min_size=1, max_size=12)


def keys(*sent, **fields):
    body = {"model": "llama", "temperature": 0.5, "messages": list(sent), **fields}
    return [prefix.key for prefix in read_chat(json.dumps(body).encode()).prefixes]


@given(systems, turns, st.lists(messages, max_size=6), texts)
def test_the_next_turn_shares_the_prefix_of_the_last_one(system, sent, tools, answer):
    tools = [{**message, "role": "tool"} for message in tools]
    follows = [{"role": "assistant", "content": answer}, *tools, {"role": "user", "content": "and?"}]
    assert keys(system, *sent)[0] in keys(system, *sent, *follows, stream=True)


@given(systems, turns, turns)
def test_chats_under_one_system_prompt_share_it(system, one, other):
    assert set(keys(system, *one)) & set(keys(system, *other))


@given(turns, messages, messages)
def test_chats_that_differ_in_the_last_message_only_share_the_rest(sent, one, other):
    assert set(keys(*sent, one)) & set(keys(*sent, other))


@given(systems, systems, turns)
def test_chats_under_different_system_prompts_share_nothing(one, other, sent):
    shared = set(keys(one, *sent)) & set(keys(other, *sent))
    assert bool(shared) == (one == other)


@given(systems, turns)
def test_chats_with_other_tools_or_of_another_model_share_nothing(system, sent):
    plain = set(keys(system, *sent))
    assert not plain & set(keys(system, *sent, tools=[{"type": "function"}]))
    assert not plain & set(keys(system, *sent, model="mistral"))


@given(st.lists(messages, max_size=40))
def test_prefixes_are_few_and_shrink_from_the_whole(sent):
    body = json.dumps({"model": "llama", "messages": sent}).encode()
    shares = [prefix.share for prefix in read_chat(body).prefixes]
    assert len(shares) <= MAX_TURNS + 3
    assert shares == sorted(shares, reverse=True)
    assert not sent or shares[0] == 1.0
    assert all(0.0 < share <= 1.0 for share in shares)
