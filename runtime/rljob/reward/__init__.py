"""The reward service: a registry of verifiers behind `POST /v1/score`.

A wrong answer is a result. What goes wrong on our side (a verifier that raises, a worker that dies) is the verdict `failed`, which carries
no reward: the caller tries again.
"""
