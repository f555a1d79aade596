"""A cluster to which everything happens at random, for minutes, and the proof that its users notice nothing.

    python -m tests.faults.chaos --minutes 10 --seed 7

`schedule` says what is done when, and nothing but the seed decides it. `run` does it to a `cluster` of
processes, whose connections go through a `relay`. Each `client` is a user's program, which has its `jobs`
done and keeps `notes`; `judge` reads those, and nothing else.
"""
