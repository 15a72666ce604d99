"""The dashboards as Python: one module per dashboard, `panels` holds what they share."""
