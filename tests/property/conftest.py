"""One Hypothesis profile for all property tests: few enough examples for every commit, and no deadline."""

from hypothesis import settings

settings.register_profile("magnus", deadline=None, max_examples=50)
settings.load_profile("magnus")
