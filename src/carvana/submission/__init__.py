"""The CSV for Kaggle: written in blocks that outlive a crash, joined, checked, recorded."""
