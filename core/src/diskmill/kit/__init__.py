"""What drivers build from: on-disk structures, tables, blocks, chunks. Public, and versioned with the contract."""
