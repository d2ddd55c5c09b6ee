"""The verbs of `mu2`, a few to a file. Nothing heavy is imported before a verb runs."""
