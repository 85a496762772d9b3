"""Invented cars in an imagined studio, to try everything on without Kaggle's data: `src/draw.py demo` draws them."""
