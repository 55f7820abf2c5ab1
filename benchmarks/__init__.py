"""One runner for all benchmarks: cases against peers, and what daskinfer alone costs. See docs/performance.md."""
