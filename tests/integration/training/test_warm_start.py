from typing import Any

from gateway.prediction.answer_memory import AnswerMemory
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import vector_to_bytes
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Predictor
from gateway.training.warm_start import replay

INPUT = PredictionInput(
    app="chat", model="llama", user="ann", system="Be brief.", text="How tall is Everest?", text_bytes=29
)


async def test_a_restart_remembers_all_that_was_learned(repository, a_record):
    before = Predictor()
    before.use_embedder(NoEmbedder())
    records = []
    for number in range(50):
        forecast = before.forecast(INPUT, None)
        cut = number % 10 == 0
        before.learn_one(forecast, 100 + number, input_tokens=8, cut=cut)
        records.append(
            a_record(
                number,
                app=INPUT.app,
                user=INPUT.user,
                model=INPUT.model,
                template=INPUT.key.template,
                prompt_bytes=INPUT.text_bytes,
                input_tokens=8,
                output_tokens=100 + number,
                finish_reason="length" if cut else "stop",
                features=vector_to_bytes(forecast.learned.vector),
                features_version=before.features_version,
            )
        )
    await repository.write(records)
    after = Predictor()
    assert await replay(repository, after.memory) == 50
    after.use_embedder(NoEmbedder())
    expected, actual = before.forecast(INPUT, None), after.forecast(INPUT, None)
    assert actual.learned.vector.tobytes() == expected.learned.vector.tobytes()
    assert (actual.length, actual.source, actual.prompt_tokens) == (
        expected.length,
        expected.source,
        expected.prompt_tokens,
    )


async def test_only_the_newest_answers_are_replayed_in_their_order(repository, a_record):
    await repository.write([a_record(number, output_tokens=10 + number) for number in range(20)])
    memory = AnswerMemory()
    assert await replay(repository, memory, limit=15) == 15
    values, _ = memory.features_one(INPUT.key, 0.0)
    assert await replay(repository, AnswerMemory()) == 20
    assert values[0] > 2  # count of all answers


async def test_answers_without_usable_features_are_replayed_without_a_size(repository, a_record):
    changes: list[dict[str, Any]] = [
        {"features_version": "0:off"},
        {"features": b"torn"},
        {"features": None, "features_version": None},
    ]
    await repository.write([a_record(number, **change) for number, change in enumerate(changes)])
    await repository.write([a_record(30, status="failed"), a_record(31, output_tokens=0)])
    assert await replay(repository, AnswerMemory()) == 3
