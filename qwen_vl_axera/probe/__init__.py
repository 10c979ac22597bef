"""Two blocks of the tower through the real compiler: which form it takes, and whether it computes the same."""
