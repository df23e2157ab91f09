"""Writers of the sample corpus in the official layouts of the training datasets."""
