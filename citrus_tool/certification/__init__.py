"""Certificates of worst-case UAP accuracy: screening, the group MILP, attacks from above."""
