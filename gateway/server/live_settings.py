"""The settings that requests read and that can change while the gateway runs."""

from gateway.config import Settings
from gateway.protocol.model_rules import ModelRules
from gateway.scheduling.messages import QueueLimits
from gateway.upstream.client import Timeouts


class LiveSettings:
    """The current values.

    Attributes:
        priorities: priority by application. `update` changes this dictionary, because others hold it.
    """

    def __init__(self, settings: Settings) -> None:
        self.priorities: dict[str, int] = {}
        self.update(settings)

    def update(self, settings: Settings) -> None:
        """Take new values."""
        self.priorities.clear()
        self.priorities.update(settings.scheduling.priorities)
        self._rules = _model_rules(settings)

    def rules(self) -> ModelRules:
        """Return the aliases and default lengths of models."""
        return self._rules


def timeouts(settings: Settings) -> Timeouts:
    """Return how long to wait for an engine."""
    upstream = settings.upstream
    return Timeouts(upstream.connect_timeout_s, upstream.first_byte_timeout_s, upstream.idle_timeout_s)


def queue_limits(settings: Settings) -> QueueLimits:
    """Return how much may wait in the queue."""
    return QueueLimits(settings.scheduling.max_queue, settings.scheduling.max_queue_tokens)


def _model_rules(settings: Settings) -> ModelRules:
    defaults = settings.models.defaults.items()
    max_tokens = {model: default.max_tokens for model, default in defaults if default.max_tokens is not None}
    quantiles = {
        model: default.max_tokens_quantile for model, default in defaults if default.max_tokens_quantile is not None
    }
    return ModelRules(settings.models.aliases, max_tokens, quantiles)
