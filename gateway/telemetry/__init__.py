"""What the gateway tells of itself: metrics and logs. No prompt text, no secrets, no user names as labels."""
