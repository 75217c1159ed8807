"""Wasted memory access: what a static batch reads from memory without use. The paper forms batches by it.

A batch is padded to its longest prompt L(B), and generates until its longest answer G(B) ends. A member p with L(p)
prompt tokens and G(p) answer tokens wastes reads in two ways: it reads padding at each step until its own end, and it
reads all of its tokens at each step after its own end.

Source: Cheng et al., Enabling Efficient Batch Serving for LMaaS via Generation Length Prediction, arXiv 2406.04785.
"""

from dataclasses import dataclass


def waste_of_padding(prompt_tokens: int, output_tokens: int, longest_prompt: int) -> int:
    """Return WMA_gen(p) = G(p) * (L(B) - L(p)), in token reads.

    >>> waste_of_padding(prompt_tokens=10, output_tokens=3, longest_prompt=14)
    12
    """
    return output_tokens * (longest_prompt - prompt_tokens)


def waste_of_waiting(output_tokens: int, longest_prompt: int, longest_output: int) -> int:
    """Return WMA_wait(p), the sum of g + L(B) over the steps g = G(p) ... G(B) - 1, in token reads.

    >>> waste_of_waiting(output_tokens=3, longest_prompt=14, longest_output=6)
    54
    >>> sum(g + 14 for g in range(3, 6))
    54
    """
    steps = longest_output - output_tokens
    return steps * longest_prompt + steps * (output_tokens + longest_output - 1) // 2


def token_reads(prompt_tokens: int, output_tokens: int) -> int:
    """Return the token reads of one answer: the sum of g + L over its steps g = 0 ... G - 1.

    The two wastes of a member are the reads of the batch's shape less its own, which is what makes `BatchShape` cheap:

    >>> token_reads(14, 6) - token_reads(10, 3) == waste_of_padding(10, 3, 14) + waste_of_waiting(3, 14, 6)
    True
    """
    return output_tokens * prompt_tokens + output_tokens * (output_tokens - 1) // 2


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a batch's members have in common: its size, L(B), G(B), and the token reads of the member with the fewest.

    >>> batch = BatchShape.of(prompt_tokens=10, output_tokens=3).joined_by(prompt_tokens=14, output_tokens=6)
    >>> batch.wma, batch.kv_tokens
    (66, 40)
    """

    size: int
    prompt_tokens: int
    output_tokens: int
    least_reads: int

    @classmethod
    def of(cls, prompt_tokens: int, output_tokens: int) -> "BatchShape":
        """Return the shape of a batch of one."""
        return cls(1, prompt_tokens, output_tokens, token_reads(prompt_tokens, output_tokens))

    def joined_by(self, prompt_tokens: int, output_tokens: int) -> "BatchShape":
        """Return the shape with one more member."""
        return BatchShape(
            self.size + 1,
            max(self.prompt_tokens, prompt_tokens),
            max(self.output_tokens, output_tokens),
            min(self.least_reads, token_reads(prompt_tokens, output_tokens)),
        )

    @property
    def wma(self) -> int:
        """WMA(B): the largest of its members' wastes, in token reads."""
        return token_reads(self.prompt_tokens, self.output_tokens) - self.least_reads

    @property
    def kv_tokens(self) -> int:
        """MEM(B): KV tokens at the batch's end, |B| * (L(B) + G(B))."""
        return self.size * (self.prompt_tokens + self.output_tokens)
