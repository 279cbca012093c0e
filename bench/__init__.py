"""`make bench`: what a turn costs, beside two small JavaScript Workers in the same workerd."""
