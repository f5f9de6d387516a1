"""The benchmark behind `laser-kernels bench`: problems x methods -> rows, with the error beside every time.

suites -> problems (suites.py, problem.py) -> matrices and their optima (matrices.py, optimum.py) -> methods, ours and the
peers' (peers.py, cuda_peers.py), each in a process of its library (worker.py, team.py) -> protocol (protocol.py,
tuning.py) -> rows (rows.py) -> table, comparison, pictures (table.py, compare.py, figures.py, page.py). What a row
means: bench/README.md.
"""
