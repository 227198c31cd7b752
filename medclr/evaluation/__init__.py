"""How good a classifier is, with how many labels and on whose scans."""
