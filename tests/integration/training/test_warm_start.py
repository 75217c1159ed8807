from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import FeatureExtractor, vector_to_bytes
from gateway.prediction.prediction_input import PredictionInput
from gateway.training.warm_start import replay

ASK = PredictionInput(
    app="chat", model="llama", user="ann", system="Be brief.", text="How tall is Everest?", text_bytes=29
)


async def test_a_restart_remembers_what_was_learned(engine, repository, a_record):
    before = FeatureExtractor(NoEmbedder())
    records = []
    for number in range(50):
        vector = before.extract_one(ASK)
        cut = number % 10 == 0
        before.learn_one(ASK.key, vector, 100 + number, input_tokens=8, cut=cut)
        records.append(
            a_record(
                number,
                app=ASK.app,
                user=ASK.user,
                model=ASK.model,
                template=ASK.key.template,
                input_tokens=8,
                output_tokens=100 + number,
                finish_reason="length" if cut else "stop",
                features=vector_to_bytes(vector),
                features_version=before.version,
            )
        )
    await repository.write(records)
    after = FeatureExtractor(NoEmbedder())
    assert await replay(engine, after) == 50
    assert after.extract_one(ASK).tobytes() == before.extract_one(ASK).tobytes()


async def test_the_newest_answers_are_replayed(engine, repository, a_record):
    extractor = FeatureExtractor(NoEmbedder())
    features = vector_to_bytes(extractor.extract_one(ASK))
    of_layout = {"features": features, "features_version": extractor.version}
    await repository.write([a_record(number, **of_layout) for number in range(20)])
    await repository.write([a_record(30, **(of_layout | {"features_version": "0:off"}))])
    await repository.write([a_record(31, **(of_layout | {"features": b"torn"}))])
    assert await replay(engine, extractor, limit=15) == 15
    assert await replay(engine, extractor) == 20
