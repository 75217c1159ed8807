"""Magnus on one machine without a GPU: simulated engines, the gateway and, if wanted, a workload."""
