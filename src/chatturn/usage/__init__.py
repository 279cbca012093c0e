"""What model calls cost: prices and sums of money.  Pure."""
