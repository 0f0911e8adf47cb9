"""``python -m swe_infer.budget``. The server is :mod:`swe_infer.api.budget_server`."""
