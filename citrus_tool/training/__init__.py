"""Certified training: one file per method, and the loop that runs any of them."""
