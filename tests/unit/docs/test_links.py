"""Relative links of the documentation lead somewhere."""

import pytest

from tests.unit.docs.markdown import ROOT, Link, anchors, pages, relative_links

LINKS = [link for page in pages() for link in relative_links(page)]


@pytest.mark.parametrize("link", LINKS, ids=str)
def test_linked_file_exists(link: Link) -> None:
    assert link.path.exists()
    assert link.path.is_relative_to(ROOT)


@pytest.mark.parametrize("link", [link for link in LINKS if link.fragment and link.path.suffix == ".md"], ids=str)
def test_linked_heading_exists(link: Link) -> None:
    assert link.fragment in anchors(link.path)
