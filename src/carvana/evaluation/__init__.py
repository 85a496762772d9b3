"""Dice: the metric, out-of-fold scores, the choice of an ensemble, the comparison of two experiments."""
