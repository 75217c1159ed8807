"""What happened: every request's times and lengths, in Postgres, through a journal on disk while Postgres is away."""
