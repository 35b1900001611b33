"""What is seen, and when."""
