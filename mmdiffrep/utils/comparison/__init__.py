"""Comparing configs: equal conditions, several seeds, what each costs, where the comparison is unfair.

``entries`` reads what is compared, ``runs`` trains or tests it and keeps the results, ``measure`` (a process of its own for
each config) finds the cost, ``fairness`` and ``pretraining`` read the configs, ``matching`` compares at equal training cost,
``report`` and ``picture`` write the outcome. ``tools/compare.py`` puts them together.
"""
