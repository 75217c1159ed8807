"""The scheduling core decides which request runs where and when. It does no I/O, and time is an argument."""
