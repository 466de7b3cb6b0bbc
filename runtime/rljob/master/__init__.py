"""The master: the loop, the prompt sampler, partial rollouts, the replay buffer, durable state, HTTP and the report.

`decisions` are pure (no clock, no I/O, no randomness of their own); everything else carries them out. `loop` is the table of contents.
"""
