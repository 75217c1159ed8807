import pytest

from gateway.prediction import prompt_tokens
from gateway.prediction.prompt_tokens import PRIOR_BYTES_PER_TOKEN, PromptTokens


def taught(*lessons):
    ratios = PromptTokens()
    for app, model, text_bytes, tokens, times in lessons:
        for _ in range(times):
            ratios.learn_one(app, model, text_bytes, tokens)
    return ratios


def test_an_unknown_model_has_the_prior_s_ratio():
    assert PromptTokens().estimate("chat", "llama", 8000) == round(8000 / PRIOR_BYTES_PER_TOKEN)


@pytest.mark.parametrize("text_bytes", [0, 1])
def test_a_prompt_is_one_token_at_least(text_bytes):
    assert PromptTokens().estimate("chat", "llama", text_bytes) == 1


def test_an_application_has_the_ratio_that_was_seen():
    ratios = taught(("code", "llama", 3000, 1500, 50))
    assert ratios.estimate("code", "llama", 6000) == pytest.approx(3000, rel=0.02)


def test_a_new_application_has_its_model_s_ratio():
    ratios = taught(("code", "llama", 3000, 1500, 50))
    assert ratios.estimate("chat", "llama", 6000) == pytest.approx(3000, rel=0.02)


def test_models_have_nothing_to_do_with_each_other():
    ratios = taught(("code", "llama", 3000, 1500, 50))
    assert ratios.estimate("code", "mistral", 6000) == 1500


def test_a_short_prompt_teaches_little():
    assert taught(("chat", "llama", 10, 10, 1)).estimate("chat", "llama", 4000) == pytest.approx(1000, rel=0.1)


def test_an_application_that_changes_its_language_is_followed():
    ratios = taught(("chat", "llama", 4000, 1000, 300), ("chat", "llama", 2000, 1000, 600))
    assert ratios.estimate("chat", "llama", 2000) == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(("text_bytes", "tokens"), [(0, 500), (500, 0), (-1, 5)])
def test_a_prompt_without_text_teaches_nothing(text_bytes, tokens):
    assert taught(("chat", "llama", text_bytes, tokens, 100)).estimate("chat", "llama", 4000) == 1000


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(prompt_tokens, "MAX_RATIOS", 10)
    ratios = taught(*((f"app{i}", "llama", 2000, 1000, 1) for i in range(100)))
    assert len(ratios._ratios) == 10
    assert ratios.estimate("app0", "llama", 4000) == pytest.approx(2000, rel=0.05)  # the model is still known
