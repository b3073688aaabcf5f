"""Each module answers one question with a table: `python -m benchmarks.NAME --out F.json`."""
