"""The embedded default: small repair tasks made by a seeded generator, and a tiny Llama that solves them.

``instances.jsonl`` holds the bundled instances, ``tiny_llama/`` the model. ``generator`` makes further instances,
``testing`` runs an instance's test against patched files. Nothing here needs more than the standard library.
"""
