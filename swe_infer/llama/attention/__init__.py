"""Attention over a paged cache. Each module except ``base`` is a backend, named after the module, with a class
``Backend``."""
