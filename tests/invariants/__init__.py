"""Promise 2: one request, one answer."""
