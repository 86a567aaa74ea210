"""Nothing is registered here yet."""
