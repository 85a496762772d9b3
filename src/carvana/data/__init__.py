"""Photos and masks: where they lie, how they are read, split, brought to network size, augmented and cached."""
