"""The interface between the gateway and engines, and one adapter per kind of engine."""
