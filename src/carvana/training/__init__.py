"""One run: split, losses, optimizer, the step, epochs, validation, what it continues from, what it would cost."""
