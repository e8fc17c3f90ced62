"""Verifies proofs of certificates; shares no code with the prover."""
