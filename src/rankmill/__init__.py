"""rankmill: batch reranking on Ray Data. Candidate tables in, ranked tables out.

config = rankmill.load_config("configs/nightly.yaml", overrides={"output.top_k": 20})
result = rankmill.rerank(config)

scorer = rankmill.Scorer("demo")            # no Ray needed
scores = scorer.score([("query", "document"), ...])
"""
