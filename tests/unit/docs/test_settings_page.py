from tests.unit.docs.settings_page import PAGE, settings_page


def test_settings_page_is_generated_from_the_settings() -> None:
    command = "make docs"
    assert PAGE.read_text(encoding="utf-8") == settings_page(), f"docs/settings.md is out of date: run {command}"
