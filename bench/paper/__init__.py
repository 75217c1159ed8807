"""The experiment of arXiv 2406.04785 in simulated time: its testbed, its baselines, its scheduler, and ours."""
