"""What the gateway itself costs: CPU a request, added latency, memory. About its process, not its scheduling."""
