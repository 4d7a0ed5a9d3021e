"""Raw videos to record shards, and the data set that needs no videos."""
