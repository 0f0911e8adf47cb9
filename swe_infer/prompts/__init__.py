"""The ``prompt`` group: how an issue and files are written as a prompt, and in which form the answer is wanted."""
