"""A simulated site whose true energy is known, by holder, active and floor apart: what the books are judged against.

Pure: numpy and polars, no store, no clock. Everything made here has origin ``simulated``, and what is reported of it says so.
The wire's fleet of ``wattledger/simulate`` feeds a running service; this one knows the answer.
"""
