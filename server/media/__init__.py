"""Images and videos of a request: fetched, decoded and resized, under limits."""
