"""Invented cars in an imagined studio: what `src/draw_demo_cars.py` draws."""
