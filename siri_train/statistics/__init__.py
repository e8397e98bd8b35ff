"""Statistics of evaluations: intervals, paired tests, pass@k, Pareto fronts, the paper's ratio.

Functions of numbers; they know nothing of runs and files. A question is the unit that is drawn:
the answers to one question belong together.
"""
