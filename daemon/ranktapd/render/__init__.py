"""Records to pictures, buckets and protos: arrays in, bytes out; no clock, file or thread."""
