"""Learning: SimCLR, classifiers, features, and the trainer behind them."""
