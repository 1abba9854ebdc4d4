"""How a network changes its size while it trains."""
