"""Training of Dynamic Graph Networks: recipes, input, loop and commands. Runs from a checkout."""
