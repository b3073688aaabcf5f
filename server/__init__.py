"""The appliance: front, job engine, stores and runners."""
