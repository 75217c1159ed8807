"""The experiment of arXiv 2406.04785 in simulated time.

It has the paper's testbed, its baselines and its scheduler, and compares the gateway's scheduler with them.
"""
