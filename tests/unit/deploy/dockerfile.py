"""Read as much of the Dockerfile format as our own Dockerfile uses."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONTINUATION = re.compile(r"\\\n")
FLAG = re.compile(r"--([a-z-]+)=(\S+)\s*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step: its word, its `--flags`, and the rest of the line as it stands."""

    word: str
    flags: dict[str, str]
    rest: str


def read_dockerfile(path: Path = ROOT / "Dockerfile") -> list[Instruction]:
    """Return the steps in order, without comments."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#")]
    joined = CONTINUATION.sub("", "".join(lines))
    return [_instruction(line) for line in joined.splitlines() if line.strip()]


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """Split the steps at each FROM."""
    split: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.word == "FROM":
            split.append([])
        split[-1].append(instruction)
    return split


def _instruction(line: str) -> Instruction:
    word, _, rest = line.partition(" ")
    flags = {}
    while found := FLAG.match(rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Instruction(word, flags, rest.strip())
