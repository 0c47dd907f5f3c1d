"""A cluster that no machine here is large enough for, simulated event by event; the command is in ``__main__``.

trace        requests: made up, or read from a file
replica      what one replica holds and computes, and how long that takes
routers      ours and those it is compared with
scaling      Ray Serve's delays around our policy
simulation   the events, and what comes of them
"""
