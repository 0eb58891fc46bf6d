"""Grafana's dashboards as code: ``python -m metrics.dashboards`` writes the JSON files beside it.

For development only: the builder is no requirement of the service, which imports none of this.
"""
