"""Load generators of other projects, run against a gateway."""
