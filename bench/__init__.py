"""What produced the figures in the documentation: each script takes paths to data and prints a table."""
