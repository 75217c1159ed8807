import asyncio
import json

import openai
import pytest

from backends.simulator.workload import sha_of

MODEL = "magnus-sim-8b"


def chat(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **fields}


def completion(**fields):
    return {"model": MODEL, "prompt": "hello", "max_tokens": 5, "ignore_eos": True, **fields}


def events(text):
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
def truth(tmp_path):
    """A truth file in which the prompt 'hello' has 9 tokens and its answer 3."""
    path = tmp_path / "truth.jsonl"
    path.write_text(json.dumps({"sha": sha_of("hello"), "input_tokens": 9, "output_tokens": 3}) + "\n")
    return path


async def test_answer_has_the_length_of_the_truth_file(serve, truth):
    client = await serve(truth=truth)

    body = (await client.post("/v1/chat/completions", json=chat(max_tokens=50))).json()

    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["message"]["content"] == " lorem ipsum dolor"
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": None,
    }


@pytest.mark.parametrize(
    ("fields", "tokens", "reason"),
    [
        ({"max_tokens": 2}, 2, "length"),
        ({"max_tokens": 3}, 3, "stop"),
        ({"max_tokens": None, "max_completion_tokens": 2}, 2, "length"),
        ({"max_tokens": None}, 3, "stop"),
        ({"max_tokens": 50, "min_tokens": 10}, 10, "stop"),
        ({"max_tokens": 50, "ignore_eos": True}, 50, "length"),
    ],
)
async def test_limits_and_finish_reason(serve, truth, fields, tokens, reason):
    client = await serve(truth=truth)

    body = (await client.post("/v1/chat/completions", json=chat(**fields))).json()

    assert body["usage"]["completion_tokens"] == tokens
    assert body["choices"][0]["finish_reason"] == reason


async def test_request_id_becomes_the_response_id(serve):
    client = await serve()
    headers = {"X-Request-Id": "abc"}

    answers = [
        await client.post("/v1/chat/completions", json=chat(), headers=headers),
        await client.post("/v1/completions", json=completion(), headers=headers),
    ]

    assert [answer.json()["id"] for answer in answers] == ["chatcmpl-abc", "cmpl-abc"]


async def test_openai_client_streams_one_chunk_per_token(serve):
    client = await serve()
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="-") as sdk:
        stream = await sdk.chat.completions.create(
            **chat(max_tokens=20, stream=True, stream_options={"include_usage": True}), extra_body={"ignore_eos": True}
        )
        chunks = [chunk async for chunk in stream]

    contents = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert contents[0] == ""
    assert len([content for content in contents if content]) == 20
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 20)


async def test_openai_client_gets_a_completion(serve):
    client = await serve()
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="-") as sdk:
        answer = await sdk.completions.create(
            model=MODEL, prompt="hello", max_tokens=4, extra_body={"ignore_eos": True}
        )

    assert answer.choices[0].text == " lorem ipsum dolor sit"


async def test_stream_ends_in_done_and_counts_usage_on_every_chunk_if_asked(serve):
    client = await serve()
    options = {"include_usage": True, "continuous_usage_stats": True}

    answer = await client.post("/v1/completions", json=completion(stream=True, stream_options=options))
    *chunks, usage, done = events(answer.text)

    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 5)
    assert done == "[DONE]"


@pytest.mark.parametrize("prompt", ["one", ["one", "two"], [1, 2, 3], [[1, 2], [3], [4, 5, 6]]])
async def test_every_prompt_of_a_list_is_a_choice(serve, prompt):
    client = await serve()
    choices = 1 if isinstance(prompt, str) or isinstance(prompt[0], int) else len(prompt)

    body = (await client.post("/v1/completions", json=completion(prompt=prompt))).json()

    assert [choice["index"] for choice in body["choices"]] == list(range(choices))
    assert body["usage"]["completion_tokens"] == 5 * choices


async def test_n_choices_share_one_prompts_tokens(serve):
    client = await serve()

    body = (await client.post("/v1/completions", json=completion(prompt=[1, 2, 3], n=2))).json()

    assert len(body["choices"]) == 2
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 10)


@pytest.mark.parametrize(
    ("path", "request_body", "status", "kind", "words"),
    [
        ("chat/completions", chat(model="other"), 404, "NotFoundError", "The model `other` does not exist."),
        ("chat/completions", {"model": MODEL}, 400, "BadRequestError", "messages"),
        ("chat/completions", chat(n=0), 400, "BadRequestError", "n must be at least 1"),
        ("chat/completions", chat(max_tokens=0), 400, "BadRequestError", "max_tokens must be at least 1"),
        ("chat/completions", chat(max_tokens=90000, stream=True), 400, "BadRequestError", "maximum context length is"),
        ("chat/completions", chat(stream_options={}), 400, "BadRequestError", "stream=True"),
        ("completions", completion(prompt=[]), 400, "BadRequestError", "at least one prompt"),
        ("completions", completion(prompt="x" * 40000), 400, "BadRequestError", "maximum context length is 8192"),
    ],
)
async def test_errors_have_vllms_format(serve, path, request_body, status, kind, words):
    client = await serve()

    answer = await client.post(f"/v1/{path}", json=request_body)

    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (status, kind, status)
    assert words in error["message"]


async def test_malformed_json_and_unknown_routes(serve):
    client = await serve()

    malformed = await client.post("/v1/chat/completions", content=b"{")
    unknown = await client.get("/v1/nothing")
    wrong_method = await client.get("/v1/chat/completions")

    assert (malformed.status_code, malformed.json()["error"]["type"]) == (400, "BadRequestError")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    assert wrong_method.status_code == 405


async def test_request_beyond_the_queue_limit_is_refused_without_retry_after(serve, gauge, until):
    client = await serve(max_num_queued_reqs=2, speed=1.0)
    first = asyncio.create_task(client.post("/v1/completions", json=completion(max_tokens=8000, n=2)))
    await until(lambda: running(client, gauge, 2))

    refused = await client.post("/v1/completions", json=completion())

    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "Service Unavailable")
    assert "retry-after" not in refused.headers
    assert await gauge(client, "vllm:admission_rejections_total") == 1
    first.cancel()


async def running(client, gauge, count):
    return await gauge(client, "vllm:num_requests_running") == count


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_frees_the_memory(serve, gauge, until, stream):
    client = await serve(speed=1.0)
    request = asyncio.create_task(
        client.post("/v1/chat/completions", json=chat(max_tokens=8000, ignore_eos=True, stream=stream))
    )
    await until(lambda: running(client, gauge, 1))
    assert await gauge(client, "vllm:kv_cache_usage_perc") > 0

    request.cancel()

    await until(lambda: running(client, gauge, 0))
    assert await gauge(client, "vllm:kv_cache_usage_perc") == 0


async def test_metrics_report_memory_load_and_totals(serve, gauge):
    client = await serve(kv_tokens=1600)

    await client.post("/v1/completions", json=completion(prompt=[1, 2, 3]))
    page = (await client.get("/metrics")).text

    assert 'num_gpu_blocks="101"' in page
    assert 'block_size="16"' in page
    assert await gauge(client, "vllm:prompt_tokens_total") == 3
    assert await gauge(client, "vllm:generation_tokens_total") == 5
    assert await gauge(client, "vllm:request_generation_tokens_sum") == 5
    assert f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{MODEL}"}} 1.0' in page


async def test_preemptions_are_counted_when_memory_is_short(serve, gauge):
    client = await serve(kv_tokens=320)

    answers = await asyncio.gather(
        *(client.post("/v1/completions", json=completion(prompt=[1] * 30, max_tokens=200)) for _ in range(4))
    )

    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [200] * 4
    assert await gauge(client, "vllm:num_preemptions_total") > 0


async def test_small_routes(serve):
    client = await serve(kv_tokens=1600)

    card = (await client.get("/v1/models")).json()["data"][0]
    tokens = (await client.post("/tokenize", json={"prompt": "hello there"})).json()
    text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()

    assert (card["id"], card["max_model_len"]) == (MODEL, 1600)
    assert (tokens["count"], tokens["max_model_len"]) == (3, 1600)
    assert text == {"prompt": "hello there"}
    assert (await client.get("/health")).content == b""
    assert "version" in (await client.get("/version")).json()
    assert (await client.get("/load")).json() == {"server_load": 0}


async def test_static_batch_answers_all_its_prompts_at_once(serve):
    client = await serve(kind="static", preset="chatglm-6b-v100")

    body = (await client.post("/v1/completions", json=completion(prompt=["a", "bb", "ccc"]))).json()

    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 3


@pytest.mark.parametrize("stream", [True, False])
async def test_static_batch_out_of_memory_is_a_500_with_pytorchs_message(serve, stream):
    client = await serve(kind="static", kv_tokens=160)

    answer = await client.post("/v1/completions", json=completion(prompt=["a"] * 4, max_tokens=100, stream=stream))

    error = (events(answer.text)[0] if stream else answer.json())["error"]
    assert answer.status_code == (200 if stream else 500)
    assert error["code"] == 500
    assert "out of memory" in error["message"]
