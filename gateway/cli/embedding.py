"""The embedder that the settings name, for commands beside the gateway."""

from gateway.cli.options import err
from gateway.config import Settings, cache_dir
from gateway.prediction.embedder import Embedder, load_embedder


def configured_embedder(settings: Settings) -> Embedder:
    """Load it; the static one is made first where it is not there yet."""
    with err.status("Preparing the embeddings: about a minute, the first time"):
        return load_embedder(settings.prediction.embedder, cache_dir())
