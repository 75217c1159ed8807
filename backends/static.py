"""An engine that takes one padded batch at a time.

It serves OpenAI's routes, a batch being one call with a list of prompts; its metrics, if any, bear vLLM's names. One
that tells nothing is known by its operator's figures.
"""

from backends.vllm import VllmBackend


class StaticBackend(VllmBackend):
    """A server with static batching: to a look at it no different from vLLM."""

    __slots__ = ()
