"""The whole of Magnus on one machine without a GPU: simulated engines, the gateway, and a workload if there is one."""
