"""The operators' tables: which cases are timed, what times are to be reached, and beside what, a file for each.

A file has `CASES`, each a `problem.Case`. Formulations beside ours are written as a user of torch would.
"""
