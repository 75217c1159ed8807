import pytest

from gateway.dispatch.trip import Trip
from gateway.protocol.answers import Usage


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (None, 5)),
        (Usage(7, 3), (7, 3)),
        (Usage(7, 0), (7, 0)),
        (Usage(None, 3), (None, 3)),
        (Usage(7, None), (7, 5)),
    ],
)
def test_the_engine_s_own_counts_win_where_it_told_them(usage, counts):
    trip = Trip(arrival_s=0.0, events=5, usage=usage)
    assert (trip.input_tokens, trip.output_tokens) == counts
