import pytest

from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request


def request(id, prompt, output, *, sequences=1):
    """A request whose every sequence runs into its limit: its length is certain."""
    length = LengthQuantiles.of((1e6,) * 6, cap=output)
    return Request(id, "m", prompt, length, arrival_s=0.0, deadline_s=1.0, sequences=sequences)


def ledger_of(*requests, block_tokens=1):
    ledger = KvLedger(block_tokens)
    for each in requests:
        ledger.admit(each)
    return ledger


def test_an_empty_ledger_holds_and_expects_nothing():
    assert (len(KvLedger()), KvLedger().held_tokens, KvLedger().peak_tokens()) == (0, 0, 0)


def test_one_request_peaks_when_it_ends():
    assert ledger_of(request("a", 100, 50)).peak_tokens() == 150


def test_what_ends_early_frees_its_memory_for_the_rest():
    ledger = ledger_of(request("short", 100, 10), request("long", 100, 50))
    assert ledger.peak_tokens() == 220  # both at the short one's end; the long one alone ends at 150


def test_a_candidate_is_weighed_and_not_entered():
    ledger = ledger_of(request("a", 100, 50))
    assert ledger.peak_tokens(request("b", 100, 50)) == 300
    assert (len(ledger), ledger.peak_tokens()) == (1, 150)
    assert "b" not in ledger


def test_all_sequences_of_a_request_grow():
    assert ledger_of(request("a", 100, 50, sequences=3)).peak_tokens() == 100 + 3 * 50


def test_prompts_are_held_in_whole_blocks():
    ledger = ledger_of(request("a", 17, 1), block_tokens=16)
    assert ledger.held_tokens == 32
    assert ledger.peak_tokens() == 33


def test_growth_moves_tokens_from_what_comes_to_what_is_held():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 20)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (120, 150)


def test_an_answer_at_its_limit_needs_nothing_more():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("a", 50)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (150, 150)


def test_growth_of_several_sequences_is_told_as_a_sum():
    ledger = ledger_of(request("a", 100, 50, sequences=2))
    ledger.grow("a", 40)
    assert (ledger.held_tokens, ledger.peak_tokens()) == (140, 200)


def test_what_is_released_is_gone():
    ledger = ledger_of(request("a", 100, 50), request("b", 10, 5))
    ledger.release("a")
    assert (len(ledger), "a" in ledger, ledger.held_tokens, ledger.peak_tokens()) == (1, False, 10, 15)


def test_a_request_enters_once():
    ledger = ledger_of(request("a", 1, 1))
    with pytest.raises(ValueError, match="request a is in the ledger already"):
        ledger.admit(request("a", 1, 1))


def test_a_stranger_s_growth_and_release_change_nothing():
    ledger = ledger_of(request("a", 100, 50))
    ledger.grow("b", 7)
    ledger.release("b")
    assert (len(ledger), ledger.held_tokens) == (1, 100)
