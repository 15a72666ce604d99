"""Fury's Prometheus and Grafana files, and the Python source of the dashboards.

tests/grafana must not become a package: pytest would put tests/ first on the path, and `grafana` would be that one.
"""
