"""Prediction of answer lengths before the answers begin: a distribution in tokens; it never fails a request."""
