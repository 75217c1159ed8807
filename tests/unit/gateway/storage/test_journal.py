import stat
from pathlib import Path

import pytest

from gateway.errors import JournalInUse
from gateway.storage.journal import MAX_SET_ASIDE, Journal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def replay(journal: Journal) -> list[bytes]:
    lines = []
    while (segment := journal.oldest()) is not None:
        lines += journal.read(segment)
        journal.remove(segment)
    return lines


def test_lines_come_back_in_order_across_segments(directory: Path):
    journal = Journal(directory, segment_bytes=64)
    lines = [f"line {number}".encode() for number in range(100)]
    for start in range(0, 100, 5):
        assert journal.append(lines[start : start + 5]) == 5
    assert len(list(directory.iterdir())) > 5
    assert replay(journal) == lines
    assert journal.size_bytes == 0
    assert journal.oldest() is None
    journal.close()


def test_next_run_reads_remaining_lines(directory: Path):
    journal = Journal(directory)
    journal.append([b"one"])
    journal.close()
    journal = Journal(directory)
    journal.append([b"two"])
    assert journal.size_bytes == 8
    assert replay(journal) == [b"one", b"two"]
    journal.close()


def test_lines_after_a_damaged_line_are_complete(directory: Path):
    journal = Journal(directory)
    journal.append([b"one"])
    journal.close()
    (directory / "00000001.jsonl").write_bytes(b"one\nto")
    journal = Journal(directory)
    journal.append([b"two"])
    assert replay(journal) == [b"one", b"to", b"two"]
    journal.close()


def test_append_during_a_replay_does_not_change_the_replayed_segment(directory: Path):
    journal = Journal(directory)
    journal.append([b"one"])
    segment = journal.oldest()
    assert segment is not None
    journal.append([b"two"])
    assert journal.read(segment) == [b"one"]
    journal.remove(segment)
    assert replay(journal) == [b"two"]
    journal.close()


def test_lines_above_the_limit_are_not_appended(directory: Path):
    journal = Journal(directory, max_bytes=10)
    assert journal.append([b"1234", b"567", b"8"]) == 2
    assert journal.append([b"9"]) == 0
    assert journal.size_bytes == 9
    assert replay(journal) == [b"1234", b"567"]
    assert journal.append([b"9"]) == 1
    journal.close()


def test_only_the_owner_can_read_it(directory: Path):
    journal = Journal(directory)
    journal.append([b"one"])
    journal.append_refused(b"two")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    journal.close()


def test_refused_lines_are_not_replayed(directory: Path):
    journal = Journal(directory)
    journal.append_refused(b"poison")
    journal.close()
    journal = Journal(directory)
    assert journal.oldest() is None
    assert (directory / "refused.jsonl").read_bytes() == b"poison\n"
    journal.close()


def test_second_process_is_refused(directory: Path):
    journal = Journal(directory)
    with pytest.raises(JournalInUse, match=str(directory)):
        Journal(directory)
    journal.close()
    Journal(directory).close()


def test_segment_that_is_set_aside_is_not_replayed(directory: Path):
    journal = Journal(directory)
    journal.append([b"one"])
    path = journal.set_aside(journal.oldest())
    journal.append([b"two"])
    assert path.read_bytes() == b"one\n"
    assert replay(journal) == [b"two"]
    journal.close()
    journal = Journal(directory)
    assert journal.oldest() is None
    journal.close()


def test_number_of_segments_that_were_set_aside_is_bounded(directory: Path):
    journal = Journal(directory)
    for number in range(MAX_SET_ASIDE + 3):
        journal.append([b"%d" % number])
        journal.set_aside(journal.oldest())
    kept = sorted(directory.glob("*.failed"))
    assert [path.read_bytes() for path in kept] == [b"%d\n" % number for number in range(3, MAX_SET_ASIDE + 3)]
    journal.close()


def test_erased_lines_are_in_no_file(directory: Path):
    journal = Journal(directory, segment_bytes=8)
    journal.append([b"ann 1", b"bob 1"])
    journal.set_aside(journal.oldest())
    journal.append_refused(b"ann 2")
    journal.append_refused(b"bob 2")
    for number in range(3, 6):
        journal.append([b"ann %d" % number, b"bob %d" % number])
    assert journal.erase(lambda line: line.startswith(b"ann")) == 5
    assert b"ann" not in b"".join(path.read_bytes() for path in directory.iterdir())
    journal.append([b"bob 6"])
    assert replay(journal) == [b"bob 3", b"bob 4", b"bob 5", b"bob 6"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    journal.close()
