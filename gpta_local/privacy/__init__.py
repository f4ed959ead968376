"""The promises that can be verified: what may leave, what was done, what is written and kept.

Nothing here reads rows from files; what must know them is given texts by the outer loop.
"""
