"""Making a data set shard by shard: what is missing, who makes it, and what is written down of it."""
