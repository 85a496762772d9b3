"""Carvana Image Masking: cut the car out of a studio photo. The nouns; the scripts beside are the verbs."""
