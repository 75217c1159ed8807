from datetime import timedelta

import numpy as np

from gateway.training import window


async def test_rows_come_oldest_first_with_what_training_needs(repository, rows, a_record):
    await repository.write(
        [
            a_record(1, output_tokens=90, sequences=3),
            a_record(0, predicted_tokens=40, predicted_p90_tokens=80, prediction_source="history:user"),
            a_record(2, app="other", predicted_tokens=40, predicted_p90_tokens=80, prediction_source="model"),
        ]
    )
    found = await rows.newest(10)
    assert len(found) == 3
    np.testing.assert_array_equal(
        found.features, np.array([[0, 1.5, np.nan], [1, 1.5, np.nan], [2, 1.5, np.nan]], np.float32)
    )
    assert found.features.dtype == np.float32
    assert found.tokens.tolist() == [50, 30, 50]
    assert found.apps == ["translate", "translate", "other"]
    np.testing.assert_array_equal(found.history_p50, [40, np.nan, np.nan])
    np.testing.assert_array_equal(found.history_p90, [80, np.nan, np.nan])
    assert found.end - found.start == timedelta(seconds=2)


async def test_only_complete_answers_with_features_of_the_version_count(repository, rows, a_record):
    await repository.write(
        [
            a_record(0),
            a_record(1, status="cancelled"),
            a_record(2, features_version="2:off"),
            a_record(3, features=None, features_version=None),
            a_record(4, output_tokens=0),
        ]
    )
    assert len(await rows.newest(10)) == 1
    assert await rows.count(since=None, limit=10) == 1


async def test_features_of_a_wrong_size_are_skipped_and_counted(repository, rows, a_record):
    await repository.write([a_record(0), a_record(1, features=b"\0" * 8)])
    found = await rows.newest(10)
    assert (len(found), found.skipped) == (1, 1)


async def test_the_window_slides_over_days_and_chunks(repository, rows, a_record, monkeypatch):
    monkeypatch.setattr(window, "CHUNK_ROWS", 7)
    await repository.write([a_record(number * 3600) for number in range(100)])
    found = await rows.newest(60)
    assert (found.features[:, 0] / 3600).tolist() == list(range(40, 100))


async def test_new_rows_are_counted_from_the_windows_end(repository, rows, a_record):
    await repository.write([a_record(number) for number in range(10)])
    end = (await rows.newest(10)).end
    assert await rows.count(since=end, limit=10) == 0
    await repository.write([a_record(number) for number in range(10, 15)])
    assert await rows.count(since=end, limit=10) == 5
    assert await rows.count(since=end, limit=3) == 3


async def test_no_rows_are_an_empty_window(rows):
    assert len(await rows.newest(10)) == 0
