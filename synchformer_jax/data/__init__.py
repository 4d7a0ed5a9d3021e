"""From record shards to batches: records, crop and offset choices, Grain pipelines, cached features."""
