from math import exp, log, nan

import numpy as np
import pytest

from gateway.prediction import answer_memory
from gateway.prediction.answer_memory import (
    CONCENTRATION,
    EDGES,
    MAX_TOKENS,
    N_BINS,
    PRIOR_BYTES_PER_TOKEN,
    PRIOR_MEDIAN_TOKENS,
    AnswerMemory,
    PastAnswer,
    bin_of,
    histogram_quantiles,
    lognormal_shares,
)
from gateway.prediction.prediction_input import HistoryKey, PredictionInput
from gateway.scheduling.length import LEVELS


def of(app: str, model: str, user: str | None = None) -> HistoryKey:
    return HistoryKey(app, model, user=user)


ANN = of("mail", "llama", "ann")


def memory_of(*answers):
    """Return a memory that has learned (key, tokens, times)."""
    memory = AnswerMemory()
    for key, tokens, times in answers:
        for _ in range(times):
            memory.learn_one(PastAnswer(key, tokens))
    return memory


def median(memory, key, max_tokens=None):
    return memory.predict_one(key, max_tokens).length.quantile(0.5)


def test_before_the_first_answer_the_prior_predicts():
    prediction = AnswerMemory().predict_one(ANN, None)
    assert prediction.source == "prior"
    assert prediction.length.quantile(0.5) == pytest.approx(PRIOR_MEDIAN_TOKENS, rel=0.02)


@pytest.mark.parametrize("tokens", [3, 40, 2000])
def test_equal_answers_of_a_user_are_predicted_after_40_of_them(tokens):
    prediction = memory_of((ANN, tokens, 40)).predict_one(ANN, None)
    assert prediction.source == "history:user"
    assert prediction.length.quantile(0.5) == pytest.approx(tokens, rel=0.2)
    assert prediction.length.quantile(0.25) == pytest.approx(tokens, rel=0.2)


def test_a_new_user_is_predicted_as_the_application():
    memory = memory_of((ANN, 700, 60))
    new_user = of("mail", "llama", "bob")
    assert memory.predict_one(new_user, None).source == "history:app"
    assert median(memory, new_user) == median(memory, of("mail", "llama"))
    assert median(memory, new_user) == pytest.approx(700, rel=0.2)


def test_a_new_application_is_predicted_as_the_model():
    memory = memory_of((ANN, 700, 60))
    assert memory.predict_one(of("chat", "llama"), None).source == "history:model"
    assert median(memory, of("chat", "llama")) == pytest.approx(700, rel=0.25)


def test_a_new_model_is_predicted_as_all_together():
    memory = memory_of((ANN, 700, 60))
    assert memory.predict_one(of("chat", "mistral"), None).source == "history:all"
    assert median(memory, of("chat", "mistral")) == pytest.approx(700, rel=0.25)


def test_the_prediction_of_a_different_user_moves_away_from_the_application_step_by_step():
    others = [(of("mail", "llama", f"u{i}"), 50, 5) for i in range(40)]
    medians = [median(memory_of(*others, (ANN, 2000, times)), ANN) for times in (0, 3, 8, 30)]
    assert medians == sorted(medians)
    assert medians[0] == pytest.approx(50, rel=0.2)
    assert medians[-1] == pytest.approx(2000, rel=0.2)


def test_few_answers_of_a_user_are_not_its_own_source():
    memory = memory_of((of("mail", "llama"), 50, 60), (ANN, 50, int(CONCENTRATION) - 1))
    assert memory.predict_one(ANN, None).source == "history:app"


def test_users_with_one_name_in_two_applications_are_different():
    memory = memory_of((ANN, 2000, 60), (of("chat", "llama", "ann"), 20, 60))
    assert median(memory, ANN) > 10 * median(memory, of("chat", "llama", "ann"))


def test_old_answers_are_forgotten():
    memory = memory_of((ANN, 50, 1500), (ANN, 2000, 1000))
    assert median(memory, ANN) == pytest.approx(2000, rel=0.2)


def test_several_sequences_of_one_request_count_as_several_answers():
    together, one_by_one = AnswerMemory(), memory_of((ANN, 300, 8))
    together.learn_one(PastAnswer(ANN, 300, sequences=8))
    assert median(together, ANN) == pytest.approx(median(one_by_one, ANN), rel=0.02)


def test_max_tokens_bounds_every_quantile():
    prediction = memory_of((ANN, 700, 60)).predict_one(ANN, 100)
    assert max(prediction.length.quantile(level) for level in (0.1, 0.5, 0.99)) == 100


def test_the_least_recently_used_levels_are_dropped(monkeypatch):
    monkeypatch.setattr(answer_memory, "MAX_LEVELS", 20)
    memory = memory_of(*((of("mail", "llama", f"u{i}"), 700, 10) for i in range(50)))
    assert len(memory._levels) == 20
    assert memory.predict_one(of("mail", "llama", "u0"), None).source == "history:app"
    assert memory.predict_one(of("mail", "llama", "u49"), None).source == "history:user"


def test_the_anchor_follows_the_line_from_size_to_length():
    memory, key = AnswerMemory(), HistoryKey("app", "model")
    for i in range(200):
        memory.learn_one(PastAnswer(key, 3.0 * (10 + i % 50), size=log(10 + i % 50)))
    _, anchor = memory.features_one(key, log(40))
    assert exp(anchor) == pytest.approx(120, rel=0.05)


def test_a_user_has_another_anchor_than_the_application():
    memory = AnswerMemory()
    for _ in range(50):
        memory.learn_one(PastAnswer(HistoryKey("app", "model", user="terse"), 5, size=nan))
        memory.learn_one(PastAnswer(HistoryKey("app", "model", user="verbose"), 500, size=nan))
    _, terse = memory.features_one(HistoryKey("app", "model", user="terse"), nan)
    _, new = memory.features_one(HistoryKey("app", "model", user="new"), nan)
    assert exp(terse) == pytest.approx(5, rel=0.5)
    assert 5 < exp(new) < 500


def prompts(*answers):
    """Return a memory that has learned (app, model, prompt bytes, prompt tokens, times)."""
    memory = AnswerMemory()
    for app, model, text_bytes, tokens, times in answers:
        for _ in range(times):
            memory.learn_one(PastAnswer(of(app, model), 10, prompt_bytes=text_bytes, input_tokens=tokens))
    return memory


def test_an_unknown_model_has_the_prior_bytes_per_token():
    assert AnswerMemory().prompt_tokens(of("chat", "llama"), 8000) == round(8000 / PRIOR_BYTES_PER_TOKEN)


@pytest.mark.parametrize("text_bytes", [0, 1])
def test_a_prompt_has_at_least_one_token(text_bytes):
    assert AnswerMemory().prompt_tokens(of("chat", "llama"), text_bytes) == 1


def test_bytes_per_token_are_learned_per_application():
    ratios = prompts(("code", "llama", 3000, 1500, 50))
    assert ratios.prompt_tokens(of("code", "llama"), 6000) == pytest.approx(3000, rel=0.02)


def test_a_new_application_has_the_bytes_per_token_of_its_model():
    ratios = prompts(("code", "llama", 3000, 1500, 50))
    assert ratios.prompt_tokens(of("chat", "llama"), 6000) == pytest.approx(3000, rel=0.02)


def test_bytes_per_token_of_one_model_do_not_change_those_of_another():
    ratios = prompts(("code", "llama", 3000, 1500, 50))
    assert ratios.prompt_tokens(of("code", "mistral"), 6000) == 1500


def test_a_short_prompt_has_little_weight():
    assert prompts(("chat", "llama", 10, 10, 1)).prompt_tokens(of("chat", "llama"), 4000) == pytest.approx(
        1000, rel=0.1
    )


def test_bytes_per_token_follow_a_change():
    ratios = prompts(("chat", "llama", 4000, 1000, 300), ("chat", "llama", 2000, 1000, 600))
    assert ratios.prompt_tokens(of("chat", "llama"), 2000) == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 500), (500, 0), (-1, 5)])
def test_a_prompt_without_text_teaches_nothing(text_bytes, tokens):
    assert prompts(("chat", "llama", text_bytes, tokens, 100)).prompt_tokens(of("chat", "llama"), 4000) == 1000


def test_bytes_per_token_are_bounded_in_number(monkeypatch):
    monkeypatch.setattr(answer_memory, "MAX_LEVELS", 10)
    ratios = prompts(*((f"app{i}", "llama", 2000, 1000, 1) for i in range(100)))
    assert len(ratios._levels) == 10
    assert ratios.prompt_tokens(of("app0", "llama"), 4000) == pytest.approx(2000, rel=0.05)  # from the model


def one_hot(tokens):
    shares = np.zeros(N_BINS)
    shares[bin_of(tokens)] = 1.0
    return shares


def test_the_edges_rise_and_reach_beyond_the_longest_answer():
    assert (np.diff(EDGES) > 0).all()
    assert EDGES[-1] > MAX_TOKENS


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 100, 4096, MAX_TOKENS])
def test_a_length_lies_within_the_edges_of_its_bin(tokens):
    index = bin_of(tokens)
    assert EDGES[index] <= tokens < EDGES[index + 1]


def test_lengths_outside_the_bins_count_in_the_outer_ones():
    assert (bin_of(0), bin_of(10**12)) == (0, N_BINS - 1)


@pytest.mark.parametrize("tokens", [1, 7, 300, 20_000])
def test_of_equal_answers_every_quantile_is_close_to_them(tokens):
    length = histogram_quantiles(one_hot(tokens))
    for level in LEVELS:
        assert length.quantile(level) == pytest.approx(tokens, rel=0.16, abs=0.5)


def test_quantiles_of_a_lognormal_histogram_are_those_of_the_distribution():
    length = histogram_quantiles(lognormal_shares(200.0, 1.0))
    assert length.quantile(0.5) == pytest.approx(200, rel=0.02)
    assert length.quantile(0.9) == pytest.approx(200 * np.exp(1.2816), rel=0.02)


def test_shares_sum_to_one():
    assert lognormal_shares(115.0, 1.4).sum() == pytest.approx(1.0)


def test_counts_have_the_quantiles_of_their_shares():
    shares = lognormal_shares(200.0, 1.0)
    assert histogram_quantiles(1000 * shares).quantile(0.75) == pytest.approx(
        histogram_quantiles(shares).quantile(0.75)
    )


def test_a_cap_cuts_the_histogram_quantiles():
    assert histogram_quantiles(one_hot(300), cap=50).quantile(0.5) == 50


def test_forgotten_user_predicts_like_a_new_one():
    memory = AnswerMemory()
    for user in ("ann", "x" * 6000, "bob"):
        for model in ("llama", "qwen"):
            key = PredictionInput("chat", model, user).key
            for _ in range(20):
                memory.learn_one(PastAnswer(key, 500.0))
    assert memory.forget_user("chat", "ann") == memory.forget_user("chat", "x" * 6000) == 2
    assert memory.forget_user("chat", "ann") == memory.forget_user("mail", "bob") == 0
    assert memory.predict_one(HistoryKey("chat", "llama", user="ann")).source == "history:app"
    assert memory.predict_one(HistoryKey("chat", "llama", user="bob")).source == "history:user"
