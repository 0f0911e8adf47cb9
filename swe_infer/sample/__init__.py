"""The bundled dataset and model: small repair tasks, and a tiny Llama that solves some of them.

``instances.jsonl`` has the instances, ``tiny_llama/`` the model; ``testing`` runs an instance's test against patched
files. Uses only the standard library.
"""
