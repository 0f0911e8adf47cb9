"""The ``context`` group: which files of the repository a prompt shows."""
