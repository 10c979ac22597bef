"""Video files, directories and pictures as frames, read with little memory."""
