"""What the client and the daemon share: messages, delivery, journal segments, limits.

The two sides are upgraded separately, so everything here has a version and
nothing here imports either side, a socket library, or torch.
"""
