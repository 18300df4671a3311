"""Would the tests notice? Small faults are put into the model one at a time, and its unit tests and laws run on each. ``make mutation``.

Nothing here runs in the product, and nothing of the working tree is changed: each mutant is a copy in memory.
"""
