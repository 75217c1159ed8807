"""Models by other names, and what is assumed of requests for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.protocol.edits import with_fields
from gateway.protocol.fields import Generation


@dataclass(frozen=True, slots=True)
class ModelRules:
    """What a request's model stands for.

    Args:
        aliases: other names to models' own.
        max_tokens: by model, the longest answer of a request that does not say it.
        quantiles: by model, which quantile of its predicted length such a request is sent with.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    quantiles: Mapping[str, float] = field(default_factory=dict)

    def resolve(self, model: str) -> str:
        """Return the model's own name.

        >>> ModelRules({"gpt-4o-mini": "llama"}).resolve("gpt-4o-mini")
        'llama'
        """
        return self.aliases.get(model, model)

    def apply(self, body: bytes, asked: Generation, length_field: str = "max_tokens") -> tuple[bytes, Generation]:
        """Return a request's body with the model's own name and its default length, and what it asks for then.

        Args:
            body: a JSON object, from which `asked` was read.
            asked: what it asks for.
            length_field: the name that its API has for the longest answer.
        """
        model = self.resolve(asked.model)
        max_tokens = self.max_tokens.get(model) if asked.max_tokens is None else None
        changes: dict[str, object] = {}
        if model != asked.model:
            changes["model"] = model
        if max_tokens is not None:
            changes[length_field] = max_tokens
        if not changes:
            return body, asked
        return with_fields(body, changes), replace(asked, model=model, max_tokens=max_tokens or asked.max_tokens)
