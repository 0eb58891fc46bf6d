"""Everything Prometheus: names, instruments, queries, service levels, rules, dashboards."""
