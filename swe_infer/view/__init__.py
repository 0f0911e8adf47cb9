"""``swe-infer-view``: the runs of a folder in a browser, refreshed while they go on. Read-only."""
