"""The gateway's own cost: CPU per request, added latency, memory. It measures the process, not the scheduling."""
