"""What a robot sees, is told, and chooses among: readers, checks, and which samples calibrate and which judge."""
