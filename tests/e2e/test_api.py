"""The API that applications rely on, through OpenAI's client, on a simulated engine and on a real vLLM."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.e2e.conftest import both_ways
from tests.e2e.engines import CONTEXT_TOKENS, MODEL, Engine
from tests.e2e.gateway import DEADLINE_S, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = CONTEXT_TOKENS - 200
"""Tokens of an answer that runs until its client disconnects."""


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Gateway, app: str) -> AsyncIterator[AsyncOpenAI]:
    async with gateway.sdk(app) as client:
        yield client


SendRequest = Callable[..., Awaitable[Any]]


async def send_chat(
    sdk: AsyncOpenAI, prompt: str = "hello", *, tokens: int = 8, model: str = MODEL, **fields: Any
) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return await sdk.chat.completions.create(model=model, messages=messages, **_exactly(tokens), **fields)


async def send_completion(
    sdk: AsyncOpenAI, prompt: Any = "hello", *, tokens: int = 8, model: str = MODEL, **fields: Any
) -> Any:
    return await sdk.completions.create(model=model, prompt=prompt, **_exactly(tokens), **fields)


def _exactly(tokens: int) -> dict[str, Any]:
    return {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}


both_routes = pytest.mark.parametrize("send", [send_chat, send_completion], ids=["chat", "completions"])


def text_of(choice: Any) -> str:
    """Return the text of a choice, of any route, of a whole answer or a chunk."""
    if hasattr(choice, "text"):
        return choice.text
    return (choice.delta if hasattr(choice, "delta") else choice.message).content or ""


async def collect(stream: Any) -> tuple[dict[int, str], list[Any], list[Any]]:
    """Read a stream to its end: text by choice, the usage objects, and the chunks without choices."""
    texts: dict[int, str] = {}
    usages, without_choices = [], []
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + text_of(choice)
        if chunk.usage is not None:
            usages.append(chunk.usage)
        if not chunk.choices:
            without_choices.append(chunk)
    return texts, usages, without_choices


@both_routes
async def test_stream_has_the_content_of_the_whole_answer(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, send: SendRequest
) -> None:
    greedy = {"tokens": 12, "temperature": 0}
    whole = await send(sdk, **greedy)
    texts, (usage,), _ = await collect(await send(sdk, **greedy, stream=True, stream_options={"include_usage": True}))

    assert texts == {0: text_of(whole.choices[0])}
    assert texts[0]
    assert whole.choices[0].finish_reason == "length"
    assert usage.completion_tokens == whole.usage.completion_tokens == 12
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    await gateway.wait_for_totals(app, ok=2, output_tokens=24, input_tokens=2 * usage.prompt_tokens)


@both_routes
async def test_usage_chunk_comes_last_if_requested(sdk: AsyncOpenAI, send: SendRequest) -> None:
    chunks = [chunk async for chunk in await send(sdk, tokens=5, stream=True, stream_options={"include_usage": True})]

    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5


@both_routes
@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}], ids=["none", "null", "off"]
)
async def test_history_is_exact_if_the_client_did_not_request_usage(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, send: SendRequest, options: dict[str, Any]
) -> None:
    texts, usages, without_choices = await collect(await send(sdk, tokens=7, stream=True, **options))

    assert texts[0]
    assert (usages, without_choices) == ([], [])
    totals = await gateway.wait_for_totals(app, ok=1, output_tokens=7)
    assert totals["input_tokens"] > 0


@both_routes
@both_ways
async def test_response_has_the_headers_of_the_gateway(sdk: AsyncOpenAI, send: SendRequest, stream: bool) -> None:
    raw = sdk.chat.completions if send is send_chat else sdk.completions
    prompt = {"messages": [{"role": "user", "content": "x"}]} if send is send_chat else {"prompt": "x"}
    headers = {"X-Request-Id": "my-own-7"}
    async with raw.with_streaming_response.create(
        model=MODEL, max_tokens=3, stream=stream, extra_headers=headers, **prompt
    ) as response:
        body = await response.text()

    assert response.headers["x-request-id"] == "my-own-7"
    assert int(response.headers["x-magnus-predicted-tokens"]) >= 1
    assert float(response.headers["x-magnus-queue-ms"]) >= 0
    assert response.headers["x-magnus-backend"] == "gpu-0"
    # vLLM names its answer after the request id that it gets, and a client must not choose that one.
    assert f'"{"chatcmpl" if send is send_chat else "cmpl"}-' in body
    assert "my-own-7" not in body


async def test_request_without_an_id_gets_one(sdk: AsyncOpenAI) -> None:
    answers = [await send_chat(sdk, tokens=1) for _ in range(2)]

    ids = {answer._request_id for answer in answers}
    assert len(ids) == 2
    assert [answer.id for answer in answers] == [f"chatcmpl-{answer._request_id}" for answer in answers]


@both_ways
async def test_prompt_list_has_a_choice_for_each_prompt_and_one_usage(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, stream: bool
) -> None:
    prompts = ["one", "two and more of it", "three"]
    single = [await send_completion(sdk, prompt, tokens=4) for prompt in prompts]
    before = await gateway.wait_for_totals(app, ok=3)

    if stream:
        options = {"include_usage": True}
        texts, (usage,), _ = await collect(
            await send_completion(sdk, prompts, tokens=4, stream=True, stream_options=options)
        )
    else:
        answer = await send_completion(sdk, prompts, tokens=4)
        texts, usage = {choice.index: text_of(choice) for choice in answer.choices}, answer.usage

    assert sorted(texts) == [0, 1, 2]
    assert all(texts.values())
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in single) == before["input_tokens"]
    await gateway.wait_for_totals(app, ok=4, output_tokens=24, input_tokens=2 * usage.prompt_tokens)


@pytest.mark.parametrize(
    ("prompt", "prompt_tokens", "choices"),
    [([11, 12, 13], 3, 1), ([[11, 12], [13, 14, 15, 16]], 6, 2)],
    ids=["one", "list"],
)
async def test_token_arrays_are_counted_exactly(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, prompt: Any, prompt_tokens: int, choices: int
) -> None:
    answer = await send_completion(sdk, prompt, tokens=3)

    assert [choice.index for choice in answer.choices] == list(range(choices))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, 3 * choices)
    await gateway.wait_for_totals(app, ok=1, input_tokens=prompt_tokens, output_tokens=3 * choices)


@both_routes
@both_ways
async def test_usage_of_several_answers_to_one_prompt_is_their_sum(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, send: SendRequest, stream: bool
) -> None:
    answer = await send(sdk, tokens=6, n=2, stream=stream)
    if stream:
        texts, *_ = await collect(answer)
    else:
        texts = {choice.index: text_of(choice) for choice in answer.choices}

    assert sorted(texts) == [0, 1]
    assert all(texts.values())
    await gateway.wait_for_totals(app, ok=1, output_tokens=12)


async def test_models_are_those_of_the_engine(sdk: AsyncOpenAI) -> None:
    listed = [model.id async for model in sdk.models.list()]
    card = await sdk.models.retrieve(MODEL)

    assert listed == [MODEL]
    assert card.id == MODEL
    assert card.model_dump()["max_model_len"] == CONTEXT_TOKENS
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("other/model")


@both_routes
@both_ways
async def test_client_that_disconnects_frees_the_engine(
    engine: Engine, sdk: AsyncOpenAI, gateway: Gateway, app: str, send: SendRequest, stream: bool
) -> None:
    await until(engine.is_empty, "the engine is empty")
    finished = await engine.answers_finished()

    async def request_and_wait() -> None:
        answer = await send(sdk, tokens=LONG, stream=stream)
        if stream:
            await collect(answer)

    await engine.disconnect_while_it_works(request_and_wait())

    assert await engine.answers_finished() == finished
    totals = await gateway.wait_for_totals(app, cancelled=1)
    assert totals["requests"] == 1


@both_routes
@both_ways
async def test_context_too_long_is_the_engines_bad_request(
    sdk: AsyncOpenAI, gateway: Gateway, app: str, send: SendRequest, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await send(sdk, "word and " * CONTEXT_TOKENS, stream=stream)

    error: Any = caught.value
    assert (error.status_code, error.type, error.param, error.body["code"]) == (
        400,
        "BadRequestError",
        "input_tokens",
        400,
    )
    assert str(CONTEXT_TOKENS) in error.message
    await gateway.wait_for_totals(app, requests=1, failed=1, ok=0)


@both_routes
@both_ways
async def test_unknown_model_is_not_found(sdk: AsyncOpenAI, send: SendRequest, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await send(sdk, model="other", stream=stream)

    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


async def test_stats_are_exact_by_application_and_user(gateway: Gateway, app: str) -> None:
    async def one(number: int) -> tuple[str, str, int, int]:
        """Send a request of one of several kinds. Return its application, its user and the engine's usage."""
        whose, user, tokens = f"{app}-{number % 2}", f"user-{number % 3}", 2 + number
        send = (send_chat, send_completion)[number % 2]
        async with gateway.sdk(whose) as sdk:
            if number % 3:
                answer = await send(sdk, f"prompt {number}", tokens=tokens, user=user)
                usage = answer.usage
            else:
                options = {"include_usage": True}
                stream = await send(
                    sdk,
                    f"prompt {number}",
                    tokens=tokens,
                    n=1 + number % 2,
                    user=user,
                    stream=True,
                    stream_options=options,
                )
                _, (usage,), _ = await collect(stream)
        return whose, user, usage.prompt_tokens, usage.completion_tokens

    async with asyncio.timeout(DEADLINE_S):
        answers = await asyncio.gather(*map(one, range(24)))
    counted, prompts, completions = Counter(), Counter(), Counter()
    for whose, user, prompt_tokens, completion_tokens in answers:
        for key in (whose, (whose, user)):
            counted[key] += 1
            prompts[key] += prompt_tokens
            completions[key] += completion_tokens

    for whose in (f"{app}-0", f"{app}-1"):
        await gateway.wait_for_totals(whose, ok=12)
        stats = await gateway.stats(app=whose)
        (entry,) = stats["apps"]
        assert (entry["requests"], entry["errors"], entry["users"]) == (12, 0, 3)
        assert (entry["input_tokens"], entry["output_tokens"]["total"]) == (prompts[whose], completions[whose])
        assert {
            (whose, user["user"]): (user["requests"], user["output_tokens"]["total"]) for user in stats["users"]
        } == {key: (counted[key], completions[key]) for key in counted if key[0] == whose}
