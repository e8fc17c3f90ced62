"""Attacks: PGD on single inputs, and on one perturbation that a group of inputs shares."""
