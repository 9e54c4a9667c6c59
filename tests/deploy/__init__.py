"""What is deployed: the chart, the systemd units, the list of components and the check of advisories."""
