"""Load generators that others wrote, run against a gateway."""
