"""The protocol drivers that come with the core, and the storage that a rehearsal writes to."""
