"""Cars cut out of studio photos. The folders are floors: each imports from those before it, never from later ones.

data, models, prediction, evaluation, training, submission, pages; the modules beside them are the ground, known to all.
"""
