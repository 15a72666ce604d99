"""Fury's Prometheus and Grafana files, and the Python source of the dashboards."""
