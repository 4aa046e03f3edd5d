"""The embedded model and the small real reranking problem that shows it at work."""
