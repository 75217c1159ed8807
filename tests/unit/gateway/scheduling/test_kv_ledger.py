from dataclasses import replace

import pytest

from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

UNSURE = LengthQuantiles.of((30, 50, 100, 200, 300, 400))


def request(id, prompt, output, *, sequences=1):
    """A request whose sequences all reach their limit, so its length is certain."""
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


def test_empty_ledger_has_no_use_and_no_peak():
    assert (len(KvLedger()), KvLedger().held_tokens, KvLedger().peak_tokens()) == (0, 0, 0)


def test_peak_of_one_request_is_at_its_end():
    assert ledger_of(request("a", 100, 50)).peak_tokens() == 150


def test_request_that_ends_early_frees_its_memory_for_the_others():
    ledger = ledger_of(request("short", 100, 10), request("long", 100, 50))
    # At the end of the short request both hold 220 tokens, one more than at the last sample before it.
    assert ledger.peak_tokens() == pytest.approx(220, abs=1)


def test_candidate_is_tested_and_not_entered():
    ledger = ledger_of(request("a", 100, 50))
    assert ledger.peak_tokens(curve(ledger, request("b", 100, 50))) == 300
    assert (len(ledger), ledger.peak_tokens()) == (1, 150)
    assert "b" not in ledger


def test_candidate_has_room_if_its_peak_is_within_the_budget():
    ledger = ledger_of(request("a", 100, 50))
    candidate = curve(ledger, request("b", 100, 50))
    assert ledger.has_room(candidate, 300)
    assert not ledger.has_room(candidate, 299)


def test_candidate_that_ends_before_a_later_peak_does_not_wait_for_it():
    ledger = ledger_of(request("long", 100, 900))
    assert ledger.peak_tokens() == 1000
    assert ledger.has_room(curve(ledger, request("short", 100, 10)), 250)
    assert not ledger.has_room(curve(ledger, request("long too", 100, 900)), 250)


def test_all_sequences_of_a_request_grow():
    assert ledger_of(request("a", 100, 50, sequences=3)).peak_tokens() == 100 + 3 * 50


def test_use_is_counted_in_whole_blocks():
    ledger = ledger_of(request("a", 17, 40), block_tokens=16)
    assert ledger.held_tokens == 32
    ledger.grow("a", 15)
    assert ledger.held_tokens == 32
    ledger.grow("a", 16)
    assert ledger.held_tokens == 48


def test_each_sequence_has_blocks_of_its_own_after_the_prompt():
    ledger = ledger_of(request("a", 17, 40, sequences=3), block_tokens=16)
    assert ledger.held_tokens == 32
    ledger.grow("a", 3)
    assert ledger.held_tokens == 32 + 3 * 16
    ledger.grow("a", 3 * 17)
    assert ledger.held_tokens == 32 + 3 * 32


def test_growth_moves_tokens_from_expected_to_held():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 20)
    assert (ledger.held_tokens, ledger.peak_tokens(), ledger.output_tokens("a")) == (120, 150, 20)


def test_answer_at_its_limit_needs_no_more_memory():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 50)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (150, 150)


def test_growth_of_several_sequences_is_given_as_a_sum():
    ledger = ledger_of(request("a", 100, 50, sequences=2))
    ledger.grow("a", 40)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (140, 200)


def test_answer_that_exceeds_its_prediction_is_expected_to_grow_on():
    ledger = ledger_of(request("a", 100, UNSURE))
    before = ledger.peak_tokens()
    assert 100 < before < 500
    ledger.grow("a", 500)
    assert ledger.peak_tokens() > ledger.held_tokens == 600


def test_answer_that_is_shorter_than_assumed_is_forecast_again():
    told = ledger_of(request("a", 100, UNSURE))
    told.grow("a", 1)
    thought = ledger_of(request("a", 100, UNSURE))
    thought.grow("a", 600)
    thought.grow("a", 1)
    assert thought.held_tokens == told.held_tokens
    assert thought.peak_tokens() == pytest.approx(told.peak_tokens(), rel=0.01)


def test_peak_between_two_forecasts_is_at_least_the_use():
    ledger = ledger_of(request("a", 10, LengthQuantiles.of((1, 1, 1, 2, 2, 2))))
    for output_tokens in range(40):
        ledger.grow("a", output_tokens)
        assert ledger.peak_tokens() >= ledger.held_tokens


def test_spread_of_independent_answers_averages_out():
    alone = ledger_of(request("a", 100, UNSURE)).peak_tokens()
    together = ledger_of(*(request(str(i), 100, UNSURE) for i in range(50))).peak_tokens()
    assert together < 0.9 * 50 * alone


def test_engine_that_reserves_holds_prompt_and_limit_from_start_to_end():
    ledger = ledger_of(request("a", 100, 50, sequences=2), reserving=True)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (200, 200)
    ledger.grow("a", 30)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (200, 200)


def test_released_request_holds_nothing():
    ledger = ledger_of(request("a", 100, 50), request("b", 10, 5))
    ledger.release("a")
    assert (len(ledger), "a" in ledger, ledger.held_tokens) == (1, False, 10)
    assert ledger.peak_tokens() == pytest.approx(15)


def test_request_enters_once():
    ledger = ledger_of(request("a", 1, 1))
    with pytest.raises(ValueError, match="request a is already in the ledger"):
        enter(ledger, request("a", 1, 1))


def test_growth_and_release_of_an_unknown_request_change_nothing():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("b", 7)
    ledger.release("b")
    assert (len(ledger), ledger.held_tokens) == (1, 100)


def test_request_is_forecast_with_the_length_of_its_admission():
    ledger = KvLedger()
    longer = replace(request("a", 100, UNSURE), length=UNSURE.scaled(10))
    ledger.admit(request("a", 100, UNSURE), longer.length, curve(ledger, longer))
    before = ledger.peak_tokens()
    ledger.grow("a", 20)
    assert ledger.peak_tokens() == pytest.approx(before, rel=0.05)
