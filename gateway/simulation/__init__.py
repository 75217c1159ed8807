"""The real scheduling core on simulated engines in simulated time: no sockets, no clock, no luck but a seed."""
