"""SWE-bench inference as a config-driven experiment: prompts in, patches out.

Importing this package starts nothing and imports no heavy dependency.
"""

__version__ = "0.2.0"
