from dataclasses import replace

import pytest

from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

UNSURE = LengthQuantiles.of((30, 50, 100, 200, 300, 400))


def request(id, prompt, output, *, sequences=1):
    """A request whose every sequence runs into its limit: its length is certain."""
    length = output if isinstance(output, LengthQuantiles) else LengthQuantiles.of((1e6,) * 6, cap=output)
    return Request(id, "m", prompt, length, arrival_s=0.0, deadline_s=1.0, sequences=sequences)


def enter(ledger, each):
    ledger.admit(each, each.length, ledger.forecast(each, each.length))


def ledger_of(*requests, **kind):
    ledger = KvLedger(**kind)
    for each in requests:
        enter(ledger, each)
    return ledger


def curve(ledger, each):
    return ledger.forecast(each, each.length)


def test_an_empty_ledger_holds_and_expects_nothing():
    assert (len(KvLedger()), KvLedger().held_tokens, KvLedger().peak_tokens()) == (0, 0, 0)


def test_one_request_peaks_when_it_ends():
    assert ledger_of(request("a", 100, 50)).peak_tokens() == 150


def test_what_ends_early_frees_its_memory_for_the_rest():
    ledger = ledger_of(request("short", 100, 10), request("long", 100, 50))
    # Both at the short one's end make 220, which is one token beyond the last look before it.
    assert ledger.peak_tokens() == pytest.approx(220, abs=1)


def test_a_candidate_is_weighed_and_not_entered():
    ledger = ledger_of(request("a", 100, 50))
    assert ledger.peak_tokens(curve(ledger, request("b", 100, 50))) == 300
    assert (len(ledger), ledger.peak_tokens()) == (1, 150)
    assert "b" not in ledger


def test_a_candidate_has_room_where_its_peak_is_within_the_budget():
    ledger = ledger_of(request("a", 100, 50))
    candidate = curve(ledger, request("b", 100, 50))
    assert ledger.has_room(candidate, 300)
    assert not ledger.has_room(candidate, 299)


def test_a_candidate_that_is_over_by_then_need_not_wait_for_a_peak_to_come():
    ledger = ledger_of(request("long", 100, 900))
    assert ledger.peak_tokens() == 1000
    assert ledger.has_room(curve(ledger, request("short", 100, 10)), 250)
    assert not ledger.has_room(curve(ledger, request("long too", 100, 900)), 250)


def test_all_sequences_of_a_request_grow():
    assert ledger_of(request("a", 100, 50, sequences=3)).peak_tokens() == 100 + 3 * 50


def test_what_is_held_is_held_in_whole_blocks():
    ledger = ledger_of(request("a", 17, 40), block_tokens=16)
    assert ledger.held_tokens == 32
    ledger.grow("a", 15)
    assert ledger.held_tokens == 32
    ledger.grow("a", 16)
    assert ledger.held_tokens == 48


def test_each_sequence_has_blocks_of_its_own_after_the_prompt_s():
    ledger = ledger_of(request("a", 17, 40, sequences=3), block_tokens=16)
    assert ledger.held_tokens == 32
    ledger.grow("a", 3)
    assert ledger.held_tokens == 32 + 3 * 16
    ledger.grow("a", 3 * 17)
    assert ledger.held_tokens == 32 + 3 * 32


def test_growth_moves_tokens_from_what_comes_to_what_is_held():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 20)
    assert (ledger.held_tokens, ledger.peak_tokens(), ledger.output_tokens("a")) == (120, 150, 20)


def test_an_answer_at_its_limit_needs_nothing_more():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 50)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (150, 150)


def test_growth_of_several_sequences_is_told_as_a_sum():
    ledger = ledger_of(request("a", 100, 50, sequences=2))
    ledger.grow("a", 40)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (140, 200)


def test_an_answer_that_grows_beyond_its_prediction_is_expected_to_grow_on():
    ledger = ledger_of(request("a", 100, UNSURE))
    before = ledger.peak_tokens()
    assert 100 < before < 500
    ledger.grow("a", 500)
    assert ledger.peak_tokens() > ledger.held_tokens == 600


def test_an_answer_that_is_not_as_far_as_was_thought_is_forecast_anew():
    told = ledger_of(request("a", 100, UNSURE))
    told.grow("a", 1)
    thought = ledger_of(request("a", 100, UNSURE))
    thought.grow("a", 600)
    thought.grow("a", 1)
    assert thought.held_tokens == told.held_tokens
    assert thought.peak_tokens() == pytest.approx(told.peak_tokens(), rel=0.01)


def test_between_two_forecasts_the_peak_is_no_less_than_what_is_held():
    ledger = ledger_of(request("a", 10, LengthQuantiles.of((1, 1, 1, 2, 2, 2))))
    for output_tokens in range(40):
        ledger.grow("a", output_tokens)
        assert ledger.peak_tokens() >= ledger.held_tokens


def test_the_spread_of_independent_answers_evens_out():
    alone = ledger_of(request("a", 100, UNSURE)).peak_tokens()
    together = ledger_of(*(request(str(i), 100, UNSURE) for i in range(50))).peak_tokens()
    assert together < 0.9 * 50 * alone


def test_an_engine_that_reserves_holds_prompt_and_limit_from_start_to_end():
    ledger = ledger_of(request("a", 100, 50, sequences=2), reserving=True)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (200, 200)
    ledger.grow("a", 30)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (200, 200)


def test_what_is_released_is_gone():
    ledger = ledger_of(request("a", 100, 50), request("b", 10, 5))
    ledger.release("a")
    assert (len(ledger), "a" in ledger, ledger.held_tokens) == (1, False, 10)
    assert ledger.peak_tokens() == pytest.approx(15)


def test_a_request_enters_once():
    ledger = ledger_of(request("a", 1, 1))
    with pytest.raises(ValueError, match="request a is already in the ledger"):
        enter(ledger, request("a", 1, 1))


def test_a_stranger_s_growth_and_release_change_nothing():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("b", 7)
    ledger.release("b")
    assert (len(ledger), ledger.held_tokens) == (1, 100)


def test_a_request_is_forecast_with_the_length_that_it_was_admitted_with():
    ledger = KvLedger()
    longer = replace(request("a", 100, UNSURE), length=UNSURE.scaled(10))
    ledger.admit(request("a", 100, UNSURE), longer.length, curve(ledger, longer))
    before = ledger.peak_tokens()
    ledger.grow("a", 20)
    assert ledger.peak_tokens() == pytest.approx(before, rel=0.05)
