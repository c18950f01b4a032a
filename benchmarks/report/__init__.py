"""Tables and figures from the rows."""
