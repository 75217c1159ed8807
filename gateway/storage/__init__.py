"""Every request's times and lengths in Postgres, with a journal on disk while Postgres is away."""
