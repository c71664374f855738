"""What is fitted on cached features alone."""
