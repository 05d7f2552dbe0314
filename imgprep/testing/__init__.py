"""Shipped fakes: what the demonstration and the tests use in place of ImageNet and of Kaggle."""
