"""What a run would take of devices that need not be there, read from its compiled programs."""
