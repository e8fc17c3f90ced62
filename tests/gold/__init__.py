"""Behaviour frozen as files: what the command line and the public names gave, number by number."""
