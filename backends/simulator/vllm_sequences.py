"""vLLM's checks of a request, and the sequences that the engine runs for it."""

from backends.simulator.config import EngineConfig
from backends.simulator.engine import Sequence
from backends.simulator.prompts import Prompt
from backends.simulator.truth import Truth
from backends.simulator.vllm_schema import GenerationRequest, bad_request, vllm_error

ENDLESS = 2**31
"""The length of an answer that only `max_new_tokens` ends."""


class SequenceBuilder:
    """Checks requests and builds their sequences."""

    def __init__(self, config: EngineConfig, truth: Truth) -> None:
        self._config = config
        self._truth = truth

    def check_model(self, model: str | None) -> None:
        """Accept the served model, or no model.

        Raises:
            HttpError: 404, the request names another model.
        """
        if model not in (None, self._config.model):
            raise vllm_error(404, "NotFoundError", f"The model `{model}` does not exist.", "model")

    def sequences(self, request: GenerationRequest, prompts: list[Prompt]) -> list[Sequence]:
        """Return one sequence per choice, prompt by prompt.

        Raises:
            HttpError: 404 or 400, the request is one that vLLM would reject.
        """
        self.check_model(request.model)
        n = 1 if request.n is None else request.n
        if n < 1:
            raise bad_request(f"n must be at least 1, got {n}.", "n", n)
        if not prompts or any(prompt.empty for prompt in prompts):
            raise bad_request("You must pass at least one prompt, and none that is empty.", "prompt")
        if request.stream_options is not None and not request.stream:
            raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
        return [self._sequence(request, prompt, index) for prompt in prompts for index in range(n)]

    def _sequence(self, request: GenerationRequest, prompt: Prompt, index: int) -> Sequence:
        answer = self._truth.answer(prompt.sha, index)
        prompt_tokens = prompt.tokens_given(answer)
        max_new_tokens = self._output_room(prompt_tokens, request.output_limit)
        length = ENDLESS if request.ignore_eos else max(answer.output_tokens, request.min_tokens)
        return Sequence(
            id=index,
            prompt_tokens=prompt_tokens,
            output_tokens=length,
            max_new_tokens=max_new_tokens,
            priority=request.priority,
        )

    def _output_room(self, prompt_tokens: int, limit: int | None) -> int:
        """Return the largest number of answer tokens, from the client's limit and the context length."""
        context = self._config.context_tokens
        wanted = limit or 0
        if prompt_tokens + wanted > context:
            least = max(0, context - wanted) + 1
            raise bad_request(
                f"This model's maximum context length is {context} tokens. However, you requested {wanted} "
                f"output tokens and your prompt contains at least {least} input tokens, for a total of at least "
                f"{least + wanted} tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens.",
                "input_tokens",
                least,
            )
        room = context - prompt_tokens if limit is None else limit
        if room < 1:
            raise bad_request(f"max_tokens must be at least 1, got {room}.", "max_tokens", room)
        return room
