"""Resolved rates: the share of instances whose tests pass with the predicted patch."""
