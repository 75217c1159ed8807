"""Read what the tests of the documentation need from Markdown: links, headings and fenced code blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]+`(?!\]\()")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Link:
    """A Markdown link: the page that contains it, its text, and its target split at `#`."""

    page: Path
    text: str
    target: str
    fragment: str

    @property
    def path(self) -> Path:
        """Return the file or folder that the target names; a bare `#heading` names the page itself."""
        return (self.page.parent / self.target).resolve() if self.target else self.page

    def __str__(self) -> str:
        """Return the page and the link, for the test's name."""
        return f"{self.page.relative_to(ROOT)}: [{self.text}]({self.target}#{self.fragment})"


def pages() -> list[Path]:
    """Return every Markdown page of the project that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "requirements" / "README.md"])


def relative_links(page: Path) -> Iterator[Link]:
    """Yield the links of a page that stay inside the project."""
    prose = CODE_SPAN.sub("", FENCE.sub("", page.read_text()))
    for text, address in LINK.findall(prose):
        if "://" not in address and not address.startswith("mailto:"):
            target, _, fragment = address.partition("#")
            yield Link(page, text, target, fragment)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    prose = FENCE.sub("", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose)}


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of one language, in order."""
    return [text for found, text in FENCE.findall(page.read_text()) if found == language]
