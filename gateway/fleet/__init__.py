"""Which backends exist and how they fare: manager, pool, circuit breaker, discovery, scraping."""
