"""What is asked of the answer."""
