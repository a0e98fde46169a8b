"""What a tensor is as a form of others: composed, looked at through views, and within the range of its type."""
