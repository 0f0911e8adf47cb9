"""The ``prompt`` group: how an issue and files are written as a prompt, and the requested form of the answer."""
