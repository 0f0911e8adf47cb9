"""Resolved rates: whether the tests of an instance pass once a prediction's patch is applied."""
