"""The server of ``swe-infer-budget``, which keeps caps and rate limits for runs on several machines."""
