"""Text that a model writes: behind random words, or as chats; to calibrate and to heal on."""
