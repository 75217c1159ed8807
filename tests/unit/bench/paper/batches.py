"""Helpers that read the batches of a policy."""


def filled(policy, *requests):
    for one in requests:
        policy.arrive(one)
    return policy


def ids(batch):
    return [one.id for one in batch]


def taken(policy, now=10.0):
    batches = []
    while batch := policy.take(now):
        batches.append(ids(batch))
    return batches
