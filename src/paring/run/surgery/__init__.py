"""Surgery on networks that train: cut parameters, optimizer state and copies alike."""
