"""The code sandbox: runs programs that nobody trusts, and judges them, behind `POST /v1/run` and `POST /v1/judge`.

`pool` isolates; `service` queues, judges and counts. What is expected of a program never enters the place where it runs.
"""
