"""The values that the parts of the gateway take, derived from the settings."""

from gateway.api.middleware import Cors
from gateway.config import Settings
from gateway.protocol.generation_request import ModelRules
from gateway.scheduling.messages import QueueLimits
from gateway.scheduling.policies import Policy, policy_named
from gateway.upstream.client import Timeouts


def timeouts(settings: Settings) -> Timeouts:
    """Return how long to wait for an engine."""
    upstream = settings.upstream
    return Timeouts(upstream.connect_timeout_s, upstream.first_byte_timeout_s, upstream.idle_timeout_s)


def cors(settings: Settings) -> Cors:
    """Return which web pages may read answers."""
    cors = settings.server.cors
    return Cors(cors.allow_origins, cors.allow_headers, cors.allow_methods, cors.max_age_s)


def queue_policy(settings: Settings) -> Policy:
    """Return the order in which waiting requests are dispatched."""
    return policy_named(settings.scheduling.policy, settings.scheduling.alpha)


def queue_limits(settings: Settings) -> QueueLimits:
    """Return how much may wait in the queue."""
    return QueueLimits(settings.scheduling.max_queue, settings.scheduling.max_queue_tokens)


def model_rules(settings: Settings) -> ModelRules:
    """Return the aliases and default lengths of models."""
    defaults = settings.models.defaults.items()
    max_tokens = {model: default.max_tokens for model, default in defaults if default.max_tokens is not None}
    quantiles = {
        model: default.max_tokens_quantile for model, default in defaults if default.max_tokens_quantile is not None
    }
    return ModelRules(settings.models.aliases, max_tokens, quantiles)
