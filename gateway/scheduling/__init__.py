"""What runs where, and when. Pure: time is an argument, messages in, actions out."""
