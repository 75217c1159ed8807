import asyncio
import json

import anthropic
import pytest

MODEL = "magnus-sim-8b"


def message(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, **fields}


@pytest.fixture
def long_answers(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"prompt": "hello", "input_tokens": 9, "output_tokens": 5000}\n')
    return path


def sdk(client):
    return anthropic.AsyncAnthropic(base_url=str(client.base_url), api_key="-", max_retries=0)


async def test_anthropics_client_gets_a_message(serve, long_answers):
    client = await serve(workload=long_answers)
    async with sdk(client) as claude:
        answer = await claude.messages.create(**message())

    assert answer.content[0].text == " lorem ipsum dolor"
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("max_tokens", 9, 3)


async def test_anthropics_client_streams_a_message(serve, long_answers):
    client = await serve(workload=long_answers)
    async with sdk(client) as claude, claude.messages.stream(**message(max_tokens=20)) as stream:
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()

    assert len(texts) == 20
    assert "".join(texts) == final.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 20)


async def test_stream_has_vllms_events_in_their_order(serve, long_answers):
    client = await serve(workload=long_answers)

    lines = (await client.post("/v1/messages", json=message(max_tokens=1, stream=True))).text.splitlines()

    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data: ")] == names


async def test_system_prompt_is_read_and_counted(serve):
    client = await serve()
    system = [{"type": "text", "text": "be brief"}]

    plain = (await client.post("/v1/messages", json=message())).json()["usage"]["input_tokens"]
    longer = (await client.post("/v1/messages", json=message(system=system))).json()["usage"]["input_tokens"]
    counted = (await client.post("/v1/messages/count_tokens", json=message(system=system))).json()["input_tokens"]

    assert counted == longer == plain + 2


async def test_answer_ends_at_the_length_of_the_truth_file(serve, tmp_path):
    workload = tmp_path / "short.jsonl"
    workload.write_text('{"prompt": "hello", "output_tokens": 2}\n')
    client = await serve(workload=workload)

    body = (await client.post("/v1/messages", json=message(max_tokens=50, ignore_eos=True))).json()

    assert (body["stop_reason"], body["usage"]["output_tokens"]) == ("end_turn", 2)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (message(model="other"), 404, "NotFoundError"),
        (message(max_tokens=90000), 400, "BadRequestError"),
        (message(max_tokens=90000, stream=True), 400, "BadRequestError"),
    ],
)
async def test_engine_errors_have_anthropics_format(serve, body, status, kind):
    client = await serve()

    answer = await client.post("/v1/messages", json=body)

    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert set(answer.json()["error"]) == {"type", "message"}
    assert answer.json()["error"]["type"] == kind


async def test_invalid_body_is_rejected_in_openais_format_as_by_vllm(serve):
    client = await serve()

    answer = await client.post("/v1/messages", json={"model": MODEL})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


@pytest.mark.parametrize("stream", [True, False])
async def test_static_batch_out_of_memory_fails_in_anthropics_format(serve, gauge, until, stream, long_answers):
    client = await serve(kind="static", kv_tokens=160, max_model_len=160, speed=30.0, workload=long_answers)
    body = message(max_tokens=150, stream=stream)
    first = asyncio.create_task(client.post("/v1/messages", json=body))

    async def runs():
        return await gauge(client, "vllm:num_requests_running") == 1

    await until(runs)
    batch = await asyncio.gather(*(client.post("/v1/messages", json=body) for _ in range(2)))

    assert (await first).status_code == 200
    assert {answer.status_code for answer in batch} == {200 if stream else 500}
    assert all('{"type":"error","error":' in answer.text and "out of memory" in answer.text for answer in batch)


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_frees_the_memory(serve, gauge, until, stream, long_answers):
    client = await serve(speed=1.0, workload=long_answers)
    request = asyncio.create_task(client.post("/v1/messages", json=message(max_tokens=4000, stream=stream)))

    async def running(count):
        return await gauge(client, "vllm:num_requests_running") == count

    await until(lambda: running(1))
    request.cancel()
    await until(lambda: running(0))
    assert await gauge(client, "vllm:kv_cache_usage_perc") == 0
