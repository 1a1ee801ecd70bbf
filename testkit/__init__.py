"""What tests, chaos, benchmarks and examples share: brokers to run against."""
