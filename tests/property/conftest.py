"""One profile for all properties: as many examples as the time for a commit allows, on a machine however slow."""

from hypothesis import settings

settings.register_profile("magnus", deadline=None, max_examples=50)
settings.load_profile("magnus")
