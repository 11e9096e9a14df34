"""OpenStack Glance imports and exports through goldsmith."""
