"""Tuning: a search for recipes, by standard and certified UAP accuracy on the validation split.

Both figures are maximised at once (Optuna's tree-structured Parzen estimators), since no one balance of them is right
for every user: what comes out is the front of recipes that no other one beats in both, and one choice of it. The first
trial is the recipe as it stands. The test split is never read.

A trial trains by `trainer.fit`, which keeps the best epoch; that network is exported and its certified UAP accuracy
proven by `certify_uap` on the first inputs of the validation split. A trial is given up when more than half of the
finished ones were better in both validation figures at the same share of their epochs; Optuna's own pruners know one
objective only.

The study is an SQLite file of Optuna's, the results of trial n stand in `trials/n/result.json`. The sampler is seeded
anew for every trial, so that a search that was stopped and resumed asks for the same recipes as one that was not.
"""
