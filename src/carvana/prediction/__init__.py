"""From photos to probabilities, in one way: networks, views, weighted means; and what makes a mask of them."""
