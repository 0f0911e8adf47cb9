"""The embedded default: bundled repair tasks, and a tiny Llama that solves them.

``instances.jsonl`` holds the instances, ``tiny_llama/`` the model, ``testing`` runs an instance's test against
patched files. Nothing here needs more than the standard library.
"""
