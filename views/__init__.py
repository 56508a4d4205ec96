"""What people look at: tables, diffs, drawings, reports."""
