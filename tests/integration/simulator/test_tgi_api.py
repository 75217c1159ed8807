import asyncio
import json

import openai
import pytest


def generate(**parameters):
    return {"inputs": "hello", "parameters": {"max_new_tokens": 4, **parameters}}


def events(text):
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_generate_answers_with_details(serve):
    client = await serve(kind="tgi")

    body = (await client.post("/generate", json=generate(max_new_tokens=1, details=True))).json()

    assert body["generated_text"] == " lorem"
    assert body["details"]["generated_tokens"] == 1


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_generate_stream_ends_with_text_and_details(serve, path):
    client = await serve(kind="tgi")

    answer = await client.post(path, json={**generate(max_new_tokens=1), "stream": True})

    *_, last = events(answer.text)
    assert last["generated_text"] == " lorem"
    assert last["details"]["generated_tokens"] == 1
    assert last["details"]["input_length"] == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_client_chats(serve, stream):
    client = await serve(kind="tgi")
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="-") as sdk:
        answer = await sdk.chat.completions.create(
            model="tgi", messages=[{"role": "user", "content": "hello"}], max_tokens=1, stream=stream
        )
        if stream:
            content = "".join([chunk.choices[0].delta.content async for chunk in answer])
        else:
            content = answer.choices[0].message.content

    assert content == " lorem"


async def test_stream_with_usage_ends_in_done(serve):
    client = await serve(kind="tgi")
    request = {"prompt": "hello", "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}}

    *_, usage, done = events((await client.post("/v1/completions", json=request)).text)

    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("path", "request_body", "words"),
    [
        ("/generate", {}, "inputs"),
        ("/generate", generate(max_new_tokens=0), "strictly positive"),
        ("/generate", generate(max_new_tokens=9000), "must be <= 8192"),
        ("/generate_stream", {"inputs": "x" * 40000}, "must have less than 8192 tokens. Given: 10000"),
        ("/v1/completions", {"prompt": []}, "cannot be empty"),
        ("/v1/completions", {"prompt": ["x"] * 5}, "batch size"),
    ],
)
async def test_validation_errors_have_tgis_format(serve, path, request_body, words):
    client = await serve(kind="tgi")

    answer = await client.post(path, json=request_body)

    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert words in answer.json()["error"]


async def test_request_beyond_the_concurrency_limit_is_overloaded_at_once(serve, gauge, until, tmp_path):
    workload = tmp_path / "long.jsonl"
    workload.write_text('{"prompt": "hello", "output_tokens": 5000}\n')
    client = await serve(kind="tgi", max_concurrent_requests=1, speed=1.0, workload=workload)
    first = asyncio.create_task(client.post("/generate", json=generate(max_new_tokens=5000)))

    async def reserved():
        return await gauge(client, "tgi_batch_current_max_tokens") == 5002

    await until(reserved)
    refused = await client.post("/generate", json=generate())

    assert (refused.status_code, refused.json()) == (429, {"error": "Model is overloaded", "error_type": "overloaded"})

    first.cancel()

    async def freed():
        return await gauge(client, "tgi_batch_current_max_tokens") == 0

    await until(freed)


@pytest.mark.parametrize("version", ["2", "3"])
async def test_capacity_is_in_info_or_on_the_metrics_page(serve, version):
    client = await serve(kind="tgi", kv_tokens=1600, tgi_version=version)

    info = (await client.get("/info")).json()
    page = (await client.get("/metrics")).text

    assert info["max_total_tokens"] == 1600
    assert info.get("max_batch_total_tokens") == (1600 if version == "2" else None)
    assert ("tgi_batch_max_total_tokens 1600.0" in page) == (version == "3")


async def test_version_1_has_only_native_routes(serve):
    client = await serve(kind="tgi", tgi_version="1")

    answer = await client.post("/generate_stream", json=generate(max_new_tokens=1))
    statuses = {
        path: (await client.post(path, json={"prompt": "hello", "messages": []})).status_code
        for path in ("/v1/completions", "/v1/chat/completions")
    }

    assert "input_length" not in events(answer.text)[-1]["details"]
    assert statuses == {"/v1/completions": 404, "/v1/chat/completions": 404}


async def test_small_routes(serve):
    client = await serve(kind="tgi")

    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/v1/models")).json()["data"][0]["id"] == "magnus-sim-8b"
