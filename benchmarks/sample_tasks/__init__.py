"""The seeded generator of small repair tasks: the bundled instances, and what the tiny Llama is trained on."""
