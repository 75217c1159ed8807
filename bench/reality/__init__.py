"""The simulator beside real engines: step times fitted on one, the same load on both, and how far they are apart."""
