"""What drivers and the core promise each other: public, and versioned."""
