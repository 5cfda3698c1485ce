"""Training of Dynamic Graph Networks: recipes, input, engine and commands. Runs from a checkout."""
